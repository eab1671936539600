"""Avro records with a schema registry: what passes, what goes to quarantine and why, what waits."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from fastavro import parse_schema, schemaless_writer

from recd.advise import run_advise
from recd.archive import ArchiveOptions, make_archiver
from recd.audit import audit, format_report
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from recd.presets import preset_path
from stream.archive.history import ArchiveHistory
from stream.avro import HEAD
from stream.avro_schema import avro_schema, record_encoder
from stream.config import Config, ConfigError, RegistryConfig, load
from stream.events import Decoded, Decoder
from stream.generator import GeneratorOptions, generate
from stream.kafka import Writer, create_topic
from stream.kafka.registry import RegistryUnavailable, SchemaRegistry
from stream.records import RecordBlock
from tests.stream.registry_server import RegistryServer
from tests.stream.replays import delete_records, replay, rows_of
from tests.stream.rig import START_MS, Rig, read_all, traffic

FEATURES = (
    '[{name: user_id, group: u, type: int, required: true}, {name: tags, group: u, type: "list[string]"},'
    ' {name: price, group: i, type: float}, {name: scores, group: i, type: "list[float]", length: 2}]'
)
MICROS = {"type": "long", "logicalType": "timestamp-micros"}
EVENT = {
    "event_id": "e1",
    "user_id": 7,
    "event_time_ms": START_MS,
    "type": "impression",
    "item_id": "a",
    "request_id": "r",
    "tags": ["x", "y"],
    "price": 2.5,
    "scores": [1.0, 2.0],
}


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    server = RegistryServer().start()
    yield server
    server.stop()


def config_of(registry: RegistryServer | None, *overrides: str) -> Config:
    """With Avro where there is a registry, else with JSON."""
    avro = ("events.format=avro", f"events.registry.url={registry.url}") if registry else ()
    return load(None, overrides=(f"features={FEATURES}", *avro, *overrides))


def decoder_of(config: Config) -> Decoder:
    return Decoder(config.events, features=config.features, labels=config.labels, max_ahead_ms=60_000)


def decoded(config: Config, *values: bytes | None) -> Decoded:
    times = np.full(len(values), START_MS + 1000, np.int64)
    block = RecordBlock(0, np.arange(len(values)), times, [b"k"] * len(values), list(values))
    return decoder_of(config).decode(block)


def written(schema: str | dict[str, Any], schema_id: int, event: dict[str, Any]) -> bytes:
    body = io.BytesIO()
    schemaless_writer(body, parse_schema(json.loads(schema) if isinstance(schema, str) else schema), event)
    return HEAD.pack(0, schema_id) + body.getvalue()


def without(schema: str, *names: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(schema)
    tree["fields"] = [field for field in tree["fields"] if field["name"] not in names]
    return tree


def test_avro_and_json_give_the_same_columns(registry: RegistryServer) -> None:
    config = config_of(registry)
    events: list[dict[str, Any]] = [EVENT, {**EVENT, "event_id": "e2", "tags": None, "price": None, "item_id": 5}]
    click = {"event_id": "e3", "user_id": "7", "event_time_ms": START_MS, "type": "click", "impression_id": "e1"}
    events = [*events, {name: value for name, value in events[1].items() if value is not None}, click]
    encode = record_encoder(config)
    values = [msgspec.json.encode(event) for event in events]
    from_avro = decoded(config, *map(encode, values))
    from_json = decoded(config_of(None), *values)
    assert [one.detail for one in from_avro.quarantined] == ["$.user_id: Expected int, got str (schema 1)"]
    assert [one.detail for one in from_json.quarantined] == ["$.user_id: Expected int, got str"]
    assert from_avro.events.rows.tolist() == from_json.events.rows.tolist()
    assert from_avro.events.keys.tolist() == from_json.events.keys.tolist()
    one, other = from_avro.events.impressions, from_json.events.impressions
    for name in ("dense", "ids", "has_id", "scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert [column.values.tolist() for column in one.lists] == [column.values.tolist() for column in other.lists]


def test_schema_evolution(registry: RegistryServer) -> None:
    config = config_of(registry)
    schema = avro_schema(config)
    first = registry.register(schema)
    added = json.loads(schema)
    added["fields"].append({"name": "new", "type": {"type": "map", "values": "long"}})
    second = registry.register(json.dumps(added))
    required = without(schema, "user_id")
    third = registry.register(json.dumps(required))
    optional = without(schema, "price", "tags")
    fourth = registry.register(json.dumps(optional))
    untimed = without(schema, "event_time_ms")
    fifth = registry.register(json.dumps(untimed))
    found = decoded(
        config,
        written(schema, first, EVENT),
        written(added, second, {**EVENT, "new": {"a": 1}}),
        written(required, third, EVENT),
        written(optional, fourth, EVENT),
        written(untimed, fifth, EVENT),
        written(schema, first, {**EVENT, "item_id": None}),
    )
    assert found.events.rows["offset"].tolist() == [0, 1, 3]
    assert [(one.offset, one.reason, one.detail) for one in found.quarantined] == [
        (2, "schema", "$.user_id: required, but missing (schema 3)"),
        (4, "time", "$.event_time_ms: required, but missing (schema 5)"),
        (5, "schema", "$.item_id: required, but missing (schema 1)"),
    ]
    assert registry.requests == 5, "a schema is fetched once"


def test_schemas_that_refer_to_others(registry: RegistryServer) -> None:
    """Other subjects, which refer further, and one of them twice; the time stands in the farthest."""
    when = {"type": "record", "name": "When", "namespace": "far", "fields": [{"name": "at", "type": MICROS}]}
    who = {
        "type": "record",
        "name": "Who",
        "namespace": "near",
        "fields": [{"name": "id", "type": "long"}, {"name": "seen", "type": ["null", "far.When"]}],
    }
    event = {
        "type": "record",
        "name": "Event",
        "fields": [
            {"name": "who", "type": "near.Who"},
            {"name": "when", "type": "far.When"},
            *({"name": name, "type": "string"} for name in ("event_id", "type", "item_id")),
        ],
    }
    registry.refer("far.When", json.dumps(when))
    registry.refer("near.Who", json.dumps(who), "far.When")
    schema_id = registry.refer("event", json.dumps(event), "near.Who", "far.When")
    lost = registry.refer("lost", json.dumps({**event, "doc": "other"}), "nowhere")
    config = config_of(
        registry, "features=[{name: u, group: u, field: who.id}]", "events.fields={key: who.id, time: when.at}"
    )
    at = {"at": START_MS * 1_000}
    body = io.BytesIO()
    within = json.dumps({**who, "fields": [who["fields"][0], {"name": "seen", "type": ["null", when]}]})
    text = json.dumps(event).replace('"near.Who"', within)
    found = {"event_id": "e", "type": "impression", "item_id": "a", "who": {"id": 7, "seen": at}, "when": at}
    schemaless_writer(body, parse_schema(json.loads(text)), found)
    read = decoded(config, HEAD.pack(0, schema_id) + body.getvalue(), HEAD.pack(0, schema_id) + body.getvalue()[:-1])
    assert read.events.rows["time_ms"].tolist() == [START_MS]
    assert read.events.impressions.ids.ravel().tolist() == [7]
    assert [one.reason for one in read.quarantined] == ["malformed"]
    with pytest.raises(RegistryUnavailable, match=r"schema 4, which refers to version 1 of 'nowhere'.*no such version"):
        decoded(config, HEAD.pack(0, lost) + body.getvalue())


@pytest.mark.parametrize(
    ("field", "written_as", "value", "price"),
    [
        ("price", "int", 3, 3.0),
        ("price", ["null", "long", "double"], 3, 3.0),
        ("price", "float", 2.5, 2.5),
        ("tags", {"type": "array", "items": {"type": "enum", "name": "Tag", "symbols": ["x", "y"]}}, ["x", "y"], 2.5),
        ("tags", {"type": "array", "items": ["null", "string"]}, ["x", "y"], 2.5),
        ("user_id", "int", 7, 2.5),
        ("item_id", {"type": "fixed", "name": "Item", "size": 1}, b"a", None),
        ("tags", "string", "x", None),
    ],
)
def test_a_field_of_another_type(
    registry: RegistryServer, field: str, written_as: Any, value: Any, price: float | None
) -> None:
    """Types that Avro itself would promote pass; what the configuration cannot read is a fault of the record."""
    config = config_of(registry)
    schema = json.loads(avro_schema(config))
    schema["fields"] = [{**one, "type": written_as} if one["name"] == field else one for one in schema["fields"]]
    schema["fields"] = [{k: v for k, v in one.items() if k != "default"} for one in reversed(schema["fields"])]
    found = decoded(config, written(schema, registry.register(json.dumps(schema)), {**EVENT, field: value}))
    if price is None:
        (one,) = found.quarantined
        assert (one.reason, field in one.detail, one.detail.endswith("(schema 1)")) == ("schema", True, True)
        return
    assert found.quarantined == []
    plain = decoded(config_of(None), json.dumps({**EVENT, "price": price}).encode())
    assert found.events.rows["time_ms"].tolist() == [START_MS]
    assert found.events.impressions.dense.tolist() == plain.events.impressions.dense.tolist()
    assert [c.values.tolist() for c in found.events.impressions.lists] == [
        c.values.tolist() for c in plain.events.impressions.lists
    ]


def test_bytes_that_are_none(registry: RegistryServer) -> None:
    config = config_of(registry)
    schema = avro_schema(config)
    good = written(schema, registry.register(schema), EVENT)
    recursive = {"type": "record", "name": "R", "fields": [{"name": "next", "type": ["null", "R"]}]}
    deep = HEAD.pack(0, registry.register(json.dumps(recursive))) + b"\x02" * 60_000 + b"\x00"
    nonsense = registry.register('{"type": "nonsense"}')
    values = {
        b"": "it begins with nothing",
        b"\x00\x00\x00": "it begins with 000000",
        b"\x01" + good[1:]: "it begins with 0100000001",
        json.dumps(EVENT).encode(): "it begins with 7b",
        HEAD.pack(0, 99) + good[5:]: "the registry knows no schema 99",
        HEAD.pack(0, 2**32 - 1) + good[5:]: "the registry knows no schema 4294967295",
        HEAD.pack(0, nonsense): f"schema {nonsense} is no Avro schema",
        good[:-1]: "no body of schema 1: EOFError",
        good[:6]: "no body of schema 1",
        good + b"\x00": "1 bytes behind the body of schema 1",
        deep: "no body of schema 2: RecursionError",
    }
    found = decoded(config, *values, None, good)
    assert found.events.rows["offset"].tolist() == [len(values) + 1]
    assert [one.reason for one in found.quarantined] == ["malformed"] * (len(values) + 1)
    for one, words in zip(found.quarantined, values.values(), strict=False):
        assert words in one.detail
    assert found.quarantined[-1].detail == "$: the record has no value"


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"price": float("nan")}, "schema", "$.price"),
        ({"price": float("inf")}, "schema", "$.price"),
        ({"scores": [1.0]}, "schema", "$.scores"),
        ({"user_id": "seven"}, "schema", "$.user_id: Expected int, got str"),
        ({"event_time_ms": -1}, "time", "$.event_time_ms"),
        ({"event_time_ms": START_MS + 10**8}, "ahead", "$.event_time_ms"),
        ({"type": "other"}, "type", "unknown event type 'other' (schema 1)"),
    ],
)
def test_values_that_do_not_fit(registry: RegistryServer, change: dict[str, Any], reason: str, words: str) -> None:
    config = config_of(registry)
    schema = avro_schema(config)
    (one,) = decoded(config, written(schema, registry.register(schema), {**EVENT, **change})).quarantined
    assert one.reason == reason
    assert words in one.detail
    assert one.detail.endswith("(schema 1)")


def test_whatever_the_bytes_a_record_comes_out_once(registry: RegistryServer) -> None:
    config = config_of(registry)
    schema = avro_schema(config)
    good, chance = written(schema, registry.register(schema), EVENT), random.Random(0)
    values = []
    for _ in range(2_000):
        spoilt = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            spoilt[chance.randrange(5, len(spoilt))] = chance.randrange(256)
        values.append(bytes(spoilt[: chance.randrange(5, len(spoilt) + 1)]))
    found = decoded(config, *values)
    offsets = found.events.rows["offset"].tolist() + [one.offset for one in found.quarantined]
    assert sorted(offsets) == list(range(2_000))


@pytest.mark.parametrize(("logical", "factor"), [("timestamp-millis", 1), ("timestamp-micros", 1_000)])
def test_times_by_their_logical_type(registry: RegistryServer, logical: str, factor: int) -> None:
    config = config_of(registry)
    schema = json.loads(avro_schema(config))
    plain = json.dumps(schema)
    time = next(field for field in schema["fields"] if field["name"] == "event_time_ms")
    time["type"] = {"type": "long", "logicalType": logical}
    schema_id = registry.register(json.dumps(schema))
    value = written(plain, schema_id, {**EVENT, "event_time_ms": START_MS * factor})
    assert decoded(config, value).events.rows["time_ms"].tolist() == [START_MS]


def test_nested_paths_have_nested_records(registry: RegistryServer) -> None:
    config = config_of(registry, "events.fields.key=user.id", "events.fields.item=item.id")
    event = {**EVENT, "user": {"id": 7}, "item": {"id": "a"}}
    found = decoded(config, record_encoder(config)(json.dumps(event).encode()))
    assert found.quarantined == []
    assert found.events.rows["has_item"].tolist() == [True]


def test_an_outage_is_no_fault_of_the_records(registry: RegistryServer) -> None:
    config = config_of(registry)
    schema = avro_schema(config)
    first, second = registry.register(schema), registry.register(json.dumps(without(schema, "tags")))
    decoder = decoder_of(config)
    times = np.full(1, START_MS, np.int64)

    def read(schema_id: int) -> Decoded:
        value = written(schema if schema_id == first else without(schema, "tags"), schema_id, EVENT)
        return decoder.decode(RecordBlock(0, np.zeros(1, np.int64), times, [None], [value]))

    assert len(read(first).events.rows) == 1
    registry.stop()
    assert len(read(first).events.rows) == 1, "a known schema needs no registry"
    with pytest.raises(RegistryUnavailable, match=r"asking for schema 2 at the schema registry http.*events.registry"):
        read(second)
    registry.start()
    registry.status = 500
    with pytest.raises(RegistryUnavailable):
        read(second)
    registry.status = 0
    assert len(read(second).events.rows) == 1


def test_the_wire_is_that_of_the_clients_own_serializer() -> None:
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    config = config_of(None)
    client = SchemaRegistryClient.new_client({"url": "mock://wire"})
    schema = avro_schema(config)
    value = AvroSerializer(client, schema)(EVENT, SerializationContext("t", MessageField.VALUE))
    schema_id = client.get_latest_version("t-value").schema_id
    assert schema_id is not None
    assert value == written(schema, schema_id, EVENT)


def test_options_that_the_client_refuses_are_named() -> None:
    with pytest.raises(ConfigError, match=r"events\.registry: .*nonsense"):
        SchemaRegistry(RegistryConfig(options={"nonsense": "1"}))


@pytest.mark.kafka
def test_a_worker_reads_avro_and_waits_for_the_registry(
    kafka: EmbeddedKafka, redis_server: EmbeddedRedis, tmp_path: Path, topic_prefix: str, registry: RegistryServer
) -> None:
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix)
    url = os.environ.get("RECD_TEST_REGISTRY", registry.url)
    rig.tree["events"] = {"format": "avro", "registry": {"url": url}}
    rig.tree["archive"] = {"url": str(tmp_path / "archive")}
    rig.tree["topics"]["archive"] = f"{topic_prefix}archive"
    rig.write()
    rig.create()
    encode = record_encoder(rig.config)
    events = traffic(sessions=30)
    values = [encode(json.dumps(event).encode()) for event in events]
    if url == registry.url:
        registry.stop()
    _publish(rig, events, values)
    rig.publish([b"\x00\x00\x00\x27\x0f", values[0][:-1], json.dumps(events[0]).encode()])
    with rig.app() as app:
        if url == registry.url:
            waiting = app.wait(lambda state: "schema registry" in state["last_error"], "a word about the registry")
            assert not waiting["ready"]
            assert rig.rejects("quarantine") == []
            registry.start()
        app.wait_drained()
    assert [one.reason for one in rig.rejects("quarantine")] == ["malformed"] * 3
    shown = sum(event["type"] == "impression" for event in events)
    assert sum(map(len, rig.samples().values())) == shown
    report = audit(rig.config)
    assert report.ok, format_report(report)
    _check_history(rig)


def _check_history(rig: Rig) -> None:
    """Archived, replayed from the log and from the archive, and advised on: as with JSON."""
    live = rows_of(rig.config, rig.config.topics.batches)
    for what in ("events", "samples"):
        asked = ArchiveOptions(what=(what,), until_end=True, accept_gap=False)
        make_archiver(rig.config, asked, what=what, stop=Event()).run()
    replay(rig, "from-log")
    sound = sum(map(len, live.values()))
    advice = run_advise(rig.config, records=None, first_time=None, last_time=None)
    assert (advice.samples, {f.name for f in advice.features}) == (sound, {"user", "history", "item", "seen"})
    delete_records(rig, rig.config.topics.interactions)
    replay(rig, "from-archive", history=ArchiveHistory(rig.config, rig.config.archive.url))
    assert rows_of(rig.config, rig.prefix + "from-archive") == live == rows_of(rig.config, rig.prefix + "from-log")
    files = list((Path(rig.config.archive.url)).rglob("*.parquet"))
    assert sum(pq.read_metadata(file).num_rows for file in files if "/samples/" in str(file)) == sound


def _publish(rig: Rig, events: list[dict[str, Any]], values: list[bytes]) -> None:
    with Writer(rig.config.kafka, linger_ms=0) as writer:
        for event, value in zip(events, values, strict=True):
            key, partition = str(event["user_id"]).encode(), hash(event["user_id"]) % 2
            writer.send(rig.config.topics.interactions, value, key=key, partition=partition)
        writer.flush(30_000)


@pytest.mark.kafka
def test_the_generator_writes_avro(kafka: EmbeddedKafka, topic_prefix: str, registry: RegistryServer) -> None:
    topic = f"{topic_prefix}interactions"
    config = load(
        preset_path("demo"),
        overrides=(
            f"kafka.bootstrap={kafka.bootstrap}",
            f"topics.interactions={topic}",
            "events.format=avro",
            f"events.registry.url={registry.url}",
        ),
    )
    create_topic(config.kafka, topic, partitions=1)
    generate(config, options=GeneratorOptions(max_events=300, start_ms=START_MS))
    values = [message.value for message in read_all(config, topic)]
    found = decoded(config, *values)
    assert (len(found.events.rows), found.quarantined) == (300, [])
