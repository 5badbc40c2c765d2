"""Rows in: tables of interactions, users and items, read lazily."""

from recsys_mtl.reading.as_of import AsOfState, read_ticks
from recsys_mtl.reading.scan import Rows, SideTable, require, scan

__all__ = ["AsOfState", "Rows", "SideTable", "read_ticks", "require", "scan"]
