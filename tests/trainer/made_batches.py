"""Batches with something to learn in them, made without a stream: sessions of users over items."""

from collections.abc import Iterator

import numpy as np
from msgspec.structs import replace

from dedup_cache import Batch, BatchMeta, BatchSchema, Group, Jagged, Rows, deduplicate, sample_id
from stream.columns import batch_schema
from stream.config import Config, FeatureConfig, InteractionConfig, LabelConfig, ModelConfig, TableConfig, TrainerConfig

FEATURES = (
    FeatureConfig(name="user", group="user"),
    FeatureConfig(name="history", group="user", type="list[int]"),
    FeatureConfig(name="age", group="user", type="float"),
    FeatureConfig(name="item", group="item"),
    FeatureConfig(name="tags", group="item", type="list[int]"),
    FeatureConfig(name="price", group="item", type="float"),
    FeatureConfig(name="hour", group="context"),
)
LABELS = (
    LabelConfig(name="click", engagements=("click",), score_field="p"),
    LabelConfig(name="buy", engagements=("click",)),
)
MODEL = ModelConfig(
    dim=8,
    default_table=TableConfig(rows=500),
    tables={"tags": TableConfig(rows=50, pooling="mean")},
    dense_arch=(16,),
    over_arch=(32,),
)
HISTORY, TAGS = TableConfig(rows=500), MODEL.tables["tags"]
VARIANTS = {
    "dot": MODEL,
    "cross": replace(MODEL, interaction=InteractionConfig(kind="cross", layers=2, rank=4)),
    "attention": replace(MODEL, tables={"tags": TAGS, "history": replace(HISTORY, pooling="attention")}),
    "transformer": replace(MODEL, tables={"tags": TAGS, "history": replace(HISTORY, pooling="transformer")}),
    "shared bag": replace(MODEL, tables={"tags": TAGS, "history": replace(HISTORY, shares="item")}),
    "shared sequence": replace(
        MODEL, tables={"tags": TAGS, "history": replace(HISTORY, shares="item", pooling="transformer")}
    ),
    "dimensions": replace(MODEL, tables={"tags": replace(TAGS, dim=4), "history": replace(HISTORY, dim=16)}),
    "sums": replace(MODEL, tables={"tags": replace(TAGS, pooling="sum")}),
    "heads": replace(MODEL, heads=(6,)),
    "mixed": replace(
        MODEL,
        interaction=InteractionConfig(vectors=2),
        tables={"tags": replace(TAGS, dim=4), "history": replace(HISTORY, pooling="transformer")},
    ),
}
USERS, ITEMS = 60, 80


def make_config(*, model: ModelConfig = MODEL, **trainer: object) -> Config:
    given = {"announce": False} | trainer
    return Config(features=FEATURES, labels=LABELS, trainer=TrainerConfig(model=model, **given))


class World:
    """Endless batches, the same for a seed."""

    def __init__(self, config: Config, *, seed: int = 0, samples: int = 64) -> None:
        self.schema: BatchSchema = batch_schema(config)
        self._rng = np.random.default_rng(seed)
        self._samples = samples
        truth = np.random.default_rng(99)
        self._user_factors, self._item_factors = truth.normal(size=(USERS, 3)), truth.normal(size=(ITEMS, 3))
        self._item_tags = truth.integers(0, 40, size=(ITEMS, 3))
        self._offset = 0

    def batches(self, count: int, *, partition: int = 0) -> Iterator[Batch]:
        for _ in range(count):
            yield self.batch(partition=partition)

    def batch(self, *, partition: int = 0) -> Batch:
        rng, size = self._rng, self._samples
        sessions = np.sort(rng.integers(0, 8, size))
        users = rng.integers(0, USERS, 8)[sessions]
        items = rng.integers(0, ITEMS, size)
        logits = (self._user_factors[users] * self._item_factors[items]).sum(axis=1) - 0.5
        truth = 1 / (1 + np.exp(-logits))
        clicks = rng.random(size) < truth
        buys = clicks & (rng.random(size) < 0.4)
        groups = {
            "user": self._user_rows(users, sessions, items),
            "item": Rows(
                (items[:, None] / 7).astype(np.float32),
                {"item": Jagged.from_rows([[i] for i in items]), "tags": Jagged.from_rows(self._item_tags[items])},
            ),
            "context": Rows(
                np.zeros((size, 0), np.float32), {"hour": Jagged.from_rows([[h] for h in rng.integers(0, 24, size)])}
            ),
        }
        offsets = self._offset + np.arange(size)
        self._offset += size
        times = 1_700_000_000_000 + offsets
        return Batch(
            labels=np.stack([clicks, buys], axis=1).astype(np.float32),
            weights=np.ones(size, np.float32),
            scores=np.stack([truth, np.full(size, np.nan)], axis=1).astype(np.float32),
            sample_ids=sample_id(partition, offsets),
            event_times_ms=times,
            append_times_ms=times + 5,
            groups={name: deduplicate(rows, salt=b"t").group for name, rows in groups.items()},
            meta=self._meta(partition, offsets, times),
        )

    def _user_rows(self, users: np.ndarray, sessions: np.ndarray, items: np.ndarray) -> Rows:
        """Histories grow with the session: overlapping slices of one list."""
        starts = np.searchsorted(sessions, sessions)
        lengths = np.minimum(np.arange(len(users)) - starts, 5)
        first = np.arange(len(users)) - lengths
        history = Jagged(items.astype(np.int64), first.astype(np.int32), lengths.astype(np.int32))
        lists = {"user": Jagged.from_rows([[u] for u in users]), "history": history}
        return Rows((users[:, None] % 5).astype(np.float32), lists)

    def _meta(self, partition: int, offsets: np.ndarray, times: np.ndarray) -> BatchMeta:
        return BatchMeta(
            format_version=1,
            schema_digest=self.schema.digest(),
            generation="",
            source_topic="interactions",
            source_partition=partition,
            first_offset=int(offsets[0]),
            last_offset=int(offsets[-1]),
            seq=int(offsets[0]),
            min_event_time_ms=int(times[0]),
            max_event_time_ms=int(times[-1]),
            written_ms=int(times[-1]),
        )


def expanded(batch: Batch, name: str) -> Group:
    """The group with a row for every sample."""
    group = batch.groups[name]
    return Group(group.rows.take(group.inverse), np.arange(batch.num_samples, dtype=np.int32))


def with_sharding(config: Config, kind: str) -> Config:
    """The same model with every table sharded in one way; "row_wise lists": the history's row-wise, others whole."""
    if kind == "row_wise lists":
        config = with_sharding(config, "table_wise")
        tables = config.trainer.model.tables
        tables = {**tables, "history": replace(tables["history"], sharding=("row_wise",))}
        return replace(config, trainer=replace(config.trainer, model=replace(config.trainer.model, tables=tables)))
    model = replace(
        config.trainer.model,
        default_table=replace(MODEL.default_table, sharding=(kind,)),
        tables={name: replace(given, sharding=(kind,)) for name, given in config.trainer.model.tables.items()},
    )
    return replace(config, trainer=replace(config.trainer, model=model))
