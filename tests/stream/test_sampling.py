"""Negatives are sampled by their ids, and their weights make up for those that are left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup_cache import sample_id
from recd.audit.sampling import negative_weight
from stream.sampling import sample_negatives

SHARES = st.one_of(st.sampled_from([1e-12, 0.25, 0.5, 1.0]), st.floats(1e-6, 1.0))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**48 - 1), st.booleans()), max_size=20), st.integers(0, 2**15 - 1), SHARES)
def test_the_audit_decides_the_same_by_itself(rows: list[tuple[int, bool]], partition: int, share: float) -> None:
    offsets = np.array([offset for offset, _ in rows], np.int64)
    labels = np.array([[0.0, clicked] for _, clicked in rows], np.float32).reshape(len(rows), 2)
    kept, weights = sample_negatives(sample_id(partition, offsets), labels=labels, share=share)
    for i, (offset, clicked) in enumerate(rows):
        expected = 1.0 if clicked else negative_weight(partition, offset, share=share)
        assert bool(kept[i]) == (expected > 0)
        assert not kept[i] or weights[i] == pytest.approx(expected)


def test_weighted_counts_are_those_of_all_samples() -> None:
    """100,000 negatives at a share of 0.1: their weights add up to 100,000 but for chance (sigma is 950)."""
    ids, labels = sample_id(3, np.arange(100_000)), np.zeros((100_000, 1), np.float32)
    kept, weights = sample_negatives(ids, labels=labels, share=0.1)
    assert abs(weights[kept].sum() - 100_000) < 5_000
    assert kept.sum() < 11_000
    everything = sample_negatives(ids, labels=labels, share=1.0)
    assert everything.kept.all()
    assert (everything.weights == 1).all()
