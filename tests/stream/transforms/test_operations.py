"""Each operation against a slow second version of it, on lists that are slices of one another, and its edge cases."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dedup_cache import Jagged, RowError, compiled
from stream.transforms import Ids, Numbers, Transform
from stream.transforms.mixing import reduce
from tests.stream.transforms.slow import run_slowly

INT64 = st.integers(-(2**63), 2**63 - 1)
IDS = st.one_of(st.integers(-3, 6), INT64)
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, -1.0, 1e-7, float("nan")]),
    st.floats(width=32, allow_infinity=False),
    st.floats(0, 1, width=32),
)
MAX_LENGTH = 5


@st.composite
def slices(draw: st.DrawFn, num_rows: int, ids: st.SearchStrategy[int] = IDS) -> Jagged:
    """Lists that overlap, repeat and leave gaps."""
    values = draw(st.lists(ids, max_size=12))
    starts = [draw(st.integers(0, len(values))) for _ in range(num_rows)]
    lengths = [draw(st.integers(0, min(MAX_LENGTH, len(values) - start))) for start in starts]
    return Jagged(np.array(values, np.int64), np.array(starts, np.int32), np.array(lengths, np.int32))


@st.composite
def matrices(draw: st.DrawFn, num_rows: int, width: int = 2) -> np.ndarray:
    rows = st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=num_rows, max_size=num_rows)
    return np.array(draw(rows), np.float32).reshape(num_rows, width)


def operation(**parameters: Any) -> Transform:
    return msgspec.convert(parameters, Transform)


def plain(column: Jagged | np.ndarray) -> list[list[Any]]:
    if isinstance(column, Jagged):
        return [row.tolist() for row in column.rows()]
    return column.tolist()


def check(transform: Transform, *columns: Jagged | np.ndarray) -> None:
    """The fast result is the slow one, with kernels and without, of the promised kind; the input is left as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "ready", lambda: False)
        check_one(transform, *columns)
    check_one(transform, *columns)


def check_one(transform: Transform, *columns: Jagged | np.ndarray) -> None:
    before = [plain(column) for column in columns]
    kinds = tuple(Ids(MAX_LENGTH) if isinstance(c, Jagged) else Numbers(c.shape[1]) for c in columns)
    kind = transform.operation.check(kinds)
    result = transform.operation.run(*columns)
    assert [plain(column) for column in columns] == before or any(isinstance(c, np.ndarray) for c in columns)
    expected = run_slowly(transform, before)
    if isinstance(kind, Numbers):
        assert isinstance(result, np.ndarray)
        assert result.shape == (len(before[0]), kind.width)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, np.array(expected).reshape(result.shape), rtol=1e-6, atol=1e-30)
        return
    assert isinstance(result, Jagged)
    assert plain(result) == expected
    assert result.lengths.max(initial=0) <= kind.max_length
    assert result.values.dtype == np.int64
    assert (result.starts.dtype, result.lengths.dtype) == (np.int32, np.int32)
    if kind.bound is not None:
        assert all(0 <= value < kind.bound for row in expected for value in row)


ONE_LIST = [
    st.builds(
        lambda buckets, salt: operation(sigrid_hash={"buckets": buckets, "salt": salt}),
        st.one_of(st.integers(1, 5), st.integers(1, 2**31 - 1)),
        INT64,
    ),
    st.builds(lambda m: operation(positive_modulus={"modulus": m}), st.integers(1, 2**31 - 1)),
    st.builds(lambda x: operation(first_x={"x": x}), st.integers(1, 7)),
    st.builds(
        lambda a, b: operation(clamp={"low": min(a, b), "high": max(a, b)}), IDS, st.one_of(st.integers(0, 9), INT64)
    ),
    st.builds(lambda n: operation(ngram={"n": n}), st.integers(2, 6)),
    st.builds(lambda of: operation(enumerate={"of": of}), st.sampled_from(["pair", "place"])),
    st.builds(
        lambda table, default: operation(map_id={"table": list(table.items()), "default": default}),
        st.dictionaries(st.integers(-3, 6), IDS, min_size=1, max_size=4),
        st.one_of(st.none(), st.integers(-2, 2)),
    ),
    st.builds(lambda size: operation(onehot={"size": size}), st.integers(1, 6)),
]


