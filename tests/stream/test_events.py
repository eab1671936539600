"""Decoding: what is an event, what is quarantined and why, and no bytes that stop the stream."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream.config import ConfigError, EventsConfig, FeatureConfig, FieldsConfig, LabelConfig
from stream.event_errors import MAX_DEPTH
from stream.events import IMPRESSION, Decoded, Decoder
from stream.records import RecordBlock
from tests.stream.any_bytes import BYTES, NOW_MS, raw

FEATURES = (
    FeatureConfig(name="price", group="item", type="float"),
    FeatureConfig(name="count", group="item", type="int"),
    FeatureConfig(name="color", group="item", type="string"),
    FeatureConfig(name="vector", group="item", type="list[float]", length=2),
    FeatureConfig(name="history", group="user", type="list[int]"),
    FeatureConfig(name="country", group="user", type="string", required=True),
)


def decoder(events: EventsConfig | None = None, features: tuple[FeatureConfig, ...] = FEATURES) -> Decoder:
    labels = (LabelConfig(name="click", engagements=("click",), score_field="p"),)
    return Decoder(events or EventsConfig(), features=features, labels=labels, max_ahead_ms=1_000)


def block(*values: bytes | None) -> RecordBlock:
    offsets = np.arange(len(values), dtype=np.int64) + 100
    return RecordBlock(0, offsets, np.full(len(values), NOW_MS, np.int64), [b"k"] * len(values), list(values))


REJECTED = [
    (None, "malformed", "$: the record has no value"),
    (b"", "malformed", "$: Input data was truncated"),
    (b"not json", "malformed", "$: JSON is malformed: invalid character (byte 4)"),
    (b'{"a":1},{"b":2}', "malformed", "$: JSON is malformed: trailing characters (byte 8)"),
    (b"1],[2", "malformed", "$: JSON is malformed: trailing characters (byte 2)"),
    (b'{"user_id":"\xff"}', "malformed", "$: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    (b'{"user_id":"\\ud800"}', "malformed", "$: Input data was truncated"),
    (b'{"price":"x","count":', "malformed", "$: Input data was truncated"),
    (b'{"price":NaN}', "malformed", "$: JSON is malformed: invalid character (byte 9)"),
    (b"[" * 600 + b"]" * 600, "malformed", f"$: nested deeper than {MAX_DEPTH}"),
    (b'{"x":' * 600 + b"1" + b"}" * 600, "malformed", f"$: nested deeper than {MAX_DEPTH}"),
    (b"null", "schema", "$: Expected object, got null"),
    (b"[]", "schema", "$: Expected object, got array"),
    (raw(price="n/a"), "schema", "$.price: Expected float, got str"),
    (raw(price=True), "schema", "$.price: Expected float, got bool"),
    (raw(price=1e39), "schema", "$.price: Expected float <= 3.4028234663852886e+38"),
    (raw().replace(b'"DE"', b'"DE","price":1e999'), "schema", "$.price: Number out of range"),
    (raw().replace(b'"DE"', b'"DE","price":' + b"9" * 400), "schema", "$.price: Number out of range"),
    (raw(count="1"), "schema", "$.count: Expected int, got str"),
    (raw(count=1.5), "schema", "$.count: Expected int, got float"),
    (raw(count=2**63), "schema", "$.count: Expected int <= 9223372036854775807"),
    (raw().replace(b'"DE"', b'"DE","count":' + b"9" * 5000), "schema", "$.count: Integer value out of range"),
    (raw(color=7), "schema", "$.color: Expected str, got int"),
    (raw(vector=[1.0]), "schema", "$.vector: Expected array of length >= 2"),
    (raw(vector=[1.0, 2.0, 3.0]), "schema", "$.vector: Expected array of length <= 2"),
    (raw(vector=[1.0, None]), "schema", "$.vector[1]: Expected float, got null"),
    (raw(history=[1, "2"]), "schema", "$.history[1]: Expected int, got str"),
    (raw(country=...), "schema", "$.country: required, but missing"),
    (raw(country=None), "schema", "$.country: required, but missing"),
    (raw(user_id=...), "schema", "$.user_id: required, but missing"),
    (raw(user_id=None), "schema", "$.user_id: Expected int | str, got null"),
    (raw(user_id=1.0), "schema", "$.user_id: Expected int | str, got float"),
    (raw(event_id=...), "schema", "$.event_id: required, but missing"),
    (raw(item_id=...), "schema", "$.item_id: required, but missing"),
    (raw(type="click", item_id=None), "schema", "$.item_id: required, but missing"),
    (raw(type=...), "schema", "$.type: required, but missing"),
    (raw(type="scroll"), "type", "$.type: unknown event type 'scroll'"),
    (raw(type="scroll", item_id=...), "type", "$.type: unknown event type 'scroll'"),
    (raw(event_time_ms=...), "time", "$.event_time_ms: required, but missing"),
    (raw(event_time_ms=None), "time", "$.event_time_ms: Expected int, got null"),
    (raw(event_time_ms="now"), "time", "$.event_time_ms: Expected int, got str"),
    (raw(event_time_ms=-1), "time", "$.event_time_ms: Expected int >= 0"),
    (raw(event_time_ms=253_402_300_800_000), "time", "$.event_time_ms: Expected int <= 253402300799999"),
    (
        raw(event_time_ms=NOW_MS + 1_001),
        "ahead",
        "$.event_time_ms: 1001 ms after the record's own timestamp, allowed 1000",
    ),
    (raw(padding="x" * 1_100_000), "too_large", "1100136 bytes, events.max_bytes is 1048576"),
]


@pytest.mark.parametrize(("value", "reason", "detail"), REJECTED)
def test_a_record_that_is_no_event_says_what_is_wrong_and_where(value: bytes, reason: str, detail: str) -> None:
    decoded = decoder().decode(block(raw(), value, raw()))
    rejected = decoded.quarantined[0]
    assert (rejected.reason, rejected.detail) == (reason, detail)
    assert (rejected.offset, rejected.append_time_ms, rejected.key, rejected.value) == (101, NOW_MS, b"k", value)
    assert decoded.events.rows["offset"].tolist() == [100, 102]


ACCEPTED = [
    raw(event_time_ms=NOW_MS + 1_000),
    raw(event_time_ms=0),
    raw(event_time_ms=1),
    raw(count=-(2**63)),
    raw(price=3.4028234e38, vector=[1, -2.5], history=[]),
    raw(price=None, count=None, color=None, vector=None, history=None, p=None),
    raw(type="click", country=...),
    raw(type="click", item_id=None, impression_id="e0"),
    raw(deep=json.loads("[" * 400 + "]" * 400)),
    raw(text="[" * 2000),
    raw(unread="x", request_id=[1]),
    b" \n" + raw() + b"\r\n",
]


@pytest.mark.parametrize("value", ACCEPTED)
def test_what_the_schema_allows_is_accepted(value: bytes) -> None:
    decoded = decoder().decode(block(value))
    assert decoded.quarantined == []
    assert decoded.events.rows.shape == (1,)


def test_the_last_of_doubled_names_counts() -> None:
    decoded = decoder().decode(block(raw()[:-1] + b',"item_id":77}'))
    assert decoded.events.rows["item_id"].tolist() == [77]


def test_columns_hold_what_the_records_say() -> None:
    decoded = decoder().decode(
        block(
            raw(price=2.5, count=3, color="red", vector=[1, 2], history=[5, 6], p=0.25),
            raw(event_id=2, user_id=7, type="click", item_id="12", impression_id="e1"),
            raw(event_id="3", user_id="7", item_id="x", country="FR"),
        )
    )
    events, columns = decoded.events, decoded.events.impressions
    assert events.rows["kind"].tolist() == [IMPRESSION, 1, IMPRESSION]
    assert events.rows["event_id"].tolist() == [hashed("e1"), hashed("2"), hashed("3")]
    assert events.keys.tolist() == [hashed("u1"), hashed("7"), hashed("7")]
    assert events.rows["item"].tolist() == [hashed("12"), hashed("12"), hashed("x")]
    assert events.rows["item_id"].tolist() == [12, hashed("12"), hashed("x")]
    assert events.rows["has_target"].tolist() == [False, True, False]
    assert events.rows["target"].tolist() == [0, hashed("e1"), 0]
    assert columns.dense.tolist() == [[2.5, 1.0, 2.0], [0.0, 0.0, 0.0]]
    assert columns.has_id.tolist() == [[True, True, True], [False, False, True]]
    assert columns.ids.tolist() == [[3, hashed("red"), hashed("DE")], [0, 0, hashed("FR")]]
    assert [row.tolist() for row in columns.lists[0].rows()] == [[5, 6], []]
    np.testing.assert_array_equal(columns.scores, np.array([[0.25], [np.nan]], np.float32))


def hashed(text: str) -> int:
    return int(np.array(xxhash.xxh3_64_intdigest(text.encode()), np.uint64).view(np.int64))


NESTED = EventsConfig(
    fields=FieldsConfig(key="user.id", time="meta.when.s", item="item", event_id=None), time_unit="s", max_bytes=5_000
)


def test_dotted_paths_descend_and_seconds_become_milliseconds() -> None:
    features = (
        FeatureConfig(name="age", group="user", field="user.profile.age", type="int"),
        FeatureConfig(name="item", group="item", type="int"),
    )
    values = [
        {"user": {"id": 1, "profile": {"age": 30}}, "meta": {"when": {"s": 12.3456}}, "type": "impression", "item": 4},
        {"user": {"id": 1, "profile": None}, "meta": {"when": {"s": 12}}, "type": "impression", "item": 4},
        {"user": {"id": 1}, "meta": {"when": {"s": 1.001}}, "type": "click", "item": 4, "impression_id": "x"},
        {"user": None, "meta": {"when": {"s": 12}}, "type": "click", "item": 4},
        {"user": {"id": 1, "profile": {"age": "x"}}, "meta": {"when": {"s": 12}}, "type": "click", "item": 4},
        {"user": {"id": 1}, "meta": {"when": {}}, "type": "click", "item": 4},
        {"user": {"id": 1}, "meta": {"when": {"s": 12}}, "type": "impression", "item": "4"},
    ]
    decoded = decoder(NESTED, features).decode(block(*[json.dumps(value).encode() for value in values]))
    assert decoded.events.rows["time_ms"].tolist() == [12_346, 12_000, 1_001]
    assert decoded.events.impressions.has_id[:, 0].tolist() == [True, False]
    assert decoded.events.rows["event_id"].tolist() == decoded.events.rows["offset"].tolist()
    assert not decoded.events.rows["has_target"].any()
    assert [(r.reason, r.detail) for r in decoded.quarantined] == [
        ("schema", "$.user: Expected object, got null"),
        ("schema", "$.user.profile.age: Expected int, got str"),
        ("time", "$.meta.when.s: required, but missing"),
        ("schema", "$.item: Expected int, got str"),
    ]


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (FeatureConfig(name="user_id", group="g", type="float"), "'user_id' is read as id and as float"),
        (FeatureConfig(name="x", group="g", field="user_id.x"), "the path 'user_id.x' has an empty part or leads"),
        (FeatureConfig(name="x", group="g", field="a..b"), "the path 'a..b' has an empty part"),
    ],
)
def test_paths_that_contradict_each_other_are_config_errors(feature: FeatureConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decoder(features=(feature,))


def outcome(decoded: Decoded) -> dict[int, Any]:
    """By offset: the fault, or the event's row."""
    rows = {int(row["offset"]): row.tolist() for row in decoded.events.rows}
    return rows | {one.offset: (one.reason, one.detail, one.value) for one in decoded.quarantined}


@settings(deadline=None, max_examples=300)
@given(st.lists(BYTES, max_size=6), st.integers(0, 200))
@example([b'{"a":1},{"k":"x', b'y"}'], 0)
def test_any_bytes_become_an_event_or_a_quarantined_record_whoever_stands_beside_them(
    values: list[bytes | None], depth: int
) -> None:
    one = decoder()
    together = outcome(one.decode(block(*values)))
    assert sorted(together) == list(range(100, 100 + len(values)))

    def apart(frames: int) -> dict[int, Any]:
        if frames:
            return apart(frames - 1)
        return {100 + i: outcome(one.decode(block(value)))[100] for i, value in enumerate(values)}

    for offset, alone in apart(depth).items():
        assert together[offset][1:] == alone[1:]


@given(BYTES)
def test_what_is_called_malformed_is_no_json(value: bytes | None) -> None:
    for one in decoder().decode(block(value)).quarantined:
        if one.reason == "malformed" and value is not None and "nested" not in one.detail:
            with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
                msgspec.json.decode(value)
