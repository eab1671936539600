"""Rows as blobs."""

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup_cache import GroupSchema, Jagged, RowError, Rows, compiled, decode_rows, encode_rows
from stream.compiled import warm
from tests.dedup_cache.rows_strategies import CONTEXT, ITEM, USER, row_tuples, rows_of

EMPTY = GroupSchema("empty", (), ())
ROWS = Rows(
    np.array([[0.5, -2.0]] * 2, np.float32),
    {"history": Jagged.from_rows([[1, 2], []]), "tags": Jagged.from_rows([[3], [4]])},
)


@settings(deadline=None)
@given(st.data(), st.sampled_from([USER, ITEM, CONTEXT, EMPTY]), st.integers(0, 8))
def test_blobs_give_the_rows_back(data: st.DataObject, schema: GroupSchema, num_rows: int) -> None:
    warm.compile_now()
    rows = data.draw(rows_of(schema, num_rows))
    blobs = encode_rows(rows, schema)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "ready", lambda: False)
        assert encode_rows(rows, schema) == blobs
    assert row_tuples(decode_rows(blobs, schema)) == row_tuples(rows)
    assert blobs == [blob for row in range(num_rows) for blob in encode_rows(rows.take(np.array([row])), schema)]


def test_every_flip_and_every_cut_is_found() -> None:
    whole, other = encode_rows(ROWS, USER)
    for at in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            with pytest.raises(RowError, match=r"group 'user', row 1"):
                decode_rows([other, bytes(damaged)], USER)
        with pytest.raises(RowError, match="row 0"):
            decode_rows([whole[:at]], USER)


def sealed(body: bytes) -> bytes:
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def test_well_sealed_nonsense_is_refused() -> None:
    body = encode_rows(ROWS, USER)[0][:-8]
    lengths_at = 4 * (2 + 2)
    cases = {
        "too short": body[:12],
        "not a row": b"ROW2" + body[4:],
        "other features": body[:4] + b"\0\0\0\0" + body[8:],
        "do not fit": body[:lengths_at] + b"\xff\xff\xff\xff" + body[lengths_at + 4 :],
        "fit its size": body + b"\0" * 4,
    }
    for reason, damaged in cases.items():
        with pytest.raises(RowError, match=reason):
            decode_rows([sealed(damaged)], USER)


def test_rows_of_another_group_are_refused() -> None:
    with pytest.raises(RowError, match="other features"):
        decode_rows(encode_rows(ROWS, USER), GroupSchema("user", ("age", "rate"), ("history", "labels")))
    with pytest.raises(RowError, match="schema has 0"):
        encode_rows(ROWS, ITEM)
