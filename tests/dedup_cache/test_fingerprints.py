"""The construction against its plain transcription, and the quality of what comes out."""

import math
import struct

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup_cache import Jagged, Rows, check_bits, fingerprint, fingerprints
from tests.dedup_cache.rows_strategies import SALT, USER, row_tuples, rows_of

MASK = 2**64 - 1
GOLDEN = [["db3b4c6b107d7f53", "ac05bd690a2fa2ef"], ["f47d63fe1846bb9e", "102dc7b26e84468b"]]
M1, M2, M3, M4, M5, M6 = (int(getattr(fingerprint, f"M{n}")) for n in range(1, 7))


def fmix(x: int) -> int:
    x = (x ^ (x >> 33)) * 0xFF51AFD7ED558CCD & MASK
    x = (x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53 & MASK
    return x ^ (x >> 33)


def absorb(a: int, b: int, elements: list[int], salt: bytes, name: str) -> tuple[int, int]:
    digest = xxhash.xxh3_128_intdigest(salt + b"\0" + name.encode())
    k0, k1 = digest & MASK, digest >> 64
    sum_y, sum_z = 0, 0
    for place, element in enumerate(elements):
        x = (element * M1 + place * M2 + k0) & MASK
        y = (x ^ (x >> 32)) * M3 & MASK
        y ^= y >> 29
        z = y * M4 & MASK
        sum_y, sum_z = sum_y + y, sum_z + (z ^ (z >> 32))
    a = fmix((a * M5 + sum_y + len(elements) * M2 + k0) & MASK)
    return a, fmix((b * M6 + sum_z + (len(elements) + a) * M1 + k1) & MASK)


def slow_fingerprints(rows: Rows, salt: bytes) -> list[list[int]]:
    prints = []
    for at in range(rows.num_rows):
        a = b = 0
        if rows.dense.shape[1]:
            numbers = [math.nan if math.isnan(x) else x + 0.0 for x in rows.dense[at].tolist()]
            bits = [0x7FC00000 if math.isnan(x) else struct.unpack("<I", struct.pack("<f", x))[0] for x in numbers]
            a, b = absorb(a, b, bits, salt, "")
        for name, column in rows.lists.items():
            a, b = absorb(a, b, column.rows()[at].tolist(), salt, name)
        prints.append([a, b])
    return prints


@settings(deadline=None)
@given(st.data(), st.integers(0, 6))
def test_columns_give_what_the_construction_says(data: st.DataObject, num_rows: int) -> None:
    rows = data.draw(rows_of(USER, num_rows))
    assert fingerprints(rows, salt=SALT).tolist() == slow_fingerprints(rows, SALT)


@settings(deadline=None)
@given(st.data(), st.integers(0, 6))
def test_equal_exactly_where_rows_are_equal(data: st.DataObject, num_rows: int) -> None:
    rows = data.draw(rows_of(USER, num_rows))
    prints = [tuple(row) for row in fingerprints(rows, salt=SALT).tolist()]
    plain = row_tuples(rows)
    assert [[a == b for b in prints] for a in prints] == [[a == b for b in plain] for a in plain]
    compact = Rows(rows.dense, {name: Jagged.from_rows(column.rows()) for name, column in rows.lists.items()})
    assert [tuple(row) for row in fingerprints(compact, salt=SALT).tolist()] == prints


@pytest.mark.parametrize("run_ids", [1, 2, 7, 100])
@pytest.mark.parametrize("contiguous", [True, False])
def test_runs_do_not_show(monkeypatch: pytest.MonkeyPatch, run_ids: int, contiguous: bool) -> None:
    random = np.random.default_rng(1)
    lengths = random.integers(0, 9, 60).astype(np.int32)
    column = Jagged.from_lengths(random.integers(0, 5, lengths.sum()), lengths)
    picks = np.arange(60) if contiguous else random.permutation(60)
    column = Jagged(column.values, column.starts[picks], column.lengths[picks])
    rows = Rows(np.zeros((60, 0), np.float32), {"history": column})
    whole = fingerprints(rows, salt=SALT)
    monkeypatch.setattr(fingerprint, "RUN_IDS", run_ids)
    assert np.array_equal(fingerprints(rows, salt=SALT), whole)


def one_row(*lists: list[int], dense: tuple[float, ...] = ()) -> Rows:
    columns = {f"f{place}": Jagged.from_rows([ids]) for place, ids in enumerate(lists)}
    return Rows(np.array([dense], np.float32).reshape(1, len(dense)), columns)


def test_lengths_names_places_and_salt_matter() -> None:
    rows = [
        one_row([1], [2]),
        one_row([1, 2], []),
        one_row([], [1, 2]),
        one_row([2], [1]),
        one_row([0], []),
        one_row([], [0]),
        one_row([], []),
        one_row([1], [2], dense=(0.0,)),
    ]
    prints = {tuple(fingerprints(row, salt=salt)[0].tolist()) for row in rows for salt in (b"v1", b"v2")}
    assert len(prints) == 2 * len(rows)


def test_zero_and_nan_have_one_form() -> None:
    other_nan = np.frombuffer(np.uint32(0xFFC00001).tobytes(), np.float32)[0]
    assert np.array_equal(*(fingerprints(one_row(dense=(x,)), salt=SALT) for x in (0.0, -0.0)))
    assert np.array_equal(*(fingerprints(one_row(dense=(x,)), salt=SALT) for x in (float("nan"), other_nan)))


def test_the_values_never_change() -> None:
    rows = Rows(np.array([[0.5], [-1.0]], np.float32), {"history": Jagged.from_rows([[1, 2, 3], []])})
    assert [[f"{x:016x}" for x in row] for row in fingerprints(rows, salt=b"v1").tolist()] == GOLDEN


def structured_rows(kind: str, count: int) -> Rows:
    """Rows that differ as little as real ones do."""
    number = np.arange(count)
    if kind == "counter":
        lists = Jagged.from_lengths(number, np.ones(count, np.int32))
    elif kind == "high bits":
        lists = Jagged.from_lengths(number << 42, np.ones(count, np.int32))
    elif kind == "bits of a long list":
        lists = Jagged.from_lengths(((number[:, None] >> np.arange(20)) & 1).reshape(-1), np.full(count, 20, np.int32))
    elif kind == "windows":
        lists = Jagged(number, np.arange(count, dtype=np.int32) // 2, 1 + np.arange(count, dtype=np.int32) % 2)
    else:
        return Rows(number.astype(np.float32)[:, None], {})
    return Rows(np.zeros((count, 0), np.float32), {"history": lists})


@pytest.mark.parametrize("kind", ["counter", "high bits", "bits of a long list", "windows", "dense"])
def test_every_32_bits_collide_as_rarely_as_random_ones(kind: str) -> None:
    count = 1 << 19
    prints = fingerprints(structured_rows(kind, count), salt=SALT)
    expected = count * (count - 1) / 2**33
    for lane in (0, 1):
        for shift in (0, 16, 32):
            bits = (prints[:, lane] >> np.uint64(shift)) & np.uint64(2**32 - 1)
            assert count - np.unique(bits).size < expected + 6 * math.sqrt(expected), (lane, shift)
    assert count - np.unique(check_bits(prints)).size < expected + 6 * math.sqrt(expected)


def test_one_flipped_bit_flips_half_of_the_bits() -> None:
    random = np.random.default_rng(2)
    base = random.integers(0, 2**62, (64, 5))
    flips = [(place, bit) for place in range(5) for bit in range(63)]
    changed = np.stack([base ^ (np.arange(5) == place) * (1 << bit) for place, bit in flips])

    def prints(ids: np.ndarray) -> np.ndarray:
        column = Jagged.from_lengths(ids.reshape(-1), np.full(ids.size // 5, 5, np.int32))
        return fingerprints(Rows(np.zeros((ids.size // 5, 0), np.float32), {"f": column}), salt=SALT)

    difference = prints(changed).reshape(len(flips), 64, 2) ^ prints(base)
    ones = np.unpackbits(difference.view(np.uint8), axis=-1).reshape(len(flips), 64, 128)
    assert abs(ones.mean() - 0.5) < 0.005
    assert ones.mean(axis=(1, 2)).min() > 0.47
    assert ones.mean(axis=(0, 1)).min() > 0.47
