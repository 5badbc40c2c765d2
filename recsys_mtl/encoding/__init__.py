"""Rows to numbers, without torch: hashing, scaling, labels."""

from recsys_mtl.encoding.batch import (
    MISSING,
    OBSERVED,
    OUT_OF_SPACE,
    Batch,
    Block,
    Part,
    Ragged,
    absent_notes,
)
from recsys_mtl.encoding.cache import EncodedCache
from recsys_mtl.encoding.collisions import collision_report
from recsys_mtl.encoding.encoder import Encoder
from recsys_mtl.encoding.growth import row_origins, with_columns
from recsys_mtl.encoding.hashing import (
    EMPTY_ROW,
    HASH_VERSION,
    NULL_ROW,
    NUM_RESERVED,
    UNKNOWN_ROW,
    hash64,
    hash_column,
    hash_lists,
    hash_table,
    table_seed,
    warm,
)
from recsys_mtl.encoding.layout import EncodedNumber, InputLayout, TableSize

__all__ = [
    "EMPTY_ROW",
    "HASH_VERSION",
    "MISSING",
    "NULL_ROW",
    "NUM_RESERVED",
    "OBSERVED",
    "OUT_OF_SPACE",
    "UNKNOWN_ROW",
    "Batch",
    "Block",
    "EncodedCache",
    "EncodedNumber",
    "Encoder",
    "InputLayout",
    "Part",
    "Ragged",
    "TableSize",
    "absent_notes",
    "collision_report",
    "hash64",
    "hash_column",
    "hash_lists",
    "hash_table",
    "row_origins",
    "table_seed",
    "warm",
    "with_columns",
]
