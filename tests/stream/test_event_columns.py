"""Records read at once against records read one by one: no difference, whatever the bytes are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.compiled import warm
from stream.compiled.json_scan import SPAN_BITS, scan
from stream.compiled.sample import is_cached
from stream.compiled.text_hash import LONGEST, hash_spans
from stream.config import EventsConfig, FeatureConfig, FieldsConfig, LabelConfig
from stream.event_columns import EventColumns
from stream.event_schema import FLOAT32_MAX
from stream.events import Decoder
from stream.json_columns import JsonColumns
from stream.records import RecordBlock
from tests.stream.any_bytes import BODY, BYTES, NOW_MS, raw

FEATURES = (
    FeatureConfig(name="price", group="item", type="float", default=0.5),
    FeatureConfig(name="count", group="item", type="int"),
    FeatureConfig(name="color", group="item", type="string"),
    FeatureConfig(name="type", group="item", type="string"),
    FeatureConfig(name="vector", group="item", type="list[float]", length=2, default=7.0),
    FeatureConfig(name="history", group="user", type="list[int]", max_length=3),
    FeatureConfig(name="tags", group="user", type="list[string]", max_length=2),
    FeatureConfig(name="country", group="user", type="string", required=True),
    FeatureConfig(name="age", group="user", type="int", field="user.profile.age"),
    FeatureConfig(name="city", group="user", type="string", field="user.profile.city"),
)
LABELS = (LabelConfig(name="click", engagements=("click",), score_field="p"),)


@pytest.fixture(scope="module", autouse=True)
def plain_decoders() -> Iterator[None]:
    """Decoders take the plain path; the quick one is called by its name."""
    warm.compile_now()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm, "ready", lambda: False)
        yield


def block(values: list[bytes | None]) -> RecordBlock:
    count = len(values)
    return RecordBlock(0, np.arange(count) + 100, np.full(count, NOW_MS), [b"k"] * count, values)


def decoders(events: EventsConfig = EventsConfig()) -> tuple[Decoder, Decoder]:  # noqa: B008
    """A plain one and a quick one."""
    plain, quick = (Decoder(events, features=FEATURES, labels=LABELS, max_ahead_ms=1_000) for _ in range(2))
    quick._quick = quick._make_quick()
    return plain, quick


PLAIN, QUICK = decoders()


def same(values: list[bytes | None], plain: Decoder = PLAIN, quick: Decoder = QUICK) -> None:
    """Both give the same, field by field and bit by bit."""
    one, other = plain.decode(block(values)), quick.decode(block(values))
    assert one.quarantined == other.quarantined
    for name in ("rows", "keys", "record_keys", "values"):
        assert getattr(one.events, name).tolist() == getattr(other.events, name).tolist(), name
    expected, found = one.events.impressions, other.events.impressions
    for name in ("dense", "ids", "has_id", "scores"):
        np.testing.assert_array_equal(getattr(expected, name), getattr(found, name), err_msg=name)
    for column, read in zip(expected.lists, found.lists, strict=True):
        assert [row.tolist() for row in column.rows()] == [row.tolist() for row in read.rows()]


def sure(value: bytes) -> bool:
    """Whether the quick reader takes the record."""
    assert isinstance(QUICK._quick, EventColumns)
    return not QUICK._quick.read(block([value])).unsure.size


NAMES = [*BODY, "price", "count", "color", "vector", "history", "tags", "impression_id", "p", "user", "other"]
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = st.integers(-(2**70), 2**70) | st.integers(-9, 99) | FLOATS | st.decimals(-5, 5, places=3).map(float)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.text("ab", max_size=90)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*NAMES, "profile", "age"]), inner),
    max_leaves=8,
)
FITTING = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["impression", "click", "impressio", "click\0"]),
        "price": NUMBERS,
        "count": st.integers(-5, 5),
        "color": st.text(max_size=80),
        "vector": st.lists(NUMBERS, min_size=1, max_size=3),
        "history": st.lists(st.integers(-(2**60), 2**60), max_size=5),
        "tags": st.lists(st.text(max_size=3), max_size=4),
        "impression_id": st.integers(0, 5) | st.text(max_size=3),
        "item_id": st.integers() | st.text(max_size=20) | st.none(),
        "p": st.floats(0, 1) | st.none(),
        "user": st.fixed_dictionaries({}, optional={"profile": st.fixed_dictionaries({"age": st.integers(0, 9)})}),
        "other": TREES,
    },
)


def as_json(changes: dict[str, Any], ascii_only: bool, compact: bool) -> bytes:
    text = json.dumps(
        {**BODY, **changes}, ensure_ascii=ascii_only, separators=(",", ":") if compact else None, allow_nan=False
    )
    return text.encode(errors="surrogatepass")


RECORDS = st.builds(as_json, FITTING, st.booleans(), st.booleans()).filter(bool) | BYTES
SPLICED = st.tuples(st.builds(raw), st.integers(0, 150), st.integers(0, 4), st.binary(max_size=3)).map(
    lambda cut: cut[0][: cut[1]] + cut[3] + cut[0][cut[1] + cut[2] :]
)


@settings(deadline=None, max_examples=250)
@given(st.lists(RECORDS | SPLICED, max_size=5))
def test_reading_at_once_changes_nothing(values: list[bytes | None]) -> None:
    same(values)


NUMBER = JsonColumns({"x": "time[s]", "y": "list[float,1]"}, choices={})
DECIMALS = st.builds(
    lambda digits, point, exponent: f"{digits[:point] or 0}.{digits[point:] or 0}e{exponent}",
    st.integers(0, 10**19).map(str),
    st.integers(0, 19),
    st.integers(-30, 30),
).map(lambda text: text if text[1] == "." else text.lstrip("0") or text)


@settings(max_examples=1_000)
@given(FLOATS.map(repr) | DECIMALS)
def test_a_number_is_what_python_reads(text: str) -> None:
    """Bit for bit; what the quick reader leaves to others is rare: see the doubtful records."""
    found = NUMBER.read([f'{{"y":[{text}]}}'.encode()])
    value = float(text)
    assert not found.sure[0] or found.float_elements(found.list_starts("y")).tobytes() == np.float64(value).tobytes()
    assert found.sure[0] or not 1e-300 < abs(value) < FLOAT32_MAX or len(text.split("e", maxsplit=1)[0]) > 20


WRAPPING = [f"{times * 2**64}{zeros}" for times in range(1, 6) for zeros in ("", "000")]
"""Digits of which 64 bits keep nothing."""


@pytest.mark.parametrize("digits", WRAPPING)
def test_digits_of_which_64_bits_keep_nothing_are_left_to_the_slow_reader(digits: str) -> None:
    texts = [digits, f"{digits}.0", f"0.{digits}", f"0.000{digits}", f"{digits}e-3"]
    texts += [f"{digits[:point]}.{digits[point:]}" for point in (1, 2, 10, 18, 19)]
    values = [
        raw()[:-1] + f',"{name}":{value}}}'.encode()
        for text in texts + [f"-{text}" for text in texts]
        for name, value in (
            *((name, text) for name in ("price", "count", "other")),
            ("history", f"[1,{text}]"),
            ("vector", f"[{text},1]"),
        )
    ]
    assert not any(sure(value) for value in values)
    same([*values])


NESTED = FieldsConfig(key="user.id", time="meta.when.s", event_id=None)


@pytest.mark.parametrize(
    "events",
    [EventsConfig(fields=NESTED, time_unit="s", max_bytes=300), EventsConfig(impressions=("a", "b"), engagements=())],
)
def test_other_configurations_change_nothing(events: EventsConfig) -> None:
    values = []
    for type_name in ("impression", "click", "a", "b"):
        for seconds in (12.3456, 12, 1.001, None, -1, 1e300, "x"):
            event = {**BODY, "type": type_name, "user": {"id": 1, "profile": None}, "meta": {"when": {"s": seconds}}}
            values += [json.dumps(event).encode(), json.dumps({**event, "pad": "x" * 300}).encode()]
    same([*values, raw(user=None), raw(user={}), raw(user=[]), raw(meta={"when": None})], *decoders(events))


@pytest.mark.parametrize(
    "value",
    [
        raw(
            price=2.5, count=-3, color="rod", vector=[1, -2.25], history=[1, 2, 3, 4], tags=["a", "b"], p=0.125
        ).replace(b"rod", "rød".encode()),
        raw(
            user={"profile": {"age": 30, "city": "Koln"}, "x": [{"y": [True, None, "\\u00e9\n"]}]}, other=[[], {}]
        ).replace(b"Koln", "Köln".encode()),
        raw(type="click", item_id=None, impression_id=7, user={"profile": None}),
        b" \n" + raw() + b"\r\n\t",
        raw(color='a\\"/\b\f\n\r\t\0', tags=["é", "日本", "\U0001f600", "z" * 70 + "ü"], type="click"),
        raw(other="\U0001f600 and \\u00e9", user={"profile": {"age": 1}}).replace(b'"age"', b'"\\u0061ge"'),
        raw(count=2**63 - 1, history=[-(2**63) + 1, 10**18]),
        raw()[:-1] + b',"price":1e2,"p":2.5E-3,"vector":[0.1234567890123456,-1.7976931348623157e+3]}',
    ],
)
def test_usual_records_are_read_at_once(value: bytes) -> None:
    assert sure(value)
    same([value])


@pytest.mark.parametrize(
    "value",
    [
        raw()[:-1] + b',"item_id":77}',
        raw(history=5),
        raw(vector=1.5),
        raw(tags="ab"),
        raw(country=["a"]),
        raw(user=3),
        raw(count=2**63),
        raw(count=1.0),
        raw()[:-1] + b',"count":-0}',
        raw()[:-1] + b',"count":01}',
        raw()[:-1] + b',"price":1.}',
        raw()[:-1] + b',"price":1e}',
        raw()[:-1] + b',"price":1e-320}',
        raw()[:-1] + b',"price":12345678901234567890.5}',
        raw()[:-1] + b",}",
        raw()[:-1] + b',"other":[1,]}',
        raw()[:-1] + b',"other":"\xed\xa0\x80"}',
        raw()[:-1] + b',"other":"\\ud800"}',
        raw()[:-1] + b',"color":"\\udc00\\ud800"}',
        raw()[:-1] + b',"color":"\\ud800\\u0041"}',
        raw()[:-1] + b',"other":"\x01"}',
        raw() + b"\0",
        raw() + b"{}",
        raw(other="x") + b"\0" + raw(),
    ],
)
def test_doubtful_records_are_left_to_the_slow_reader(value: bytes) -> None:
    assert not sure(value)
    same([raw(), value, raw(country=...), raw()])


def test_what_was_compiled_is_found_by_the_next_process() -> None:
    assert is_cached()


def test_machine_code_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba alone looks only at the file of the kernel, not at the grammar that is compiled into it."""
    arguments = NUMBER.arguments([b'{"y":[1]}'])
    assert scan.is_cached(arguments)
    monkeypatch.setattr(scan, "_defaults", (0,))
    assert not scan.is_cached(arguments)


@pytest.mark.parametrize("size", [*range(LONGEST + 1)])
def test_hashes_are_those_of_xxhash(size: int) -> None:
    text = np.random.default_rng(size).integers(0, 256, 200).astype(np.uint8)
    hashes = np.zeros(3, np.uint64)
    starts = np.array([0, 7, 100])
    hash_spans(text, starts << SPAN_BITS | size, hashes)
    assert hashes.tolist() == [xxhash.xxh3_64_intdigest(text[at : at + size].tobytes()) for at in starts]
