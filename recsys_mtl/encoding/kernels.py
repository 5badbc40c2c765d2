"""Numba kernels that turn Arrow buffers into hashes and buckets without holding the GIL.

Keys are handled in blocks. A first pass cuts every key of a block into whole 8-byte words and a
zero-padded rest; the hash then runs over these planes without branches, which LLVM vectorises.
Keys of 32 bytes and more are rare and hashed one at a time. Buffers come as addresses, so each kernel
is compiled once for all layouts, and no load reaches outside a buffer: the rest of a key is read
backwards from its end.

All kernels live in this file because numba's cache looks only at the file of the function called.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from recsys_mtl.compiled import compiled
from recsys_mtl.encoding import arrow

XXH64: Final = 0
MURMUR3: Final = 1

NULL_ROW: Final = 0
UNKNOWN_ROW: Final = 1
EMPTY_ROW: Final = 2
NUM_RESERVED: Final = 3

_BLOCK: Final = 256
_MILLISECONDS_PER_DAY: Final = 86_400_000

# numba promotes a mix of signed and unsigned 64-bit integers to float64: every constant that meets
# a hash is unsigned.
_U0, _U1, _U2, _U3, _U4 = (np.uint64(number) for number in range(5))
_U7, _U8, _U16, _U32, _U56 = (np.uint64(number) for number in (7, 8, 16, 32, 56))
_BYTE: Final = np.uint64(0xFF)
_LOW32: Final = np.uint64(0xFFFFFFFF)
_INLINE: Final = np.uint64(12)

_X1: Final = np.uint64(0x9E3779B185EBCA87)
_X2: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_X3: Final = np.uint64(0x165667B19E3779F9)
_X4: Final = np.uint64(0x85EBCA77C2B2AE63)
_X5: Final = np.uint64(0x27D4EB2F165667C5)

_M1: Final = np.uint64(0xCC9E2D51)
_M2: Final = np.uint64(0x1B873593)
_M3: Final = np.uint64(0xE6546B64)
_M4: Final = np.uint64(0x85EBCA6B)
_M5: Final = np.uint64(0xC2B2AE35)

_Integer = int | np.int64
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _helper(function: _Function) -> _Function:
    """Compile a function that only kernels call; it is cached as a part of them."""
    return cast(_Function, numba.njit(nogil=True, error_model="numpy")(function))


def _loader(kind: types.Integer) -> Any:
    """Make a function that reads an unaligned little-endian word at a base address plus an offset."""

    def load(_context: Any, _base: Any, _offset: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            byte, narrow, wide = map(context.get_value_type, (types.uint8, kind, types.uint64))
            # One pointer plus an offset, not one integer address per value, lets LLVM see a stride.
            base = builder.inttoptr(arguments[0], byte.as_pointer())
            place = builder.bitcast(builder.gep(base, [arguments[1]]), narrow.as_pointer())
            word = builder.load(place, align=1)
            return builder.zext(word, wide)

        return types.uint64(types.int64, types.int64), generate

    return intrinsic(load)


_load8, _load16 = _loader(types.uint8), _loader(types.uint16)
_load32, _load64 = _loader(types.uint32), _loader(types.uint64)


@_helper
def _is_valid(validity: int, row: int) -> Any:
    """Tell whether a row is not null; address 0 stands for a column without nulls."""
    return validity == 0 or (_load8(validity, row >> 3) >> np.uint64(row & 7)) & _U1 != _U0


@_helper
def _rotate(word: np.uint64, left: int, bits: int = 64) -> np.uint64:
    return (word << np.uint64(left)) | (word >> np.uint64(bits - left))


@_helper
def _xx_round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(lane + word * _X2, 31) * _X1


@_helper
def _xx_word(state: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(state ^ _xx_round(_U0, word), 27) * _X1 + _X4


@_helper
def _xx_half(state: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(state ^ (word * _X1), 23) * _X2 + _X3


@_helper
def _xx_byte(state: np.uint64, byte: np.uint64) -> np.uint64:
    return _rotate(state ^ (byte * _X5), 11) * _X1


@_helper
def _xx_finish(state: np.uint64) -> np.uint64:
    state = (state ^ (state >> np.uint64(33))) * _X2
    state = (state ^ (state >> np.uint64(29))) * _X3
    return state ^ (state >> _U32)


@_helper
def _xx_stripes(address: int, length: _Integer, seed: np.uint64) -> np.uint64:
    """Hash the whole 32-byte stripes of a long key in four lanes and merge them."""
    first, second = seed + _X1 + _X2, seed + _X2
    third, fourth = seed, seed - _X1
    for place in range(0, length - 31, 32):
        first = _xx_round(first, _load64(address, place))
        second = _xx_round(second, _load64(address, place + 8))
        third = _xx_round(third, _load64(address, place + 16))
        fourth = _xx_round(fourth, _load64(address, place + 24))
    state = _rotate(first, 1) + _rotate(second, 7) + _rotate(third, 12) + _rotate(fourth, 18)
    for lane in (first, second, third, fourth):
        state = (state ^ _xx_round(_U0, lane)) * _X1 + _X4
    return state


@compiled
def xxh64_key(address: int, length: _Integer, seed: np.uint64) -> np.uint64:
    """Hash one key of any length with XXH64."""
    place: _Integer = 0
    state = seed + _X5
    if length >= 32:
        state = _xx_stripes(address, length, seed)
        place = length & ~31
    state += np.uint64(length)
    while place + 8 <= length:
        state = _xx_word(state, _load64(address, place))
        place += 8
    if place + 4 <= length:
        state = _xx_half(state, _load32(address, place))
        place += 4
    while place < length:
        state = _xx_byte(state, _load8(address, place))
        place += 1
    return _xx_finish(state)


@_helper
def _murmur_mix(word: np.uint64) -> np.uint64:
    return (_rotate((word * _M1) & _LOW32, 15, 32) * _M2) & _LOW32


@_helper
def _murmur_half(state: np.uint64, word: np.uint64) -> np.uint64:
    return (_rotate(state ^ _murmur_mix(word), 13, 32) * np.uint64(5) + _M3) & _LOW32


@_helper
def _murmur_finish(state: np.uint64) -> np.uint64:
    state = ((state ^ (state >> _U16)) * _M4) & _LOW32
    state = ((state ^ (state >> np.uint64(13))) * _M5) & _LOW32
    return state ^ (state >> _U16)


@compiled
def murmur3_key(address: int, length: _Integer, seed: np.uint64) -> np.uint64:
    """Hash one key of any length with MurmurHash3_x86_32."""
    state = seed & _LOW32
    whole = length & ~3
    for place in range(0, whole, 4):
        state = _murmur_half(state, _load32(address, place))
    rest = _U0
    for place in range(whole, length):
        rest |= _load8(address, place) << np.uint64(8 * (place - whole))
    # A rest of zero mixes to zero, so keys of whole words need no branch.
    return _murmur_finish(state ^ _murmur_mix(rest) ^ (np.uint64(length) & _LOW32))


@_helper
def _xx_planes(planes: Any, count: int, seed: np.uint64, most: np.uint64, rests: np.uint64) -> None:
    """Hash a block of keys shorter than 32 bytes with XXH64."""
    first, second, third, tails, lengths, hashes = planes
    for key in range(count):
        hashes[key] = seed + _X5 + lengths[key]
    for depth, words in enumerate((first, second, third)):
        reach = np.uint64(8 * depth + 8)
        if most >= reach:
            for key in range(count):
                state = hashes[key]
                step = _xx_word(state, words[key])
                hashes[key] = step if lengths[key] >= reach else state
    if rests != _U0:
        for key in range(count):
            state, rest, length = hashes[key], tails[key], lengths[key]
            step = _xx_half(state, rest & _LOW32)
            has_half = (length & _U4) != _U0
            state = step if has_half else state
            rest = rest >> _U32 if has_half else rest
            for place in range(3):
                step = _xx_byte(state, (rest >> np.uint64(8 * place)) & _BYTE)
                state = step if (length & _U3) > np.uint64(place) else state
            hashes[key] = state
    for key in range(count):
        hashes[key] = _xx_finish(hashes[key])


@_helper
def _murmur_planes(planes: Any, count: int, seed: np.uint64, most: np.uint64) -> None:
    """Hash a block of keys shorter than 32 bytes with MurmurHash3_x86_32."""
    first, second, third, tails, lengths, hashes = planes
    for key in range(count):
        hashes[key] = seed & _LOW32
    for depth, words in enumerate((first, second, third)):
        reach = np.uint64(8 * depth + 8)
        if most >= reach:
            for key in range(count):
                state, word = hashes[key], words[key]
                step = _murmur_half(_murmur_half(state, word & _LOW32), word >> _U32)
                hashes[key] = step if lengths[key] >= reach else state
    for key in range(count):
        state, rest, length = hashes[key], tails[key], lengths[key]
        has_half = (length & _U4) != _U0
        step = _murmur_half(state, rest & _LOW32)
        state = step if has_half else state
        rest = rest >> _U32 if has_half else rest
        hashes[key] = _murmur_finish(state ^ _murmur_mix(rest) ^ length)


@_helper
def _cut_key(planes: Any, key: int, address: int, length: _Integer, floor: int) -> None:
    """Cut a key into up to three whole words and a zero-padded rest.

    The rest is the end of the word that ends with the key; `floor` is where its buffer begins.
    """
    first, second, third, tails, lengths, _ = planes
    lengths[key] = np.uint64(length)
    final = address + length - 8
    if final >= floor:
        first[key] = _load64(address if length >= 8 else final, 0)
        second[key] = _load64(address + 8 if length >= 16 else final, 0)
        third[key] = _load64(address + 16 if length >= 24 else final, 0)
        # Two shifts: one by 64, for an empty rest, is undefined.
        tails[key] = (_load64(final, 0) >> _U8) >> (_U56 - ((np.uint64(length) & _U7) << _U3))
    else:
        rest = _U0
        for place in range(length):
            rest |= _load8(address, place) << np.uint64(8 * place)
        tails[key] = rest


@_helper
def _cut_slices(
    planes: Any, places: Any, kind: int, width: int, values: int, offsets: int, start: int
) -> None:
    """Cut the keys between consecutive offsets, or of a fixed width."""
    for key in range(places.size):
        row = start + key
        if kind == arrow.OFFSETS_32:
            begin, end = _load32(offsets, 4 * row), _load32(offsets, 4 * row + 4)
        elif kind == arrow.OFFSETS_64:
            begin, end = _load64(offsets, 8 * row), _load64(offsets, 8 * row + 8)
        else:
            begin, end = np.uint64(width * row), np.uint64(width * row + width)
        places[key] = values + np.int64(begin)
        _cut_key(planes, key, places[key], np.int64(end - begin), values)


@_helper
def _cut_views(
    planes: Any, places: Any, values: int, buffers: Any, validity: int, start: int
) -> None:
    """Cut the keys behind 16-byte views; a view under a null may be garbage and is not followed."""
    first, _, _, tails, lengths, _ = planes
    for key in range(places.size):
        row = start + key
        low, high = _load64(values, 16 * row), _load64(values, 16 * row + 8)
        low = low if _is_valid(validity, row) else _U0
        length = low & _LOW32
        # A branch, because the ids of one column mostly fall on one side of the limit.
        if length <= _INLINE:
            word = (low >> _U32) | (high << _U32)
            rest = word if length < _U8 else high >> _U32
            first[key], lengths[key] = word, length
            tails[key] = rest & ((_U1 << ((length & _U7) << _U3)) - _U1)
        else:
            places[key] = buffers[np.int64(high & _LOW32)] + np.int64(high >> _U32)
            _cut_key(planes, key, places[key], np.int64(length), 0)


@_helper
def _read_integers(words: Any, kind: int, width: int, values: int, start: int, count: int) -> None:
    """Widen integers, booleans and dates to 64 bits."""
    sign = _U0 if kind == arrow.UNSIGNED or width == 8 else _U1 << np.uint64(8 * width - 1)
    for key in range(count):
        row = start + key
        if kind == arrow.BITS:
            words[key] = (_load8(values, row >> 3) >> np.uint64(row & 7)) & _U1
        elif width == 8:
            words[key] = _load64(values, 8 * row)
        elif width == 4:
            words[key] = (_load32(values, 4 * row) ^ sign) - sign
        elif width == 2:
            words[key] = (_load16(values, 2 * row) ^ sign) - sign
        else:
            words[key] = (_load8(values, row) ^ sign) - sign
    if kind == arrow.MILLISECONDS:
        for key in range(count):
            words[key] = np.uint64(np.int64(words[key]) // _MILLISECONDS_PER_DAY)


@_helper
def _store(hashes: Any, lengths: Any, validity: int, start: int, mapping: Any, out: Any) -> None:
    """Write the codes of one block (or its plain hashes), with null and empty apart."""
    num_buckets, half = mapping
    for key in range(out.size):
        code = hashes[key]
        if num_buckets != _U0:
            code = np.uint64(NUM_RESERVED) + (((code >> half) * num_buckets) >> _U32)
            code = np.uint64(EMPTY_ROW) if lengths[key] == _U0 else code
        out[key] = np.int64(code)
    if validity != 0:
        for key in range(out.size):
            out[key] = out[key] if _is_valid(validity, start + key) else NULL_ROW


@compiled
def hash_rows(
    layout: Any, buffers: Any, begin: int, seed: Any, num_buckets: Any, algorithm: int, out: Any
) -> None:
    """Hash `out.size` rows of a viewed column from row `begin` into codes; for 0 buckets, hashes."""
    kind, width, first, validity, values, offsets = layout
    table = np.zeros((6, _BLOCK), np.uint64)
    planes = (table[0], table[1], table[2], table[3], table[4], table[5])
    lengths, hashes = table[4], table[5]
    places = np.zeros(_BLOCK, np.int64)
    mapping = (num_buckets, _U32 if algorithm == XXH64 else _U0)
    for done in range(0, out.size, _BLOCK):
        start, count = first + begin + done, min(_BLOCK, out.size - done)
        if kind == arrow.VIEWS:
            _cut_views(planes, places[:count], values, buffers, validity, start)
        elif kind in (arrow.OFFSETS_32, arrow.OFFSETS_64, arrow.FIXED_BYTES):
            _cut_slices(planes, places[:count], kind, width, values, offsets, start)
        else:
            _read_integers(table[0], kind, width, values, start, count)
            lengths[:], table[3][:] = _U8, _U0
        most, rests = _U0, _U0
        for key in range(count):
            most = max(most, lengths[key])
            rests |= lengths[key] & _U7
        if algorithm == XXH64:
            _xx_planes(planes, count, seed, most, rests)
        else:
            _murmur_planes(planes, count, seed, most)
        if most >= _U32:
            _hash_long_keys(planes, places, count, seed, algorithm)
        _store(hashes, lengths, validity, start, mapping, out[done : done + count])


@_helper
def _hash_long_keys(planes: Any, places: Any, count: int, seed: np.uint64, algorithm: int) -> None:
    lengths, hashes = planes[4], planes[5]
    for key in range(count):
        length = np.int64(lengths[key])
        if length >= 32:
            if algorithm == XXH64:
                hashes[key] = xxh64_key(places[key], length, seed)
            else:
                hashes[key] = murmur3_key(places[key], length, seed)


@compiled
def gather_rows(layout: Any, table: Any, begin: int, out: Any) -> None:
    """Write the table's entry per row; a null row's code is not looked at."""
    kind, width, first, validity, codes, _ = layout
    words = np.zeros(_BLOCK, np.uint64)
    for done in range(0, out.size, _BLOCK):
        start, count = first + begin + done, min(_BLOCK, out.size - done)
        _read_integers(words, kind, width, codes, start, count)
        for key in range(count):
            usable = _is_valid(validity, start + key) and words[key] < np.uint64(table.size)
            out[done + key] = table[np.int64(words[key])] if usable else NULL_ROW
