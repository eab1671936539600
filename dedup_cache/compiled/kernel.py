"""How kernels are compiled, and where the machine code is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba.core.compiler_lock import global_compiler_lock

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    # Kernels allocate nothing, so nothing has to be counted: counting took half of the time.
    "_nrt": False,
}

_FLAGS = 0x1 | 0x2 | 0x100 | 0x400
"""numpy's: contiguous in C's or in Fortran's order, aligned, writeable."""


class Kernel:
    """Machine code for every set of argument types that it was called with; numba finds it at the first call of each.

    numba's own look at the arguments takes 0.001 ms, but 0.6 ms where tables of records stand within a tuple. Then
    another look is taken, which takes 0.01 ms.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._holds_tables: bool | None = None
        self._defaults = function.__defaults__ or ()
        self._num_arguments = function.__code__.co_argcount
        self._entries: dict[tuple[object, ...], Callable[..., Any]] = {}
        try:
            self._dispatcher: Any = numba.njit(cache=True, **_OPTIONS)(function)
        except RuntimeError:  # numba found no place for its cache
            self._dispatcher = numba.njit(**_OPTIONS)(function)

    def __call__(self, *arguments: Any) -> Any:
        if self._holds_tables is None:
            self._holds_tables = any(isinstance(one, tuple) and _has_table(one) for one in arguments)
        if not self._holds_tables:
            return self._dispatcher(*arguments)
        given = arguments
        arguments += self._missing(given)
        forms: list[object] = []
        _add_forms(forms, arguments)
        entry = self._entries.get(tuple(forms))
        if entry is not None:
            return entry(*arguments)
        result = self._dispatcher(*given)
        types = self._types(given)
        if types in self._dispatcher.overloads:  # else it was called through a conversion
            self._entries[tuple(forms)] = self._dispatcher.overloads[types].entry_point
        return result

    def is_cached(self, arguments: tuple[object, ...]) -> bool:
        """Whether machine code for such arguments is at hand."""
        cache = self._dispatcher._cache  # noqa: SLF001
        # numba takes it by itself where it compiles, not where it only looks, and its registries bear one thread.
        with global_compiler_lock:
            return cache.load_overload(self._types(arguments), self._dispatcher.targetctx) is not None

    def _missing(self, given: tuple[object, ...]) -> tuple[object, ...]:
        missing = self._num_arguments - len(given)
        return self._defaults[-missing:] if missing else ()

    def _types(self, given: tuple[object, ...]) -> tuple[Any, ...]:
        """Of a default the value is a part of the type, so that a kernel can say by one on what else it depends."""
        types = [numba.typeof(argument) for argument in given]  # type: ignore[no-untyped-call]
        types += [numba.types.Omitted(value) for value in self._missing(given)]  # type: ignore[no-untyped-call]
        return tuple(types)


def _has_table(arguments: tuple[object, ...]) -> bool:
    return any(isinstance(one, np.ndarray) and one.dtype.fields is not None for one in arguments)


def _add_forms(forms: list[object], arguments: tuple[object, ...]) -> None:
    """All that machine code depends on: of an array its dtype, dimensions and the flags that numba looks at."""
    for argument in arguments:
        kind = type(argument)
        forms.append(kind)
        if kind is np.ndarray:
            array: Any = argument
            forms += (array.dtype, array.ndim, array.flags.num & _FLAGS)
        elif issubclass(kind, tuple):
            _add_forms(forms, argument)  # type: ignore[arg-type]


def kernel(function: Function) -> Function:
    """Compile at the first call, or load what an earlier process compiled for this machine and this source.

    Arrays come in and go out as arguments, by position. Where no folder can be written (see NUMBA_CACHE_DIR) it is
    compiled in every process.
    """
    return Kernel(function)  # type: ignore[return-value]


def part(function: Function) -> Function:
    """A piece of a kernel, compiled into it."""
    compiled: Function = numba.njit(forceinline=True, **_OPTIONS)(function)
    return compiled


def piece(function: Function) -> Function:
    """A part that is called: for what is large or rare, and would be compiled again at every place."""
    compiled: Function = numba.njit(**_OPTIONS)(function)
    return compiled
