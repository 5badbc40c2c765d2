"""Keys out of Arrow buffers into planes: whole 8-byte words and a zero-padded rest, for `digests`.

Buffers come as addresses, so that all layouts share one compiled kernel, and no load reaches outside
a buffer: the rest of a key is read backwards from its end.
"""

from typing import Any, Final

import numpy as np

from recsys_mtl.encoding import arrow
from recsys_mtl.encoding.digests import (
    LOW32,
    U0,
    U1,
    U3,
    U7,
    U8,
    U32,
    U56,
    Integer,
    fetch,
    helper,
    load8,
    load16,
    load32,
    load64,
)

BLOCK: Final = 512
"""Keys handled at a time: those of their planes that a step reads stay in the first-level cache."""

_MILLISECONDS_PER_DAY: Final = 86_400_000
_INLINE: Final = np.uint64(12)
_VIEW: Final = 16
_LINE: Final = 64  # bytes; where cache lines are longer, some are asked for twice


@helper
def spread_validity(validity: int, valid: Any, start: int, count: int) -> None:
    """Write a block's validity bits as words of all ones or zeros, the first key's at `start & 7`."""
    skipped = start & 7
    if validity == 0:
        valid[: skipped + count] = ~U0
        return
    # Byte by byte: the eight shifts of one byte are one vector operation.
    for byte in range((skipped + count + 7) >> 3):
        bits = load8(validity, (start >> 3) + byte)
        for bit in range(8):
            valid[8 * byte + bit] = U0 - ((bits >> np.uint64(bit)) & U1)


@helper
def _cut_key(
    planes: Any, key: Integer | np.uint64, address: int, length: Integer, floor: int
) -> None:
    """Cut a key into up to three whole words and a zero-padded rest.

    The rest is the end of the word that ends with the key; `floor` is where its buffer begins.
    """
    first, second, third, tails, lengths, _ = planes
    lengths[key] = np.uint64(length)
    final = address + length - 8
    if final >= floor:
        # A word that the key does not have is not looked at: any place in the buffer will do.
        first[key] = load64(min(address, final), 0)
        second[key] = load64(min(address + 8, final), 0)
        third[key] = load64(min(address + 16, final), 0)
        # Two shifts: one by 64, for an empty rest, is undefined.
        tails[key] = (load64(final, 0) >> U8) >> (U56 - ((np.uint64(length) & U7) << U3))
    else:
        rest = U0
        for place in range(length):
            rest |= load8(address, place) << np.uint64(8 * place)
        tails[key] = rest


@helper
def cut_slices(
    planes: Any, places: Any, kind: int, width: int, values: int, offsets: int, start: int
) -> None:
    """Cut the keys between consecutive offsets, or of a fixed width."""
    for key in range(places.size):
        row = start + key
        if kind == arrow.OFFSETS_32:
            begin, end = load32(offsets, 4 * row), load32(offsets, 4 * row + 4)
        elif kind == arrow.OFFSETS_64:
            begin, end = load64(offsets, 8 * row), load64(offsets, 8 * row + 8)
        else:
            begin, end = np.uint64(width * row), np.uint64(width * row + width)
        places[key] = values + np.int64(begin)
        _cut_key(planes, key, places[key], np.int64(end - begin), values)


@helper
def load_views(planes: Any, values: int, valid: Any, start: int) -> None:
    """Read 16-byte views into the second plane and the third; null ones have length 0."""
    _, second, third, _, lengths, _ = planes
    for key in range(valid.size):
        low, high = load64(values, 16 * (start + key)), load64(values, 16 * (start + key) + 8)
        second[key], third[key], lengths[key] = low, high, low & LOW32 & valid[key]


@helper
def cut_views(planes: Any, places: Any, buffers: int, count: int) -> None:
    """Cut the keys behind the views read; one under a null may be garbage and is not followed."""
    first, second, third, tails, lengths, _ = planes
    for key in range(count):
        low, high, length = second[key], third[key], lengths[key]
        word = (low >> U32) | (high << U32)
        rest = word if length < U8 else high >> U32
        first[key] = word
        tails[key] = rest & ((U1 << ((length & U7) << U3)) - U1)
    # Longer keys, not inline, are noted without a branch and followed afterwards.
    num_long = 0
    for key in range(count):
        places[BLOCK + num_long] = key
        num_long += 1 if lengths[key] > _INLINE else 0
    for number in range(num_long):
        # Unsigned: an index that may be negative costs an instruction or two wherever it is used.
        long = np.uint64(places[BLOCK + number])
        buffer = load64(buffers, 8 * np.int64(third[long] & LOW32))
        places[long] = np.int64(buffer + (third[long] >> U32))
        _cut_key(planes, long, places[long], np.int64(lengths[long]), 0)


@helper
def fetch_ahead(kind: int, width: int, values: int, start: int, count: int) -> None:
    """Have the views, integers or codes from number `start` on brought near, for a later block.

    Left to itself, the processor waits for memory at the head of every block: the columns take turns,
    and what it foresees of one ends with the page.
    """
    size = _VIEW if kind == arrow.VIEWS else width
    for line in range(size * count // _LINE):
        fetch(values, size * start + _LINE * line)


@helper
def read_integers(words: Any, kind: int, width: int, values: int, start: int, count: int) -> None:
    """Widen integers, booleans and dates to 64 bits."""
    sign = U0 if kind == arrow.UNSIGNED or width == 8 else U1 << np.uint64(8 * width - 1)
    for key in range(count):
        row = start + key
        if kind == arrow.BITS:
            words[key] = (load8(values, row >> 3) >> np.uint64(row & 7)) & U1
        elif width == 8:
            words[key] = load64(values, 8 * row)
        elif width == 4:
            words[key] = (load32(values, 4 * row) ^ sign) - sign
        elif width == 2:
            words[key] = (load16(values, 2 * row) ^ sign) - sign
        else:
            words[key] = (load8(values, row) ^ sign) - sign
    if kind == arrow.MILLISECONDS:
        for key in range(count):
            words[key] = np.uint64(np.int64(words[key]) // _MILLISECONDS_PER_DAY)
