"""Features from earlier rows: computed once, kept as a state, carried from day to day."""

from recsys_mtl.reading.as_of.run import read_ticks
from recsys_mtl.reading.as_of.state import AsOfState

__all__ = ["AsOfState", "read_ticks"]
