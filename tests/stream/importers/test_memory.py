"""Importing takes no more memory for four times the rows, whatever the format."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream.importers.ordering import RowSorter
from tests.stream.importers import made_files as made
from tests.stream.importers.test_mapped import configured

ROWS = 600
TIMES = 4
SLACK = 100_000
"""Bytes: what counts as none; each of the rows that come on top would be a Row of 200 and more."""


def repeated(sample: str, *, header: bool = False) -> Callable[[int], str]:
    lines = sample.splitlines(keepends=True)
    head, body = (lines[:1], lines[1:]) if header else ([], lines)
    return lambda rows: "".join(head) + "".join(body[i % len(body)] for i in range(rows))


FORMATS = {
    "mind": repeated(made.BEHAVIORS),
    "rees46": repeated(made.REES46, header=True),
    "retailrocket": repeated(made.RETAILROCKET, header=True),
    "criteo": repeated(made.CRITEO),
    "movielens": repeated(made.RATINGS_CSV, header=True),
    "csv": lambda rows: "k,i,t\n" + "".join(f"u{i % 9},a{i},{1_420_070_400 + i}\n" for i in range(rows)),
    "jsonl": lambda rows: "".join(
        json.dumps({"k": f"u{i % 9}", "i": f"a{i}", "t": 1_420_070_400 + i}) + "\n" for i in range(rows)
    ),
}


@pytest.mark.parametrize("name", [*FORMATS, "parquet"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.importers.files.CHUNK", 4_096)
    monkeypatch.setattr("stream.importers.ordering.READ_BYTES", 32_768)
    monkeypatch.setattr("stream.importers.parquet.BATCH_ROWS", 64)
    monkeypatch.setattr("stream.importers.rowwise.RowSorter", partial(RowSorter, run_bytes=120_000))
    files = {rows: made_file(name, tmp_path, rows=rows) for rows in (ROWS, TIMES * ROWS)}
    peak(name, files[ROWS])  # what is imported and remembered once
    few, many = (peak(name, path) for path in files.values())
    assert many < few + SLACK


def made_file(name: str, folder: Path, *, rows: int) -> Path:
    if name != "parquet":
        return made.written(folder, f"{rows}.{name}", FORMATS[name](rows))
    table = pa.table({"k": ["u"] * rows, "i": [f"a{i}" for i in range(rows)], "t": [1_420_070_400] * rows})
    pq.write_table(table, path := folder / f"{rows}.parquet", row_group_size=100)
    return path


def peak(name: str, path: Path) -> int:
    """Most bytes of Python objects at a time, beyond those before it."""
    mapped = name in ("csv", "jsonl", "parquet")
    config = configured(file=name, key="k", item="i", time="t", time_format="s") if mapped else made.config_of(name)
    tracemalloc.start()
    try:
        count = sum(1 for _ in made.stream("shop" if mapped else name, path, config=config))
        assert count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
