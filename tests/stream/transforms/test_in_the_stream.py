"""A worker on a real broker writes what the transforms make of each event's own features, by reference too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dedup_cache import Batch, ValueKey, decode_rows, expand, resolve
from recd.audit import audit, format_report
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from stream.columns import batch_schema
from stream.transforms import Transform
from tests.stream.rig import Rig, is_impression, plain_sample_id, read_all, traffic
from tests.stream.transforms.slow import run_slowly

pytestmark = pytest.mark.kafka
HASH = {"sigrid_hash": {"buckets": 1000, "salt": 5}}
GRAMS = {"ngram": {"n": 3}}
ITEM = {"positive_modulus": {"modulus": 7}}


@pytest.fixture
def rig(tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix)
    features = {feature["name"]: feature for feature in rig.tree["features"]}
    features["history"]["transforms"] = [HASH]
    features["item"]["transforms"] = [ITEM]
    rig.tree["derived"] = [{"name": "grams", "inputs": ["history"], "transforms": [GRAMS]}]
    rig.tree["session"]["keep_negatives"] = 0.5
    rig.tree["redis"]["timeout_ms"] = 20_000  # by reference, however busy the machine
    rig.write()
    yield rig.create()
    rig.close()


def slowly(ids: list[int], *transforms: dict[str, object]) -> list[int]:
    for transform in transforms:
        (ids,) = run_slowly(msgspec.convert(transform, Transform), [[ids]])
    return ids


def test_batches_hold_transformed_values(rig: Rig) -> None:
    rig.publish(traffic(sessions=25))
    with rig.worker() as worker:
        worker.wait_drained()
    report = audit(rig.config)
    assert report.ok, format_report(report)
    assert report.sampled_out > 0
    assert report.due + report.sampled_out == report.impressions
    events = {
        plain_sample_id(message.partition, message.offset): json.loads(message.value or b"")
        for message in read_all(rig.config, rig.config.topics.interactions)
        if is_impression(message.value)
    }
    values = {m.key: m.value or b"" for m in read_all(rig.config, rig.config.topics.values)}
    seen = 0
    assert values, "a row of so many ids goes by reference"
    for batch in rig.batches():
        made = resolved(batch, rig, values)
        for i, sample in enumerate(batch.sample_ids.tolist()):
            history = slowly(events[sample]["history"], HASH)
            assert made["history"][i] == history
            assert made["grams"][i] == slowly(history, GRAMS)
            assert made["item"][i] == slowly([events[sample]["item_id"]], ITEM)
            seen += 1
    assert seen == report.due


def resolved(batch: Batch, rig: Rig, values: dict[bytes | None, bytes]) -> dict[str, list[list[int]]]:
    """By feature, the ids of every sample."""
    columns: dict[str, list[list[int]]] = {}
    for schema in batch_schema(rig.config).groups:
        group = batch.groups[schema.name]
        missing = group.missing()
        if missing.size and group.ids is not None:
            keys = [ValueKey(batch.meta.generation, schema.name, row).encode() for row in group.ids[missing].tolist()]
            group = resolve(group, decode_rows([values[key] for key in keys], schema), missing)
        for name, column in expand(group).lists.items():
            columns[name] = [row.tolist() for row in column.rows()]
    return columns