@settings(deadline=None)
@given(st.data(), st.one_of(ONE_LIST), st.integers(0, 5))
def test_one_list(data: st.DataObject, transform: Transform, num_rows: int) -> None:
    check(transform, data.draw(slices(num_rows)))


BORDERS = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.1, 0.5, 1.0, 2.0, 1e30]), min_size=1, max_size=5).map(
    lambda borders: [border for i, border in enumerate(sorted(borders)) if sorted(borders)[:i].count(border) < 2]
)
ONE_MATRIX = [
    st.builds(lambda borders: operation(bucketize={"borders": borders}), BORDERS),
    st.builds(lambda eps: operation(logit={"eps": eps}), st.sampled_from([1e-6, 1e-3, 0.4])),
    st.builds(
        lambda power, shift: operation(box_cox={"lambda": power, "shift": shift}),
        st.sampled_from([0.0, 0.5, 1.0, -1.0, 3.0, 100.0, -100.0]),
        st.sampled_from([0.0, 1.0, -2.5]),
    ),
    st.builds(
        lambda a, b: operation(clamp={"low": min(a, b), "high": max(a, b)}), st.floats(-5, 5), st.integers(-5, 5)
    ),
]


@settings(deadline=None)
@given(st.data(), st.one_of(ONE_MATRIX), st.integers(0, 5))
def test_one_matrix(data: st.DataObject, transform: Transform, num_rows: int) -> None:
    check(transform, data.draw(matrices(num_rows)))


TWO_LISTS = [
    *(
        st.just(operation(compute_score={"kind": kind}))
        for kind in ("has_overlap", "overlap_count", "max_count", "jaccard", "cosine")
    ),
    *(st.just(operation(id_list_transform={"operation": o})) for o in ("intersection", "union", "difference")),
    st.builds(lambda most: operation(cartesian={"max_pairs": most}), st.integers(1, 26)),
]


@settings(deadline=None)
@given(st.data(), st.one_of(TWO_LISTS), st.integers(0, 5))
def test_two_lists(data: st.DataObject, transform: Transform, num_rows: int) -> None:
    few = st.integers(-2, 3)
    check(transform, data.draw(slices(num_rows, few)), data.draw(slices(num_rows, few)))


@settings(deadline=None)
@given(st.data(), st.sampled_from(["score_sum", "score_min", "score_max", "weighted_cosine"]), st.integers(0, 5))
def test_scored_lists(data: st.DataObject, kind: str, num_rows: int) -> None:
    few, numbers = st.integers(-2, 3), st.integers(-8, 8).map(lambda x: x / 8)
    lists = [data.draw(slices(num_rows, few)) for _ in range(2)]
    scores = [
        np.array(
            data.draw(st.lists(numbers, min_size=num_rows * MAX_LENGTH, max_size=num_rows * MAX_LENGTH)), np.float32
        ).reshape(num_rows, MAX_LENGTH)
        for _ in range(2)
    ]
    columns = [lists[0], scores[0], lists[1], scores[1]] if kind == "weighted_cosine" else [*lists, scores[1]]
    check(operation(compute_score={"kind": kind}), *columns)


PAIRED = [
    *({"compute_score": {"kind": kind}} for kind in ("overlap_count", "max_count", "jaccard", "cosine")),
    *({"id_list_transform": {"operation": name}} for name in ("intersection", "union", "difference")),
]


@pytest.mark.parametrize("parameters", PAIRED, ids=str)
@pytest.mark.parametrize("longest", [47, 49, 300])
def test_long_lists(parameters: dict[str, Any], longest: int) -> None:
    """Kernels compare short lists id by id and long ones by a table; both forms meet in one column."""
    random = np.random.default_rng(longest)
    first, second = (
        Jagged.from_rows([random.integers(0, longest, count) << shift for count in (longest, 3, 0, longest - 1)])
        for shift in (40, 40)
    )
    before = [plain(first), plain(second)]
    expected = run_slowly(operation(**parameters), before)
    for ready in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiled, "ready", lambda ready=ready: ready)
            result = operation(**parameters).operation.run(first, second)
        if isinstance(result, Jagged):
            assert plain(result) == expected
        else:
            assert isinstance(result, np.ndarray)
            np.testing.assert_allclose(result, np.array(expected).reshape(result.shape), rtol=1e-6)


