"""Rows in: tables of interactions, users and items, read lazily."""

from recsys_mtl.reading.as_of import AsOfState
from recsys_mtl.reading.scan import Rows, SideTable, require, scan

__all__ = ["AsOfState", "Rows", "SideTable", "require", "scan"]
