"""Numba kernels that turn Arrow buffers into hashes and table rows without holding the GIL.

Keys are handled in blocks. A first pass cuts every key of a block into whole 8-byte words and a
zero-padded rest; the hash then runs over these planes without branches, which LLVM vectorises.
Keys of 32 bytes and more are rare and hashed one at a time. Buffers come as addresses, so each kernel
is compiled once for all layouts, and no load reaches outside a buffer: the rest of a key is read
backwards from its end.

A column is a row of 64-bit fields: where its values lie, how they are hashed, how a hash becomes a row
of its table. Between hash and row stand *tokens*: 0 for null, 1 for the empty string where that has
a row of its own, else the hash, of which 0 and 1 count as 2 and 3.
"""

from typing import Any, Final

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from recsys_mtl.compiled import compiled
from recsys_mtl.encoding import arrow
from recsys_mtl.encoding.digests import (
    LOW32,
    U0,
    U1,
    U2,
    U3,
    U7,
    U8,
    U32,
    U56,
    Integer,
    helper,
    load8,
    load16,
    load32,
    load64,
    murmur3_key,
    murmur_planes,
    xx_planes,
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

_BLOCK: Final = 256
_MILLISECONDS_PER_DAY: Final = 86_400_000
_INLINE: Final = np.uint64(12)
_U63: Final = np.uint64(63)


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


_count_ones: Any = intrinsic(_counter)
_load_float: Any = intrinsic(_float_loader)


@helper
def _spread_validity(fields: Any, valid: Any, start: int, count: int) -> Any:
    """Write a block's validity bits as words of all ones or zeros; return those of its keys."""
    skipped = start & 7
    if fields[VALIDITY] == 0:
        valid[: skipped + count] = ~U0
        return valid[skipped : skipped + count]
    # Byte by byte: the eight shifts of one byte are one vector operation.
    for byte in range((skipped + count + 7) >> 3):
        bits = load8(fields[VALIDITY], (start >> 3) + byte)
        for bit in range(8):
            valid[8 * byte + bit] = U0 - ((bits >> np.uint64(bit)) & U1)
    return valid[skipped : skipped + count]


@helper
def _cut_key(planes: Any, key: int, address: int, length: Integer, floor: int) -> None:
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
def _cut_slices(
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
def _cut_views(planes: Any, places: Any, values: int, buffers: int, valid: Any, start: int) -> None:
    """Cut the keys behind 16-byte views; a view under a null may be garbage and is not followed."""
    first, second, third, tails, lengths, _ = planes
    for key in range(valid.size):
        low, high = load64(values, 16 * (start + key)), load64(values, 16 * (start + key) + 8)
        first[key], second[key], third[key] = low, high, high
        lengths[key] = low & LOW32 & valid[key]
    num_long = 0
    for key in range(valid.size):
        low, high, length = first[key], second[key], lengths[key]
        word = (low >> U32) | (high << U32)
        rest = word if length < U8 else high >> U32
        first[key] = word
        tails[key] = rest & ((U1 << ((length & U7) << U3)) - U1)
        # Longer keys, not inline, are noted without a branch and followed afterwards.
        places[_BLOCK + num_long] = key
        num_long += 1 if length > _INLINE else 0
    for number in range(num_long):
        key = places[_BLOCK + number]
        buffer = load64(buffers, 8 * np.int64(third[key] & LOW32))
        places[key] = np.int64(buffer + (third[key] >> U32))
        _cut_key(planes, key, places[key], np.int64(lengths[key]), 0)


@helper
def _read_integers(words: Any, kind: int, width: int, values: int, start: int, count: int) -> None:
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


@helper
def _hash_block(fields: Any, planes: Any, places: Any, valid: Any, start: int) -> None:
    """Hash the values from number `start` of the buffers into the last plane."""
    count = valid.size
    kind, width, values = fields[KIND], fields[WIDTH], fields[VALUES]
    first, _, _, tails, lengths, hashes = planes
    if kind == arrow.VIEWS:
        _cut_views(planes, places, values, fields[BUFFERS], valid, start)
    elif kind in (arrow.OFFSETS_32, arrow.OFFSETS_64, arrow.FIXED_BYTES):
        _cut_slices(planes, places[:count], kind, width, values, fields[OFFSETS], start)
    else:
        _read_integers(first, kind, width, values, start, count)
        lengths[:], tails[:] = U8, U0
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
    _read_integers(words, fields[KIND], fields[WIDTH], fields[VALUES], start, out.size)
    for key in range(out.size):
        # The entry after the last is that of null.
        code = np.int64(min(words[key] | ~valid[key], size))
        out[key] = load64(table, 8 * code) if wide else load32(table, 4 * code)


@compiled
def encode_rows(columns: Any, begin: int, out: Any) -> None:
    """Write the table rows of all columns, shape (columns, NUM_FIELDS), from row `begin` of each.

    The rows of `out`, shape (n, columns), are written whole: a store per column would cost more
    than its hash.
    """
    num_columns = columns.shape[0]
    table = np.zeros((6, _BLOCK), np.uint64)
    planes = (table[0], table[1], table[2], table[3], table[4], table[5])
    places, valid = np.zeros(2 * _BLOCK, np.int64), np.empty(_BLOCK + 16, np.uint64)
    tile, flat = np.empty((num_columns, _BLOCK), np.int32), out.reshape(out.size)
    for done in range(0, out.shape[0], _BLOCK):
        count = min(_BLOCK, out.shape[0] - done)
        for column in range(num_columns):
            fields, target = columns[column], tile[column, :count]
            if num_columns == 1:
                target = flat[done : done + count]
            start = fields[FIRST] + begin + done
            present = _spread_validity(fields, valid, start, count)
            if fields[KIND] == arrow.NULLS:
                target[:] = NULL_ROW
            elif fields[KIND] == arrow.NUMBERS:
                _place_numbers(fields, start, target)
            elif fields[TABLE] != 0:
                _gather(fields, table[0], present, start, False, target)
            else:
                _hash_block(fields, planes, places, present, start)
                _mark_block(fields, table[5], table[4], present)
                _place_block(fields, table[5], target)
        if num_columns > 1:
            for key in range(count):
                for column in range(num_columns):
                    out[done + key, column] = tile[column, key]


@compiled
def hash_rows(fields: Any, begin: int, as_tokens: bool, out: Any) -> None:
    """Write the hashes of one column, or its tokens, from row `begin`; null is 0."""
    table = np.zeros((6, _BLOCK), np.uint64)
    planes = (table[0], table[1], table[2], table[3], table[4], table[5])
    places, valid = np.zeros(2 * _BLOCK, np.int64), np.empty(_BLOCK + 16, np.uint64)
    for done in range(0, out.size, _BLOCK):
        target = out[done : done + _BLOCK]
        start = fields[FIRST] + begin + done
        present = _spread_validity(fields, valid, start, target.size)
        if fields[TABLE] != 0:
            _gather(fields, table[0], present, start, True, target)
            continue
        _hash_block(fields, planes, places, present, start)
        if as_tokens:
            _mark_block(fields, table[5], table[4], present)
        for key in range(target.size):
            target[key] = table[5, key] & present[key]


@compiled
def place_rows(fields: Any, tokens: Any, out: Any) -> None:
    """Write the table row of each token."""
    for done in range(0, out.size, _BLOCK):
        _place_block(fields, tokens[done : done + _BLOCK], out[done : done + _BLOCK])


@compiled
def fill_slots(tokens: Any, first_row: int, slots: Any) -> None:
    """Fill an open-addressing table, shape (a power of two, 2), with tokens and their rows."""
    mask = np.uint64(slots.shape[0] - 1)
    for number in range(tokens.size):
        slot = tokens[number] & mask
        while slots[slot, 0] != U0:
            slot = (slot + U1) & mask
        slots[slot, 0], slots[slot, 1] = tokens[number], np.uint64(first_row + number)
