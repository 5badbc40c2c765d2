"""Rows in: tables of interactions, users and items, read lazily."""

from recsys_mtl.reading.scan import Rows, SideTable, require, scan

__all__ = ["Rows", "SideTable", "require", "scan"]
