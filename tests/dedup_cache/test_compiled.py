"""Compiled loops against the numpy that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from dedup_cache import Jagged, Rows, compiled
from dedup_cache.fingerprint import fingerprints
from stream.compiled import warm


def random_rows(count: int) -> Rows:
    """Rows of contiguous, overlapping and selected lists, with odd floats."""
    random = np.random.default_rng(count)
    lengths = random.integers(0, 60, count).astype(np.int32)
    contiguous = Jagged.from_lengths(random.integers(-(2**62), 2**62, int(lengths.sum())), lengths)
    starts = np.sort(random.integers(0, 1_000, count)).astype(np.int32)
    slices = Jagged(random.integers(0, 9, 1_100), starts, random.integers(0, 50, count).astype(np.int32))
    dense = random.normal(size=(count, 3)).astype(np.float32)
    dense[::7, 1], dense[::5, 0] = np.nan, -0.0
    chosen = random.integers(0, count, count) if count else np.empty(0, np.int64)
    return Rows(dense, {"plain": contiguous, "slices": slices, "chosen": slices.select(chosen)})


@pytest.mark.parametrize("count", [0, 1, 2, 512, 4_096])
def test_compiled_and_plain_agree(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(count)
    warm.compile_now()
    backwards = np.arange(count)[::-1]

    def results() -> list[list[object]]:
        columns = rows.lists.values()
        return [
            fingerprints(rows, salt=b"s").tolist(),
            [column.is_contiguous() for column in columns],
            [column.take(backwards).values.tolist() for column in columns],
        ]

    quick = results()
    monkeypatch.setattr(compiled, "ready", lambda: False)
    assert results() == quick
