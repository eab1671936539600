"""The preset with transforms through everything that is real: worker, trainer, published version, server's scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml

from dedup_cache import Batch, Group, ValueKey, decode, decode_rows, resolve
from recd.audit import audit, format_report
from recd.embedded import EmbeddedKafka, EmbeddedRedis, free_port
from recd.presets import preset_path
from serving.model import ServedModel
from stream.columns import batch_schema
from stream.config import Config
from stream.generator import GeneratorOptions, event_renderer, world_options
from stream.world import World
from tests.serving.served_world import trainer_scores
from tests.stream.rig import Rig, plain_sample_id, read_all
from tests.trainer.reference import Reference, tensors
from tests.trainer.trainers import Trainer, cut_in_force
from trainer.versions import VersionStore

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]
START_MS = 1_700_000_000_000
EVENTS = 1_200
TOLERANCE = 2e-4


@pytest.fixture
def rig(tmp_path: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis, topic_prefix: str) -> Iterator[Rig]:
    """The preset on this broker, one partition, so that the order of the batches is known."""
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix)
    preset = yaml.safe_load(preset_path("transforms").read_text())
    preset["trainer"] |= {
        "checkpoint_url": str(tmp_path / "checkpoints"),
        "versions_url": str(tmp_path / "versions"),
        "checkpoint_every_ms": 300,
        "publish_every_ms": 200,
        "port": free_port(),
    }
    preset["batch"] |= {"max_samples": 64}
    preset["topics"] = rig.tree["topics"] | {"partitions": 1}
    rig.tree = preset | {name: rig.tree[name] for name in ("kafka", "redis", "stream")}
    rig.tree["redis"]["timeout_ms"] = 20_000
    rig.write()
    yield rig.create()
    rig.close()


def test_what_the_trainer_learned_and_the_server_says(rig: Rig) -> None:
    rig.publish(generated(rig.config), partition=0)
    with rig.worker() as worker:
        worker.wait_drained(partitions=1)
    batches = list(whole_batches(rig))
    kept = sum(batch.num_samples for batch in batches)
    assert {float(w) for batch in batches for w in batch.weights} == {1.0, np.float32(1 / 0.34)}
    with Trainer(rig.config, rig.folder) as trainer:
        trainer.wait_for_batches(len(batches))
        assert trainer.stop() == 0, trainer.tail()
    assert cut_in_force(rig.config)["partitions"]["0"]["samples"] == kept
    report = audit(rig.config)
    assert report.ok, format_report(report)
    assert report.sampled_out > kept / 4
    weighted, unweighted = learned(rig.config, batches), learned(rig.config, map(without_weights, batches))
    store = VersionStore(rig.config.trainer.versions_url, keep=1000)
    version = store.load(store.newest())
    served = ServedModel(version)
    apart: list[float] = []
    requests = first_requests(rig)
    for batch in batches:
        scores = trainer_scores(weighted.model, batch, rig.config)
        others = trainer_scores(unweighted.model, batch, rig.config)
        for i, sample in enumerate(batch.sample_ids.tolist()):
            if sample in requests:
                answer = served.score(msgspec.json.encode(requests[sample])).scores
                for label, column in scores.items():
                    assert answer[label] == pytest.approx([column[i]], abs=TOLERANCE)
                apart.append(others["click"][i] - answer["click"][0])
    assert len(apart) > 20
    assert np.mean(apart) > 10 * TOLERANCE, "negatives that stand for three make a click less likely"


def generated(config: Config) -> list[bytes]:
    options = GeneratorOptions(max_events=EVENTS)
    world = World(world_options(options, session_gap_ms=config.session.gap_ms))
    renderer = event_renderer(config, options=options, world=world, run="t")
    values: list[bytes] = []
    while len(values) < EVENTS:
        values += renderer.render(world.next_window(), start_ms=START_MS)
    return values


def whole_batches(rig: Rig) -> Iterator[Batch]:
    """Every committed batch, values that stand by reference put in."""
    values = {m.key: m.value or b"" for m in read_all(rig.config, rig.config.topics.values)}
    schema = batch_schema(rig.config)
    for message in read_all(rig.config, rig.config.topics.batches):
        batch = decode(message.value or b"", schema)
        groups: dict[str, Group] = {}
        for part in schema.groups:
            group = batch.groups[part.name]
            missing = group.missing()
            if missing.size and group.ids is not None:
                keys = [ValueKey(batch.meta.generation, part.name, i).encode() for i in group.ids[missing].tolist()]
                group = resolve(group, decode_rows([values[key] for key in keys], part), missing)
            groups[part.name] = group
        yield replace(batch, groups=groups)


def learned(config: Config, batches: Any) -> Reference:
    """What plain torch learns from the batches, one after the other."""
    reference = Reference(config)
    for batch in batches:
        reference.step([tensors(batch, config=config)], full_batch=config.batch.max_samples)
    return reference


def without_weights(batch: Batch) -> Batch:
    return replace(batch, weights=np.ones_like(batch.weights))


def first_requests(rig: Rig) -> dict[int, dict[str, Any]]:
    """By sample id, what a client would ask for the impressions of each user's first request."""
    requests: dict[int, dict[str, Any]] = {}
    first: dict[Any, Any] = {}
    features = [feature for feature in rig.config.features if feature.source is None]
    for message in read_all(rig.config, rig.config.topics.interactions):
        event = json.loads(message.value or b"")
        is_shown = event["type"] == "impression"
        if is_shown and first.setdefault(event["user_id"], event["request_id"]) == event["request_id"]:
            shared = {f.name: event[f.field or f.name] for f in features if f.group == "user"}
            item = {f.name: event[f.field or f.name] for f in features if f.group == "item"}
            sample = plain_sample_id(message.partition, message.offset)
            requests[sample] = {"features": shared, "candidates": [item]}
    return requests
