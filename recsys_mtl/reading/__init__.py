"""Rows in: tables of interactions, users and items, read lazily."""

from recsys_mtl.reading.scan import ABSENT, Rows, SideTable, locate, require, scan

__all__ = ["ABSENT", "Rows", "SideTable", "locate", "require", "scan"]
