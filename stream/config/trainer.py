"""The trainer with its model, and the server."""

from __future__ import annotations

from typing import Literal

from stream.config.section import NonNegative, Positive, Section


class TableConfig(Section, frozen=True):
    """One embedding table; features not named in `tables` get the default."""

    rows: Positive = 100_000
    dim: Positive | None = None
    """Embedding dimension; the model's `dim` by default (they must agree for the dot interaction)."""
    pooling: Literal["sum", "mean"] = "sum"
    sharding: tuple[Literal["table_wise", "column_wise", "row_wise", "data_parallel"], ...] = ()
    """Allowed kinds; empty leaves the choice to TorchRec's planner."""


class ModelConfig(Section, frozen=True):
    """A DLRM: per group, tables and a dense arch on distinct rows; then dot interaction and the over arch."""

    dim: Positive = 16
    tables: dict[str, TableConfig] = {}
    """By feature name."""
    default_table: TableConfig = TableConfig()
    dense_arch: tuple[Positive, ...] = (64,)
    """Hidden layers of each group's dense arch; a last one of `dim` is added."""
    over_arch: tuple[Positive, ...] = (128, 64)


class OptimizerConfig(Section, frozen=True):
    """Exact fused optimizer for tables, torch's for dense layers."""

    sparse: Literal["rowwise_adagrad", "sgd"] = "rowwise_adagrad"
    sparse_learning_rate: float = 0.05
    dense: Literal["adam", "sgd", "adagrad"] = "adam"
    dense_learning_rate: float = 0.001


class TrainerConfig(Section, frozen=True):
    """The always-on trainer."""

    ranks: Positive = 1
    threads: Positive = 1
    """Torch threads per rank on a CPU; part of what bit-for-bit resuming depends on."""
    seed: int = 0
    dedup: bool = True
    """False expands every group before the model: the baseline."""
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint_url: str = "var/checkpoints"
    checkpoint_every_ms: Positive = 10_000
    keep_checkpoints: Positive = 3
    versions_url: str = "var/versions"
    publish_every_ms: Positive = 1_000
    keep_versions: Positive = 20
    prefetch_batches: Positive = 16
    idle_timeout_ms: Positive = 100
    """A rank without data joins the step with a dummy sample after this wait, when another rank has some."""
    host: str = "127.0.0.1"
    port: NonNegative = 6067
    max_restarts: NonNegative = 100
    """How often torchrun starts the ranks again after one died."""


class ServingConfig(Section, frozen=True):
    """The scoring server."""

    host: str = "127.0.0.1"
    port: NonNegative = 6068
    poll_ms: Positive = 50
    """How often the newest version is looked for."""
    threads: Positive = 1
    """Requests that are scored at the same time, each on one torch thread."""
