"""Scores a stretch of the batches topic with one published version that no longer learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from dedup_cache.redis_store import RedisStore
from stream.columns import batch_schema
from stream.config import Config
from stream.kafka import Message, Reader, begin_offsets, end_offsets
from trainer.evaluation import Evaluation
from trainer.feed import BatchReader, FedBatch
from trainer.metrics import LabelMetrics, compute
from trainer.model import GroupedDLRM
from trainer.resolver import Resolver, ValuesLog
from trainer.turns import Turn
from trainer.versions import VersionStore, apply_version

POLL_MESSAGES, POLL_MS = 64, 200


@dataclass(frozen=True)
class ReplayResult:
    """What a frozen version was worth on a stretch."""

    version: int
    samples: int
    labels: dict[str, LabelMetrics]
    """`ne_window` and `base_ne` included, as in progressive evaluation."""


def evaluate(
    config: Config,
    *,
    version: int | None = None,
    begin: Mapping[int, int] | None = None,
    end: Mapping[int, int] | None = None,
) -> ReplayResult:
    """Score the batches from offsets `begin` to `end` (by partition; None: the whole log as it is now).

    `version` None takes the newest. Raises VersionError, FeedError (a batch that cannot be decoded), KafkaError.
    """
    store = VersionStore(config.trainer.versions_url, keep=config.trainer.keep_versions)
    number = version if version is not None else (store.newest() or 0)
    model = GroupedDLRM(
        config.features,
        labels=config.labels,
        config=config.trainer.model,
        derived=config.derived,
        device=torch.device("meta"),
    )
    apply_version(model, store.load(number))
    evaluation = Evaluation(len(config.labels))
    with torch.inference_mode():
        for fed in _batches(config, model=model, begin=begin, end=end):
            if fed.num_samples:
                evaluation.add(
                    torch.sigmoid(model(fed.tensors)).numpy(),
                    labels=fed.tensors.labels.numpy(),
                    weights=fed.tensors.weights.numpy(),
                    scores=fed.tensors.scores.numpy(),
                )
    metrics = compute(evaluation.totals())
    names = [label.name for label in config.labels]
    return ReplayResult(number, evaluation.samples, dict(zip(names, metrics, strict=True)))


def _batches(
    config: Config, *, model: GroupedDLRM, begin: Mapping[int, int] | None, end: Mapping[int, int] | None
) -> Iterator[FedBatch]:
    kafka, topic, schema = config.kafka, config.topics.batches, batch_schema(config)
    begins, ends = begin_offsets(kafka, topic), end_offsets(kafka, topic)
    positions = {p: max(first, (begin or {}).get(p, first)) for p, first in begins.items()}
    limits = {p: min(last, (end or {}).get(p, last)) for p, last in ends.items()}
    redis = RedisStore(config.redis.url, namespace=config.redis.namespace, timeout_ms=config.redis.timeout_ms)
    resolver = Resolver(schema, store=redis, log=ValuesLog(kafka, topic=config.topics.values))
    reader = BatchReader(schema, model.specs, config.trainer.dedup, resolver)
    for message in _messages(config, positions=positions, limits=limits):
        yield reader.read(Turn(message, message.partition))
    redis.close()


def _messages(config: Config, *, positions: dict[int, int], limits: dict[int, int]) -> Iterator[Message]:
    wanted = {p: position for p, position in positions.items() if position < limits.get(p, 0)}
    if not wanted:
        return
    with Reader(config.kafka, topic=config.topics.batches, positions=wanted) as reader:
        while any(reader.positions()[p] < limits[p] for p in wanted):
            for message in reader.poll(max_messages=POLL_MESSAGES, timeout_ms=POLL_MS):
                if message.offset < limits[message.partition]:
                    yield message
