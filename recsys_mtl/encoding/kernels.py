"""Numba kernels that turn Arrow buffers into hashes and table rows without holding the GIL.

Keys are handled in blocks: `cutting` turns them into planes, `digests` hashes the planes without
branches, which LLVM vectorises. Keys of 32 bytes and more are rare and hashed one at a time.

A column is a row of 64-bit fields: where its values lie, how they are hashed, how a hash becomes a row
of its table. Between hash and row stand *tokens*: 0 for null, 1 for the empty string where that has
a row of its own, else the hash, of which 0 and 1 count as 2 and 3.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped] # it has no types
from numba.core import types
from numba.extending import intrinsic

from recsys_mtl.compiled import compiled
from recsys_mtl.encoding import arrow
from recsys_mtl.encoding.cutting import (
    BLOCK,
    cut_slices,
    cut_views,
    fetch_ahead,
    load_views,
    read_integers,
    spread_validity,
)
from recsys_mtl.encoding.digests import (
    LOW32,
    U0,
    U1,
    U2,
    U7,
    U8,
    U32,
    helper,
    load32,
    load64,
    murmur3_key,
    murmur_planes,
    xx_planes,
    xx_words,
    xxh64_key,
)

XXH64: Final = 0
MURMUR3: Final = 1

NULL_ROW: Final = 0
UNKNOWN_ROW: Final = 1
EMPTY_ROW: Final = 2
NUM_RESERVED: Final = 3

# The fields of a column. KIND .. BUFFERS are those of `arrow.ColumnView`.
KIND, WIDTH, FIRST, VALIDITY, VALUES, OFFSETS, BUFFERS = range(7)
SEED, ALGORITHM, EMPTY_APART = 7, 8, 9
NUM_BUCKETS, FIRST_BUCKET, HASH_NUMBER = 10, 11, 12
KEPT: Final = 13  # address of the buckets kept: 64 bits and the number of those before, by turns
SLOTS, SLOT_MASK = 14, 15  # address of the vocabulary: token and row by turns
TABLE, TABLE_SIZE = 16, 17  # a dictionary's entries and a 0 for null; or the edges of numbers
NUM_FIELDS: Final = 18

_U63: Final = np.uint64(63)
_TILE_COLUMNS: Final = 4  # those that `_weave` takes


def _counter(_context: Any, _word: Any) -> Any:
    """Make a function that counts the bits set in a word."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


def _float_loader(_context: Any, _base: Any, _offset: Any) -> Any:
    """Make a function that reads an aligned float64 at a base address plus an offset."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte, double = map(context.get_value_type, (types.uint8, types.float64))
        base = builder.inttoptr(arguments[0], byte.as_pointer())
        place = builder.bitcast(builder.gep(base, [arguments[1]]), double.as_pointer())
        return builder.load(place)

    return types.float64(types.int64, types.int64), generate


def _weaver(_context: Any, _source: Any, _pitch: Any, _target: Any, _row: Any) -> Any:
    """Make a function that turns four columns of eight int32 into eight rows of four.

    It takes the address of the first column and the bytes from one to the next, and the same of the
    rows. LLVM does not make vector operations of a loop that does this.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = context.get_value_type(types.int32)
        column, row = ir.VectorType(word, 8), ir.VectorType(word, 4)
        source, pitch, target, step = arguments

        def place(base: Any, distance: Any, number: int, kind: Any) -> Any:
            offset = builder.mul(distance, ir.Constant(distance.type, number))
            return builder.inttoptr(builder.add(base, offset), kind.as_pointer())

        def mix(one: Any, other: Any, *picked: int) -> Any:
            mask = ir.Constant(ir.VectorType(ir.IntType(32), len(picked)), list(picked))
            return builder.shuffle_vector(one, other, mask)

        a, b, c, d = (
            builder.load(place(source, pitch, number, column), align=4) for number in range(4)
        )
        low, high = (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)
        even, odd = (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)
        halves = [(mix(a, b, *half), mix(c, d, *half)) for half in (low, high)]
        pairs = [mix(*half, *part) for half in halves for part in (even, odd)]
        for number, pair in enumerate(pairs):
            for later in (0, 4):
                found = mix(pair, pair, *range(later, later + 4))
                builder.store(found, place(target, step, number + later, row), align=4)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64, types.int64), generate


_weave: Any = intrinsic(_weaver)
_count_ones: Any = intrinsic(_counter)
_load_float: Any = intrinsic(_float_loader)


@helper
def _hash_block(fields: Any, planes: Any, places: Any, valid: Any, start: int) -> None:
    """Hash the values from number `start` of the buffers into the last plane."""
    count = valid.size
    kind, width, values = fields[KIND], fields[WIDTH], fields[VALUES]
    first, _, _, tails, lengths, _ = planes
    if kind == arrow.VIEWS:
        load_views(planes, values, valid, start)
        cut_views(planes, places, fields[BUFFERS], count)
    elif kind in (arrow.OFFSETS_32, arrow.OFFSETS_64, arrow.FIXED_BYTES):
        cut_slices(planes, places[:count], kind, width, values, fields[OFFSETS], start)
    else:
        read_integers(first, kind, width, values, start, count)
        lengths[:], tails[:] = U8, U0
        if fields[ALGORITHM] == XXH64:
            xx_words(planes, count, np.uint64(fields[SEED]))
            return
    _digest_block(fields, planes, places, count)


