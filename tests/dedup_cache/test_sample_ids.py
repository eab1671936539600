"""Ids are positions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup_cache import RowError, sample_id, sample_position


def splitmix64_finaliser(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@settings(deadline=None)
@given(st.integers(0, 2**15 - 1), st.lists(st.integers(0, 2**48 - 1)))
def test_ids_lead_back_to_their_positions(partition: int, offsets: list[int]) -> None:
    ids = sample_id(partition, np.array(offsets, np.int64))
    assert ids.tolist() == [splitmix64_finaliser(partition << 48 | offset) for offset in offsets]
    position = sample_position(ids)
    assert position.offset.tolist() == offsets
    assert set(position.partition.tolist()) <= {partition}


@pytest.mark.parametrize(("partition", "offset"), [(-1, 0), (2**15, 0), (0, -1), (0, 2**48)])
def test_positions_without_an_id_are_refused(partition: int, offset: int) -> None:
    with pytest.raises(RowError, match="outside"):
        sample_id(partition, np.array([offset]))
