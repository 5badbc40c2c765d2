"""Compile a numba kernel: free of the GIL, kept on disk where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Return the function compiled on its first call.

    The compiled code is cached beside the file or in the user's cache folder. Where neither can be
    written (a read-only install without a home), every process compiles anew.
    """
    try:
        made = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # numba found no folder for its cache
        made = numba.njit(nogil=True, error_model="numpy")(function)
    return cast("Function", made)