@helper
def _digest_block(fields: Any, planes: Any, places: Any, count: int) -> None:
    """Hash the keys cut into planes."""
    lengths, hashes = planes[4], planes[5]
    most, rests = U0, U0
    for key in range(count):
        most = max(most, lengths[key])
        rests |= lengths[key] & U7
    seed, algorithm = np.uint64(fields[SEED]), fields[ALGORITHM]
    if algorithm == XXH64:
        xx_planes(planes, count, seed, most, rests)
    else:
        murmur_planes(planes, count, seed, most)
    if most >= U32:
        for key in range(count):
            length = np.int64(lengths[key])
            if length >= 32 and algorithm == XXH64:
                hashes[key] = xxh64_key(places[key], length, seed)
            elif length >= 32:
                hashes[key] = murmur3_key(places[key], length, seed)


@helper
def _mark_block(fields: Any, hashes: Any, lengths: Any, valid: Any) -> None:
    """Turn the hashes of a block into tokens."""
    count = valid.size
    if fields[ALGORITHM] == MURMUR3:
        for key in range(count):
            hashes[key] = (hashes[key] << U32) | U2
    else:
        for key in range(count):
            hashes[key] += U2 if hashes[key] < U2 else U0
    if fields[EMPTY_APART] != 0:
        for key in range(count):
            hashes[key] = U1 if lengths[key] == U0 else hashes[key]
    for key in range(count):
        hashes[key] &= valid[key]


@helper
def _place_block(fields: Any, tokens: Any, out: Any) -> None:
    """Give each token of a block its row in the table."""
    num_buckets, number = np.uint64(fields[NUM_BUCKETS]), np.uint64(fields[HASH_NUMBER])
    first, kept = fields[FIRST_BUCKET], fields[KEPT]
    for key in range(out.size):
        token = tokens[key]
        spread = ((token >> U32) + number * (token & LOW32)) & LOW32
        out[key] = first + np.int64((spread * num_buckets) >> U32)
    if kept != 0:
        for key in range(out.size):
            bucket = np.uint64(out[key] - first)
            place = 16 * np.int64(bucket >> np.uint64(6))
            word, before = load64(kept, place), load64(kept, place + 8)
            bit = U1 << (bucket & _U63)
            row = first + np.int64(before + _count_ones(word & (bit - U1)))
            out[key] = row if word & bit != U0 else UNKNOWN_ROW
    if num_buckets == U0:
        out[:] = UNKNOWN_ROW
    if fields[SLOTS] != 0:
        _look_up(fields[SLOTS], np.uint64(fields[SLOT_MASK]), tokens, out)
    for key in range(out.size):
        row = EMPTY_ROW if tokens[key] == U1 else out[key]
        out[key] = NULL_ROW if tokens[key] == U0 else row


@helper
def _look_up(slots: int, mask: np.uint64, tokens: Any, out: Any) -> None:
    """Give the tokens that an open-addressing table holds their rows there."""
    for key in range(out.size):
        slot = tokens[key] & mask
        found = load64(slots, 16 * np.int64(slot))
        while found != tokens[key] and found != U0:
            slot = (slot + U1) & mask
            found = load64(slots, 16 * np.int64(slot))
        if found != U0:
            out[key] = np.int64(load64(slots, 16 * np.int64(slot) + 8))


@helper
def _place_numbers(fields: Any, start: int, out: Any) -> None:
    """Write the row of each number's bucket: how many edges are at most the number."""
    values, edges = fields[VALUES], fields[TABLE]
    out[:] = NUM_RESERVED
    step = (fields[TABLE_SIZE] + 1) // 2  # of 2**k - 1 edges, the last of them infinite
    while step > 0:
        for key in range(out.size):
            edge = _load_float(edges, 8 * (out[key] - NUM_RESERVED + step - 1))
            out[key] += step if edge <= _load_float(values, 8 * (start + key)) else 0
        step //= 2
    for key in range(out.size):
        number = _load_float(values, 8 * (start + key))
        out[key] = out[key] if number == number else NULL_ROW  # noqa: PLR0124 # not of NaN


@helper
def _gather(fields: Any, words: Any, valid: Any, start: int, wide: bool, out: Any) -> None:
    """Write the dictionary's entry per row; a null row's code is not looked at."""
    table, size = fields[TABLE], np.uint64(fields[TABLE_SIZE])
    if fields[VALIDITY] == 0 and fields[WIDTH] == 4 and not wide:  # the usual case, in one pass
        values = fields[VALUES]
        for key in range(out.size):
            code = np.int64(min(load32(values, 4 * (start + key)), size))
            out[key] = load32(table, 4 * code)
        return
    read_integers(words, fields[KIND], fields[WIDTH], fields[VALUES], start, out.size)
    for key in range(out.size):
        # The entry after the last is that of null.
        code = np.int64(min(words[key] | ~valid[key], size))
        out[key] = load64(table, 8 * code) if wide else load32(table, 4 * code)