@pytest.mark.parametrize(
    "parameters", [{"ngram": {"n": 2}}, {"enumerate": {}}, {"cartesian": {}}, *PAIRED], ids=lambda p: next(iter(p))
)
def test_a_slice_outside_its_values_is_refused(parameters: dict[str, Any]) -> None:
    """By a kernel, which would read memory that is not its own."""
    outside = Jagged(np.arange(4), np.array([2], np.int32), np.array([3], np.int32))
    chosen = operation(**parameters).operation
    columns = [outside] * len(chosen.inputs())
    with pytest.raises((RowError, IndexError)):
        chosen.run(*columns)


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("parameters", [{"cartesian": {}}, *PAIRED], ids=str)
def test_columns_of_other_numbers_of_rows_are_refused(
    parameters: dict[str, Any], ready: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "ready", lambda: ready)
    one, two = Jagged.from_rows([[1]]), Jagged.from_rows([[1], [2]])
    for first, second in ((one, two), (two, one)):
        with pytest.raises(RowError, match=f"columns of {first.num_rows} and {second.num_rows} rows"):
            operation(**parameters).operation.run(first, second)


YEARS = st.integers(-5_000_000_000, 5_000_000_000)


@settings(deadline=None)
@given(st.lists(YEARS, max_size=20), st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "Africa/Monrovia"]))
@example([-2422054408, -2422054409, 0, 63_593_069, 63_593_070], "Africa/Monrovia")
@example([1_616_893_199, 1_616_893_200, 1_635_641_999, 1_635_642_000], "Europe/Berlin")
def test_local_hour(seconds: list[int], timezone: str) -> None:
    check(operation(get_local_hour={"timezone": timezone, "unit": "s"}), Jagged.from_rows([[s] for s in seconds]))
    ms = Jagged.from_rows([[s * 1000 + 999] for s in seconds])
    check(operation(get_local_hour={"timezone": timezone}), ms)


def test_local_hour_of_any_integer() -> None:
    column = Jagged.from_rows([[-(2**63), 2**63 - 1]])
    for unit in ("s", "ms"):
        hours = operation(get_local_hour={"timezone": "Asia/Kathmandu", "unit": unit}).operation.run(column)
        assert all(0 <= hour < 24 for hour in hours.values.tolist())


GOLDEN: list[tuple[dict[str, Any], list[int]]] = [
    ({"sigrid_hash": {"buckets": 1000}}, [488, 638, 689, 774]),
    ({"sigrid_hash": {"buckets": 1000, "salt": 7}}, [459, 392, 598, 491]),
    ({"sigrid_hash": {"buckets": 1}}, [0, 0, 0, 0]),
    ({"ngram": {"n": 2}}, [3490533658484444835, -4531705325877604959, -6494708183400344202]),
    ({"enumerate": {}}, [9014103220790814445, -6831071286063009644, 5066678069572786940, -3897899958887158355]),
]


@pytest.mark.parametrize(("parameters", "expected"), GOLDEN)
def test_golden_values(parameters: dict[str, Any], expected: list[int]) -> None:
    """They name rows of trained tables: a change of any of them makes every table worthless."""
    ids = Jagged.from_rows([[0, 1, -1, 2**62]])
    assert plain(operation(**parameters).operation.run(ids)) == [expected]


def test_golden_values_of_pairs() -> None:
    ids = Jagged.from_rows([[0, 1, -1, 2**62]])
    expected = [1958211333011266394, 1816540398156413746, -5692354451105155831, -9216640845154174266]
    assert plain(operation(cartesian={}).operation.run(ids, Jagged.from_rows([[5]]))) == [expected]


