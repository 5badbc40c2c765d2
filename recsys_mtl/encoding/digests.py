"""XXH64 and MurmurHash3 in numba: one key at a time, and blocks of short keys without branches.

A block of keys comes as planes, one array per 8-byte word of the keys; the hashes run over the planes
so that LLVM vectorises them. See `kernels` for what fills the planes, `docs/hashing.md` for the
definition, which never changes: numba's cache looks at the file of the kernel called, not at this one.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped] # it has no types
from numba.core import types
from numba.extending import intrinsic

from recsys_mtl.compiled import compiled

# numba promotes a mix of signed and unsigned 64-bit integers to float64: every constant that meets
# a hash is unsigned.
U0, U1, U2, U3, U4 = (np.uint64(number) for number in range(5))
U7, U8, U16, U32, U56 = (np.uint64(number) for number in (7, 8, 16, 32, 56))
_BYTE: Final = np.uint64(0xFF)
LOW32: Final = np.uint64(0xFFFFFFFF)

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

Integer = int | np.int64
_Function = TypeVar("_Function", bound=Callable[..., Any])


def helper(function: _Function) -> _Function:
    """Compile a function that only kernels call; it is cached as a part of them.

    It neither makes arrays nor returns any: it does not count references to those it is given, of
    which a block of keys would otherwise take dozens, each an atomic operation.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
    return cast(_Function, numba.njit(**options)(function))


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


def _fetcher(_context: Any, _base: Any, _offset: Any) -> Any:
    """Make a function that has the line at a base address plus an offset brought near: no read.

    Any address will do, also one outside a buffer. The line goes to the second-level cache: the first
    is full of planes.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = context.get_value_type(types.uint8).as_pointer()
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        order = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        place = builder.gep(builder.inttoptr(arguments[0], pointer), [arguments[1]])
        to_read, second_level, data = word(0), word(2), word(1)
        builder.call(order, [place, to_read, second_level, data])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


fetch: Any = intrinsic(_fetcher)
load8, load16 = _loader(types.uint8), _loader(types.uint16)
load32, load64 = _loader(types.uint32), _loader(types.uint64)


@helper
def _rotate(word: np.uint64, left: int, bits: int = 64) -> np.uint64:
    return (word << np.uint64(left)) | (word >> np.uint64(bits - left))


@helper
def _xx_round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(lane + word * _X2, 31) * _X1


@helper
def _xx_word(state: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(state ^ _xx_round(U0, word), 27) * _X1 + _X4


@helper
def _xx_half(state: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(state ^ (word * _X1), 23) * _X2 + _X3


@helper
def _xx_byte(state: np.uint64, byte: np.uint64) -> np.uint64:
    return _rotate(state ^ (byte * _X5), 11) * _X1


@helper
def _xx_finish(state: np.uint64) -> np.uint64:
    state = (state ^ (state >> np.uint64(33))) * _X2
    state = (state ^ (state >> np.uint64(29))) * _X3
    return state ^ (state >> U32)


@helper
def _xx_stripes(address: int, length: Integer, seed: np.uint64) -> np.uint64:
    """Hash the whole 32-byte stripes of a long key in four lanes and merge them."""
    first, second = seed + _X1 + _X2, seed + _X2
    third, fourth = seed, seed - _X1
    for place in range(0, length - 31, 32):
        first = _xx_round(first, load64(address, place))
        second = _xx_round(second, load64(address, place + 8))
        third = _xx_round(third, load64(address, place + 16))
        fourth = _xx_round(fourth, load64(address, place + 24))
    state = _rotate(first, 1) + _rotate(second, 7) + _rotate(third, 12) + _rotate(fourth, 18)
    for lane in (first, second, third, fourth):
        state = (state ^ _xx_round(U0, lane)) * _X1 + _X4
    return state


@compiled
def xxh64_key(address: int, length: Integer, seed: np.uint64) -> np.uint64:
    """Hash one key of any length with XXH64."""
    place: Integer = 0
    state = seed + _X5
    if length >= 32:
        state = _xx_stripes(address, length, seed)
        place = length & ~31
    state += np.uint64(length)
    while place + 8 <= length:
        state = _xx_word(state, load64(address, place))
        place += 8
    if place + 4 <= length:
        state = _xx_half(state, load32(address, place))
        place += 4
    while place < length:
        state = _xx_byte(state, load8(address, place))
        place += 1
    return _xx_finish(state)


@helper
def _murmur_mix(word: np.uint64) -> np.uint64:
    return (_rotate((word * _M1) & LOW32, 15, 32) * _M2) & LOW32


@helper
def _murmur_half(state: np.uint64, word: np.uint64) -> np.uint64:
    return (_rotate(state ^ _murmur_mix(word), 13, 32) * np.uint64(5) + _M3) & LOW32


@helper
def _murmur_finish(state: np.uint64) -> np.uint64:
    state = ((state ^ (state >> U16)) * _M4) & LOW32
    state = ((state ^ (state >> np.uint64(13))) * _M5) & LOW32
    return state ^ (state >> U16)


@compiled
def murmur3_key(address: int, length: Integer, seed: np.uint64) -> np.uint64:
    """Hash one key of any length with MurmurHash3_x86_32."""
    state = seed & LOW32
    whole = length & ~3
    for place in range(0, whole, 4):
        state = _murmur_half(state, load32(address, place))
    rest = U0
    for place in range(whole, length):
        rest |= load8(address, place) << np.uint64(8 * (place - whole))
    # A rest of zero mixes to zero, so keys of whole words need no branch.
    return _murmur_finish(state ^ _murmur_mix(rest) ^ (np.uint64(length) & LOW32))


@helper
def xx_planes(planes: Any, count: int, seed: np.uint64, most: np.uint64, rests: np.uint64) -> None:
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
    if rests != U0:
        for key in range(count):
            state, rest, length = hashes[key], tails[key], lengths[key]
            step = _xx_half(state, rest & LOW32)
            has_half = (length & U4) != U0
            state = step if has_half else state
            rest = rest >> U32 if has_half else rest
            for place in range(3):
                step = _xx_byte(state, (rest >> np.uint64(8 * place)) & _BYTE)
                state = step if (length & U3) > np.uint64(place) else state
            hashes[key] = state
    for key in range(count):
        hashes[key] = _xx_finish(hashes[key])


@helper
def xx_words(planes: Any, count: int, seed: np.uint64) -> None:
    """Hash a block of keys of 8 bytes, those of the first plane, with XXH64."""
    words, hashes = planes[0], planes[5]
    for key in range(count):
        hashes[key] = _xx_finish(_xx_word(seed + _X5 + U8, words[key]))


@helper
def murmur_planes(planes: Any, count: int, seed: np.uint64, most: np.uint64) -> None:
    """Hash a block of keys shorter than 32 bytes with MurmurHash3_x86_32."""
    first, second, third, tails, lengths, hashes = planes
    for key in range(count):
        hashes[key] = seed & LOW32
    for depth, words in enumerate((first, second, third)):
        reach = np.uint64(8 * depth + 8)
        if most >= reach:
            for key in range(count):
                state, word = hashes[key], words[key]
                step = _murmur_half(_murmur_half(state, word & LOW32), word >> U32)
                hashes[key] = step if lengths[key] >= reach else state
    for key in range(count):
        state, rest, length = hashes[key], tails[key], lengths[key]
        has_half = (length & U4) != U0
        step = _murmur_half(state, rest & LOW32)
        state = step if has_half else state
        rest = rest >> U32 if has_half else rest
        hashes[key] = _murmur_finish(state ^ _murmur_mix(rest) ^ length)
