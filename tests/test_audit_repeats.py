"""A name that a record says twice: the audit's reader and the worker's decoder, on the same random bytes."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from recd.audit.events import EventReader
from stream.config import Config, load
from stream.events import Decoder
from stream.records import RecordBlock

APPEND_MS, MAX_AHEAD_MS = 1_700_000_000_000, 5_000
RECORDS = 20_000
NAMES = (
    "meta",
    "id",
    "ts",
    "who",
    "uid",
    "age",
    "kind",
    "what",
    "sku",
    "price",
    "vec",
    "tags",
    "p",
    "tap",
    "gr\u00f6\u00dfe",
)
LITERALS = (
    *("1", "-1", "0.5", "1.5", "1e2", "1e39", "9223372036854775807", "9223372036854775808", "1" * 30, "null", "true"),
    *('""', '"u"', '"view"', '"tap"', '"\\u0075"', '"\\ud83d\\ude00"', '"a \\"kind\\": b"', "[]", "[1]", "[1, 2]"),
    *('["t"]', "[null]", "{}", '{"id": 1}', '{"uid": "u"}', str(APPEND_MS), str(APPEND_MS + MAX_AHEAD_MS + 1)),
)


def _config() -> Config:
    features = (
        "[{name: age, field: who.age, group: u, type: int}, {name: price, field: what.price, group: i, type: float},"
        " {name: vec, field: what.vec, group: i, type: 'list[float]', length: 2},"
        " {name: tags, field: what.tags, group: i, type: 'list[string]'},"
        " {name: uid, field: who.uid, group: u, type: string, required: true},"
        " {name: size, field: gr\u00f6\u00dfe, group: u, type: float}]"
    )
    fields = "{key: who.uid, time: meta.ts, type: kind, item: what.sku, event_id: meta.id, impression_id: null}"
    events = (f"events.fields={fields}", "events.impressions=[view]", "events.engagements=[tap]")
    labels = "labels=[{name: tap, engagements: [tap], score_field: p.tap}]"
    return load(None, overrides=(*events, f"features={features}", labels, f"session.max_ahead_ms={MAX_AHEAD_MS}"))


def _name(rng: random.Random, name: str) -> str:
    """Now and then written with an escape."""
    if rng.random() < 0.9:
        return json.dumps(name, ensure_ascii=rng.random() < 0.5)
    return f'"\\u{ord(name[0]):04x}{name[1:]}"'


def _object(rng: random.Random, members: dict[str, str]) -> str:
    """An object with these members, in any order, some of them again or with another value."""
    pairs = list(members.items())
    rng.shuffle(pairs)
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        name = rng.choice([*members, *members, *NAMES])
        literal = rng.choice([members.get(name, "1"), rng.choice(LITERALS)])
        pairs.insert(rng.randint(0, len(pairs)), (name, literal))
    return "{" + ", ".join(f"{_name(rng, name)}: {literal}" for name, literal in pairs) + "}"


def _record(rng: random.Random) -> bytes:
    members = {
        "meta": _object(rng, {"id": '"i"', "ts": str(APPEND_MS)}),
        "who": _object(rng, {"uid": '"u"', "age": "3"}),
        "kind": rng.choice(['"view"', '"tap"']),
        "what": _object(rng, {"sku": "7", "price": "1.5", "vec": "[1, 2]", "tags": '["t"]'}),
        "p": _object(rng, {"tap": "0.5"}),
        "gr\u00f6\u00dfe": "1",
    }
    return _object(rng, members).encode()


def _compare(config: Config, values: list[bytes]) -> Counter[str]:
    """The verdicts, by reason; '' is an event."""
    reader = EventReader(config)
    decoder = Decoder(config.events, features=config.features, labels=config.labels, max_ahead_ms=MAX_AHEAD_MS)
    count = len(values)
    block = RecordBlock(0, np.arange(count), np.full(count, APPEND_MS), [None] * count, list(values))
    decoded = decoder.decode(block)
    reasons = {one.offset: one.reason for one in decoded.quarantined}
    times_ms = dict(zip(decoded.events.rows["offset"].tolist(), decoded.events.rows["time_ms"].tolist(), strict=True))
    verdicts: Counter[str] = Counter()
    for offset, value in enumerate(values):
        found = reader.read(value, offset=offset, latest_ms=APPEND_MS + MAX_AHEAD_MS)
        reason = reasons.get(offset, "")
        if isinstance(found, frozenset):
            assert reason in found, value
        else:
            assert reason == "", value
            assert found.time_ms == times_ms[offset], value
        verdicts[reason] += 1
    return verdicts


def test_every_occurrence_must_fit_and_the_last_counts() -> None:
    rng = random.Random(0)
    verdicts = _compare(_config(), [_record(rng) for _ in range(RECORDS)])
    assert verdicts.keys() == {"", "schema", "time", "type", "ahead"}


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ('"kind": "view", "kind": 1', "schema"),
        ('"kind": 1, "kind": "view"', "schema"),
        ('"kind": "other", "kind": "view"', ""),
        ('"kind": "view", "kind": "other"', "type"),
        ('"k\\u0069nd": null, "kind": "view"', "schema"),
        ('"kind": "view", "who": {"age": 3}', "schema"),
        ('"kind": "view", "who": null', "schema"),
        ('"kind": "view", "what": null', ""),
        ('"kind": "view", "what": {"price": "x"}', "schema"),
        ('"kind": "view", "meta": {"id": 1, "ts": "noon"}', "time"),
        ('"kind": "view", "other": {"kind": 1, "big": 1e999, "broken": "\xff"}', ""),
        (f'"kind": "view", "other": {"[" * 500}{"]" * 500}', ""),
    ],
)
def test_a_value_before_or_behind_a_good_one(extra: str, reason: str) -> None:
    rest = f'"meta": {{"id": 1, "ts": {APPEND_MS}}}, "who": {{"uid": "u"}}, "what": {{"sku": 1}}'
    assert _compare(_config(), [f"{{{extra}, {rest}}}".encode("latin-1")]) == {reason: 1}
