"""The trainer with its model, and the server."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from stream.config.learning import EvaluationConfig, GuardsConfig
from stream.config.section import Name, NonNegative, Positive, Rate, Section, Share, Weight


class RateConfig(Section, frozen=True):
    """How a learning rate goes over the trainer's steps: a linear rise, then a decay."""

    warmup_steps: NonNegative = 0
    decay: Literal["none", "linear", "cosine", "inverse_sqrt"] = "none"
    decay_steps: Positive = 1_000_000
    """After the rise: when linear and cosine are at the floor, when inverse_sqrt begins to fall."""
    floor: Share = 0.0
    """What the rate never falls below, as a share of it."""


class TableConfig(Section, frozen=True):
    """One embedding table; features not named in `tables` get the default."""

    rows: Positive = 100_000
    dim: Positive | None = None
    """Embedding dimension; the model's `dim` by default. For the dot interaction another one is projected to it."""
    pooling: Literal["sum", "mean", "attention", "transformer"] = "sum"
    """From the embeddings of a list to one vector."""
    shares: Name | None = None
    """Reads the table of this feature in place of one of its own; of what stands here only `pooling` counts then."""
    learning_rate: Rate | None = None
    """In place of `optimizer.sparse_learning_rate`; such a table is looked up by itself."""
    schedule: RateConfig | None = None
    """In place of `optimizer.sparse_schedule`."""
    sharding: tuple[Literal["table_wise", "column_wise", "row_wise", "data_parallel"], ...] = ()
    """Allowed kinds; empty leaves the choice to TorchRec's planner."""


class SequenceConfig(Section, frozen=True):
    """The blocks of a table with `pooling: transformer`."""

    layers: Positive = 1
    heads: Positive = 2
    feed_forward: Positive = 2
    """Width of the hidden layer, in dimensions of the table."""


class InteractionConfig(Section, frozen=True):
    """How the vectors of all features meet: dot products of pairs (DLRM) or low-rank cross layers (DCN-v2)."""

    kind: Literal["dot", "cross"] = "dot"
    vectors: NonNegative = 0
    """So many of each group meet those of other groups, mixed from all of its own on distinct rows; 0: all meet."""
    layers: Positive = 3
    """Cross layers."""
    rank: Positive = 32
    """Of a cross layer's matrix."""


class ModelConfig(Section, frozen=True):
    """A DLRM: per group, tables and a dense arch on distinct rows; then the interaction, the over arch and heads."""

    dim: Positive = 16
    tables: dict[str, TableConfig] = {}
    """By feature name."""
    default_table: TableConfig = TableConfig()
    dense_arch: tuple[Positive, ...] = (64,)
    """Hidden layers of each group's dense arch; a last one of `dim` is added."""
    interaction: InteractionConfig = InteractionConfig()
    sequence: SequenceConfig = SequenceConfig()
    over_arch: tuple[Positive, ...] = (128, 64)
    heads: tuple[Positive, ...] = ()
    """Hidden layers of each label's own head, behind the over arch that all labels share."""
    label_weights: dict[str, Weight] = {}
    """By label, its weight in the loss; 1 by default."""


class DistinctConfig(Section, frozen=True):
    """What the model does on distinct rows: steps that can be switched off one by one (RecD's O5, O6, O7)."""

    lookups: Literal["grouped", "vbe", "off"] = "grouped"
    """O5: embedding lookups and their exchange; `vbe` is TorchRec's own way, by `inverse_indices`."""
    jagged_select: bool = True
    """O6: lists are expanded without padding."""
    layers: bool = True
    """O7: list pooling, dense archs, and the share of the interaction that lies within a group."""


class OptimizerConfig(Section, frozen=True):
    """Exact fused optimizer for tables, torch's for dense layers."""

    sparse: Literal["rowwise_adagrad", "sgd", "adam"] = "rowwise_adagrad"
    """Adam on GPUs only."""
    sparse_learning_rate: Rate = 0.05
    sparse_schedule: RateConfig = RateConfig()
    dense: Literal["adam", "sgd", "adagrad"] = "adam"
    dense_learning_rate: Rate = 0.001
    dense_schedule: RateConfig = RateConfig()


class DeviceConfig(Section, frozen=True):
    """What a rank's device holds and how it computes."""

    memory_bytes: Positive | None = None
    """Of each rank, for tables and their exchange: the planner goes by it; None: what TorchRec assumes."""
    dense: Literal["fp32", "bf16"] = "fp32"
    """Of the dense layers' arithmetic (torch's autocast); weights, optimizers and losses stay fp32."""
    tables: Literal["fp32", "fp16"] = "fp32"
    """Of the tables as they are held while training, on GPUs only; versions have fp32 always."""


class TrainerConfig(Section, frozen=True):
    """The always-on trainer."""

    ranks: Positive = 1
    threads: Positive = 1
    """Torch threads per rank on a CPU; part of what bit-for-bit resuming depends on."""
    seed: int = 0
    dedup: bool = True
    """False expands every group before the model: the baseline."""
    distinct: DistinctConfig = DistinctConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    device: DeviceConfig = DeviceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    guards: GuardsConfig = GuardsConfig()
    checkpoint_url: str = "var/checkpoints"
    checkpoint_every_ms: Positive = 10_000
    keep_checkpoints: Positive = 3
    versions_url: str = "var/versions"
    publish_every_ms: Positive = 1_000
    keep_versions: Positive = 20
    """Besides these, what they build on is kept."""
    full_share: Annotated[float, msgspec.Meta(gt=0)] = 0.5
    """A full version is written when deltas since the last one weigh more than this share of it."""
    max_deltas: Positive = 100
    """The same when there are so many: a server that starts late reads no longer chain."""
    announce: bool = True
    """Tell servers of each version on `topics.versions`."""
    model_name: Name = "recd"
    """Key of the announcements."""
    prefetch_batches: Positive = 16
    """Batches that are decoded ahead of the step."""
    prefetch_bytes: Positive = 268_435_456
    """The same in bytes, whichever is less; one batch always."""
    idle_timeout_ms: Positive = 100
    """A rank without data joins the step with a dummy sample after this wait, when another rank has some."""
    host: str = "127.0.0.1"
    port: NonNegative = 6067
    max_restarts: NonNegative = 100
    """How often in a row, without a new cut in between, all ranks are started again after one died."""


class ServingConfig(Section, frozen=True):
    """The scoring server."""

    host: str = "127.0.0.1"
    port: NonNegative = 6068
    poll_ms: Positive = 50
    """How often the newest version is looked for."""
    threads: Positive = 1
    """Forward passes at the same time, each on one torch thread."""
    model_name: Name = "recd"
    """Its name in the paths of the Open Inference Protocol: `/v2/models/{name}`."""
    batch_candidates: Positive = 1_000
    """Requests that wait are scored together, up to so many candidates."""
    batch_delay_ms: NonNegative = 0
    """How long a request waits for others while fewer candidates than that are there; 0 takes what is there."""
    max_waiting: Positive = 256
    """Requests under way; beyond them a request is answered with 503 and Retry-After."""
    deadline_ms: Positive = 5_000
    """A request without scores by then is answered with 504; a client may ask for less."""
    max_request_bytes: Positive = 16 << 20
    """A larger body is answered with 413."""
    dedup: bool = True
    """False computes the user's side for every candidate: the baseline."""
