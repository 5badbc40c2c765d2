"""Rows in: tables of interactions, users and items, read lazily."""

from recsys_mtl.reading.keys import ABSENT, KeyIndex
from recsys_mtl.reading.scan import Rows, SideTable, require, scan

__all__ = ["ABSENT", "KeyIndex", "Rows", "SideTable", "require", "scan"]