def test_hashes_fall_evenly() -> None:
    """Chi-square over 1000 buckets of 100,000 ids in a row stays in the range of chance."""
    ids = Jagged.from_rows([np.arange(100_000)])
    for salt in (0, 1, -5):
        hashed = operation(sigrid_hash={"buckets": 1000, "salt": salt}).operation.run(ids).values
        counts = np.bincount(hashed, minlength=1000)
        assert 850 < ((counts - 100.0) ** 2 / 100.0).sum() < 1150


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=5), st.integers(1, 2**32))
def test_reduce_is_the_high_half_of_the_product(hashed: list[int], size: int) -> None:
    assert reduce(np.array(hashed, np.uint64), size).tolist() == [h * size >> 64 for h in hashed]


def test_the_bucket_between_two_equal_borders() -> None:
    numbers = np.array([[-1.0], [0.0], [1e-9], [5.0], [6.0], [np.nan], [np.inf], [-np.inf]], np.float32)
    buckets = operation(bucketize={"borders": [0, 0, 5]}).operation.run(numbers)
    assert plain(buckets) == [[0], [1], [2], [2], [3], [], [3], [0]]


def test_texts_are_keys_of_map_id() -> None:
    from stream.hashing import hash_strings

    ids = Jagged.from_rows([hash_strings(["de", "fr", "??"]).tolist()])
    table = operation(map_id={"table": [["de", 1], ["fr", 2]]})
    assert plain(table.operation.run(ids)) == [[1, 2]]


@pytest.mark.parametrize("name", ["sigrid_hash", "positive_modulus", "first_x", "ngram", "map_id"])
def test_slices_are_not_copied(name: str) -> None:
    """Windows over one long list: what comes out stores no more than the list did."""
    parameters = {
        "sigrid_hash": {"buckets": 9},
        "positive_modulus": {"modulus": 9},
        "first_x": {"x": 30},
        "ngram": {"n": 3},
        "map_id": {"table": [[i, i + 1] for i in range(0, 200, 2)]},
    }[name]
    windows = Jagged(np.arange(200), np.arange(150, dtype=np.int32), np.full(150, 50, np.int32))
    result = operation(**{name: parameters}).operation.run(windows)
    assert result.lengths.sum() > 20 * result.values.shape[0]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({}, "expected one operation, got none"),
        ({"logit": {}, "onehot": {"size": 2}}, "expected one operation, got logit and onehot"),
        ({"sigrid_hash": {"buckets": 0}}, r"\$\.sigrid_hash\.buckets"),
        ({"sigrid_hash": {"buckets": 2**31}}, r"\$\.sigrid_hash\.buckets"),
        ({"clamp": {"low": 2, "high": 1}}, "low must not be above high, got 2 and 1"),
        ({"clamp": {"low": 0, "high": float("nan")}}, "high must be"),
        ({"clamp": {"low": 0, "high": 2**63}}, "high must be"),
        ({"bucketize": {"borders": []}}, "borders is empty"),
        ({"bucketize": {"borders": [1.0, 0.0]}}, r"borders\[1\] 0.0 is below 1.0"),
        ({"bucketize": {"borders": [0.0, 0.0, 0.0]}}, "not three times"),
        ({"bucketize": {"borders": [1.0, 1.000000001]}}, "the same 32-bit number"),
        ({"bucketize": {"borders": [float("nan")]}}, r"borders\[0\] must be"),
        ({"map_id": {"table": []}}, "table is empty"),
        ({"map_id": {"table": [[1, 2], [1, 3]]}}, "a key twice: 1"),
        ({"ngram": {"n": 1}}, r"\$\.ngram\.n"),
        ({"logit": {"eps": 0.0}}, r"\$\.logit\.eps"),
        ({"get_local_hour": {"timezone": "Mars/Olympus"}}, "unknown timezone 'Mars/Olympus'"),
        ({"get_local_hour": {"timezone": "../../etc/passwd"}}, "unknown timezone"),
        ({"cartesian": {"max_pairs": 0}}, r"\$\.cartesian\.max_pairs"),
        ({"compute_score": {"kind": "cosin"}}, r"\$\.compute_score\.kind"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=complaint):
        msgspec.convert(wrong, Transform)
