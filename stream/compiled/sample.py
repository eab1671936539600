"""One small call of every kernel: what it compiles is what a worker calls."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from stream.compiled.json_scan import scan
from stream.compiled.text_hash import hash_spans
from stream.json_columns import JsonColumns


def run_sample() -> None:
    """Call every kernel once."""
    found = JsonColumns({"a": "id"}, choices={}).read([b'{"a":1}'])
    found.hashes("a", np.array([0]))


def is_cached() -> bool:
    """Whether the machine code of every kernel is at hand."""
    columns = JsonColumns({"a": "id"}, choices={})
    return _has(scan, columns.arguments([b'{"a":1}'])) and _has(
        hash_spans, (np.frombuffer(b"a", np.uint8), np.zeros(1, np.int64), np.zeros(1, np.uint64))
    )


def _has(kernel: Any, arguments: tuple[object, ...]) -> bool:
    given = tuple(numba.typeof(argument) for argument in arguments)  # type: ignore[no-untyped-call]
    omitted: Any = numba.types.Omitted
    left_out = tuple(omitted(default) for default in kernel.py_func.__defaults__ or ())
    return kernel._cache.load_overload(given + left_out, kernel.targetctx) is not None  # noqa: SLF001