@helper
def _write_tile(tile: Any, out: Any, first: int, num_columns: int) -> None:
    """Turn up to four columns into a part of each row, from the first column's place on."""
    count, width = out.shape
    keys = count & ~7 if num_columns == _TILE_COLUMNS else 0
    source, target = tile.ctypes.data, out.ctypes.data + 4 * first
    for key in range(0, keys, 8):
        _weave(source + 4 * key, 4 * BLOCK, target + 4 * key * width, 4 * width)
    for key in range(keys, count):
        for column in range(num_columns):
            out[key, first + column] = tile[column, key]


@helper
def _fill_tile(
    columns: Any, planes: Any, places: Any, valid: Any, tile: Any, begin: int, count: int
) -> None:
    """Write the table rows of all columns, shape (columns, at least `count`)."""
    for column in range(columns.shape[0]):
        fields, target = columns[column], tile[column, :count]
        start = fields[FIRST] + begin
        spread_validity(fields[VALIDITY], valid, start, count)
        present = valid[start & 7 : (start & 7) + count]
        if fields[KIND] == arrow.NULLS:
            target[:] = NULL_ROW
        elif fields[KIND] == arrow.NUMBERS:
            _place_numbers(fields, start, target)
        elif fields[TABLE] != 0:
            _gather(fields, planes[0], present, start, False, target)
        else:
            _hash_block(fields, planes, places, present, start)
            _mark_block(fields, planes[5], planes[4], present)
            _place_block(fields, planes[5], target)
        fetch_ahead(fields[KIND], fields[WIDTH], fields[VALUES], start + count, count)


@compiled
def encode_rows(columns: Any, begin: int, out: Any) -> None:
    """Write the table rows of all columns, shape (columns, NUM_FIELDS), from row `begin` of each.

    The rows of `out`, shape (n, columns), are written four columns at a time: a store per column
    would cost as much as a part of its hash, and more columns would leave the first-level cache.
    """
    num_columns = columns.shape[0]
    table = np.zeros((6, BLOCK), np.uint64)
    planes = (table[0], table[1], table[2], table[3], table[4], table[5])
    places, valid = np.zeros(2 * BLOCK, np.int64), np.empty(BLOCK + 16, np.uint64)
    tile = np.empty((_TILE_COLUMNS, BLOCK), np.int32)
    for done in range(0, out.shape[0], BLOCK):
        target = out[done : done + BLOCK]
        count = target.shape[0]
        if num_columns == 1:  # a column is a row
            lone = target.reshape((1, count))
            _fill_tile(columns, planes, places, valid, lone, begin + done, count)
        else:
            for first in range(0, num_columns, _TILE_COLUMNS):
                group = columns[first : first + _TILE_COLUMNS]
                _fill_tile(group, planes, places, valid, tile, begin + done, count)
                _write_tile(tile, target, first, group.shape[0])


@helper
def _hash_words(
    fields: Any, planes: Any, places: Any, valid: Any, begin: int, as_tokens: bool, out: Any
) -> None:
    """Write a block of hashes or tokens."""
    start = fields[FIRST] + begin
    spread_validity(fields[VALIDITY], valid, start, out.size)
    present = valid[start & 7 : (start & 7) + out.size]
    if fields[TABLE] != 0:
        _gather(fields, planes[0], present, start, True, out)
        return
    _hash_block(fields, planes, places, present, start)
    hashes = planes[5]
    if as_tokens:
        _mark_block(fields, hashes, planes[4], present)
    for key in range(out.size):
        out[key] = hashes[key] & present[key]


@compiled
def hash_rows(fields: Any, begin: int, as_tokens: bool, out: Any) -> None:
    """Write the hashes of one column, or its tokens, from row `begin`; null is 0."""
    table = np.zeros((6, BLOCK), np.uint64)
    planes = (table[0], table[1], table[2], table[3], table[4], table[5])
    places, valid = np.zeros(2 * BLOCK, np.int64), np.empty(BLOCK + 16, np.uint64)
    for done in range(0, out.size, BLOCK):
        target = out[done : done + BLOCK]
        _hash_words(fields, planes, places, valid, begin + done, as_tokens, target)


@compiled
def place_rows(fields: Any, tokens: Any, out: Any) -> None:
    """Write the table row of each token."""
    for done in range(0, out.size, BLOCK):
        _place_block(fields, tokens[done : done + BLOCK], out[done : done + BLOCK])


@compiled
def fill_slots(tokens: Any, first_row: int, slots: Any) -> None:
    """Fill an open-addressing table, shape (a power of two, 2), with tokens and their rows."""
    mask = np.uint64(slots.shape[0] - 1)
    for number in range(tokens.size):
        slot = tokens[number] & mask
        while slots[slot, 0] != U0:
            slot = (slot + U1) & mask
        slots[slot, 0], slots[slot, 1] = tokens[number], np.uint64(first_row + number)
