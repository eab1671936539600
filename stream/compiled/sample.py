"""One small call of every kernel: what it compiles is what a worker calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from dedup_cache.compiled import arrange, distinct, rows, table
from stream.compiled import event_log, id_lists, session_place
from stream.compiled.json_scan import scan
from stream.compiled.text_hash import hash_spans
from stream.json_columns import JsonColumns


def run_samples() -> None:
    """Call every kernel in every form."""
    for kernel, arguments in _samples():
        kernel(*arguments)


def is_cached() -> bool:
    """Whether the machine code of every kernel is at hand."""
    return all(kernel.is_cached(arguments) for kernel, arguments in _samples())


def _samples() -> list[tuple[Any, tuple[object, ...]]]:
    record = JsonColumns({"a": "id"}, choices={}).arguments([b'{"a":1}'])
    text = (np.frombuffer(bytearray(b"a"), np.uint8), np.zeros(1, np.int64), np.zeros(1, np.uint64))
    ours = [(scan, record), (hash_spans, text), *session_place.samples(), *event_log.samples()]
    return [*ours, *id_lists.samples(), *rows.samples(), *distinct.samples(), *arrange.samples(), *table.samples()]
