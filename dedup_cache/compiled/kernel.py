"""How kernels are compiled, and where the machine code is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    # Kernels allocate nothing, so nothing has to be counted: counting took half of the time.
    "_nrt": False,
}


def kernel(function: Function) -> Function:
    """Compile at the first call, or load what an earlier process compiled for this machine and this source.

    Arrays come in and go out as arguments. Where no folder can be written (see NUMBA_CACHE_DIR) it is compiled in
    every process.
    """
    try:
        compiled: Function = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # numba found no place for its cache
        compiled = numba.njit(**_OPTIONS)(function)
    return compiled


def part(function: Function) -> Function:
    """A piece of a kernel, compiled into it."""
    compiled: Function = numba.njit(forceinline=True, **_OPTIONS)(function)
    return compiled


def piece(function: Function) -> Function:
    """A part that is called: for what is large or rare, and would be compiled again at every place."""
    compiled: Function = numba.njit(**_OPTIONS)(function)
    return compiled
