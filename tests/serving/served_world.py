"""One user's events, a request that asks the same, and models to answer it: shared by the tests of the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from dedup_cache import FORMAT_VERSION, Batch, BatchMeta, decode, encode
from stream.columns import batch_schema
from stream.config import Config
from stream.event_schema import EventSchema
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import CommitPoint, RecordBlock
from stream.transforms import Transforms
from trainer.ikjt import to_train_batch
from trainer.model import GroupedDLRM
from trainer.versions import Snapshot, TableShard, Version, VersionStore, apply_version

CONFIG = msgspec.convert(
    {
        "features": [
            {"name": "user", "group": "user", "type": "string", "field": "who.id", "required": True},
            {"name": "age", "group": "user", "type": "float", "default": 30.0},
            {"name": "history", "group": "user", "type": "list[int]", "max_length": 3},
            {"name": "taste", "group": "user", "type": "list[float]", "length": 2},
            {"name": "item", "group": "item", "type": "int", "field": "item_id", "required": True},
            {"name": "price", "group": "item", "type": "float"},
            {"name": "tags", "group": "item", "type": "list[string]", "max_length": 2},
            {"name": "seen", "group": "session", "source": "session.items", "max_length": 2},
            {"name": "shown", "group": "session", "source": "session.impressions"},
            {"name": "since", "group": "session", "source": "session.ms_since_last_event"},
        ],
        "labels": [{"name": "click", "engagements": ["click"]}, {"name": "like", "engagements": ["like"]}],
        "events": {"engagements": ["click", "like"], "fields": {"key": "who.id"}},
        "session": {"gap_ms": 10_000, "out_of_orderness_ms": 0},
        "trainer": {"model": {"dim": 8, "default_table": {"rows": 50}, "dense_arch": [16], "over_arch": [32, 16]}},
    },
    Config,
)
T0 = 1_700_000_000_000
USER = {"age": 41.5, "history": [7, 8, 9, 10], "taste": [0.25, -3.0]}
ITEMS: list[dict[str, Any]] = [
    {"item_id": 7, "price": 12.5, "tags": ["news", "sport", "örtlich"]},
    {"item_id": -9, "tags": []},
    {"item_id": 2**62, "price": 0.1, "tags": ["news"]},
    {"item_id": 7, "price": 12.5, "tags": ["news", "sport", "örtlich"]},
]
LATER_MS = 2_500


def events() -> list[dict[str, Any]]:
    """Two requests of one session: the first two items, then, a while later, all of them."""
    shown = [(T0, item) for item in ITEMS[:2]] + [(T0 + LATER_MS, item) for item in ITEMS]
    return [
        {"event_id": i, "type": "impression", "event_time_ms": at, "who": {"id": "ada"}, **USER, **item}
        for i, (at, item) in enumerate(shown)
    ]


def request() -> dict[str, Any]:
    """What a client asks for the second request of `events`."""
    names = {"item_id": "item", "price": "price", "tags": "tags"}
    return {
        "features": {
            "user": "ada",
            **USER,
            "seen": [ITEMS[0]["item_id"], ITEMS[1]["item_id"]],
            "shown": 2,
            "since": LATER_MS,
        },
        "candidates": [{names[key]: value for key, value in item.items()} for item in ITEMS],
    }


def trained_batch(config: Config = CONFIG) -> Batch:
    """The samples of `events` as the stream makes them, over the wire and back."""
    values = [json.dumps(event).encode() for event in events()]
    count = len(values)
    times = np.full(count, T0 + LATER_MS, np.int64)
    pipeline = PartitionPipeline(PipelineConfig.of(config), partition=0, start=CommitPoint(0))
    block = RecordBlock(0, np.arange(count), times, [None] * count, list(values))
    fed = pipeline.feed(block)
    assert not fed.quarantined
    samples = pipeline.advance(T0 + 10**6).samples
    assert samples is not None
    schema, transforms = batch_schema(config), Transforms(config.features, config.derived)
    meta = BatchMeta(FORMAT_VERSION, schema.digest(), "", "interactions", 0, 0, count - 1, 0, T0, T0 + LATER_MS, T0)
    batch = Batch(
        samples.labels,
        samples.weights,
        samples.scores,
        np.arange(samples.num_samples, dtype=np.uint64),
        samples.event_times_ms,
        samples.append_times_ms,
        {name: transforms.distinct(rows, group=name, salt=b"1").group for name, rows in samples.groups.items()},
        meta,
    )
    return decode(encode(batch, schema), schema)


def new_model(seed: int, config: Config = CONFIG) -> GroupedDLRM:
    """A model with weights large enough for scores to differ."""
    torch.manual_seed(seed)
    model = GroupedDLRM(config.features, labels=config.labels, config=config.trainer.model, derived=config.derived)
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(torch.randn_like(weights) / 3)
    return model


def snapshot(model: GroupedDLRM, *, weights_ms: int = T0, config: Config = CONFIG) -> Snapshot:
    """What a trainer publishes of a model."""
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    schema = EventSchema(config.events, features=config.features, labels=config.labels)
    tables = {key.split(".")[-2]: value for key, value in state.items() if ".t_" in key}
    return Snapshot(
        step=1,
        samples=1,
        stream_time_ms=T0,
        weights_ms=weights_ms,
        dense={key: value for key, value in state.items() if ".t_" not in key},
        shards=[TableShard(name, *value.shape, 0, 0, value) for name, value in tables.items()],
        config={
            "features": msgspec.to_builtins(config.features),
            "derived": msgspec.to_builtins(config.derived),
            "labels": msgspec.to_builtins(config.labels),
            "model": msgspec.to_builtins(config.trainer.model, str_keys=True),
            "items": schema.types[config.events.fields.item],
        },
    )


def published(model: GroupedDLRM, folder: Path, config: Config = CONFIG) -> Version:
    """The model as a version that went over the disk."""
    store = VersionStore(str(folder), keep=100)
    return store.load(store.publish(snapshot(model, config=config)))


def trainer_scores(model: GroupedDLRM, batch: Batch, config: Config = CONFIG) -> dict[str, list[float]]:
    """What the trainer's model says of a batch, by label."""
    with torch.inference_mode():
        scores = torch.sigmoid(model(to_train_batch(batch, specs=model.specs, dedup=True))).numpy()
    return {label.name: scores[:, i].tolist() for i, label in enumerate(config.labels)}


def expected_scores(version: Version) -> dict[str, list[float]]:
    """What the trainer's code says of `request()` with a version's weights: the later samples of `events`."""
    model = new_model(0)
    apply_version(model, version)
    return {name: scores[2:] for name, scores in trainer_scores(model, trained_batch()).items()}
