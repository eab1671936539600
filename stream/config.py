"""The one configuration file, `recd.yaml`: every key with its meaning, unit and default.

A component is handed its own section, never the whole. An unknown key or a wrong type is refused with its
path: ``Expected int, got str - at $.session.gap_ms``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from stream.transforms import Ids, Kind, Numbers, Transform, TransformError, in_batch

Positive = Annotated[int, msgspec.Meta(gt=0)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.\-]+$", max_length=200)]

MIN_BATCH_BYTES = 64 * 1024
"""Below this, samples of ordinary size would be quarantined one by one."""


class ConfigError(Exception):
    """The configuration cannot be used; the message names the file, the key and what was expected."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One mapping of the file: immutable, unknown keys refused."""


class KafkaConfig(Section, frozen=True):
    """How to reach the broker."""

    bootstrap: str = "localhost:9092"
    options: dict[str, str] = {}
    """Further librdkafka options for every client (security, timeouts)."""


class TopicsConfig(Section, frozen=True):
    """Names of the topics, and how `recd topics create` makes them."""

    interactions: Name = "interactions"
    batches: Name = "batches"
    values: Name = "values"
    late: Name = "late"
    quarantine: Name = "quarantine"
    journal: Name = "journal"
    snapshots: Name = "snapshots"
    control: Name = "control"
    imports: Name = "imports"
    """How far imports have come; made by the first one."""
    archive: Name = "archive"
    """The manifest of the archive; `recd archive` makes it."""
    partitions: Positive = 4
    """Partitions of `interactions`; every other data topic gets the same number when it is created."""
    replication: Positive = 1
    retention_ms: NonNegative = 604_800_000
    """Retention of `interactions` and `batches`; 0 keeps them for ever."""


class RedisConfig(Section, frozen=True):
    """Where the dedup cache keeps its index."""

    url: str = "redis://localhost:6379/0"
    namespace: Name = "recd"
    timeout_ms: Positive = 250
    """Longest wait for one answer; after it the worker goes on with values inline."""


class FieldsConfig(Section, frozen=True):
    """The user's own field names; a dot descends into a nested object (`user.id`). None: the field does not exist."""

    event_id: str | None = "event_id"
    key: str = "user_id"
    """The session key. Records of one key must lie in one partition."""
    time: str = "event_time_ms"
    type: str = "type"
    item: str = "item_id"
    impression_id: str | None = "impression_id"
    """On engagements: the impression they belong to. Where it is absent the join is by (key, item)."""
    request_id: str | None = "request_id"


class RegistryConfig(Section, frozen=True):
    """The schema registry (Confluent's API) of Avro records."""

    url: str = "http://localhost:8081"
    options: dict[str, str] = {}
    """Further options of Confluent's client (basic.auth.user.info, ssl.ca.location)."""


class EventsConfig(Section, frozen=True):
    """How a record of `interactions` is read."""

    format: Literal["json", "avro"] = "json"
    """avro: with a schema registry, in Confluent's wire format."""
    registry: RegistryConfig = RegistryConfig()
    """Only for avro."""
    fields: FieldsConfig = FieldsConfig()
    time_unit: Literal["ms", "s"] = "ms"
    impressions: tuple[str, ...] = ("impression",)
    """Values of the type field that mean: one candidate was shown."""
    engagements: tuple[str, ...] = ("click",)
    """Values of the type field that mean: the user did something with it. Any other value is quarantined."""
    max_bytes: Positive = 1_048_576
    """A larger record is quarantined unread."""


FeatureType = Literal["int", "string", "float", "list[int]", "list[string]", "list[float]"]
SessionSource = Literal[
    "session.items",
    "session.engaged_items",
    "session.impressions",
    "session.engagements",
    "session.ms_since_last_event",
    "session.ms_since_start",
]


class FeatureConfig(Section, frozen=True):
    """One feature of an impression.

    `int`, `string` and their lists are ids: a list column of int64 (one id, or none where it is missing); strings
    are hashed to 64 bits. `float` is one dense column, `list[float]` is `length` dense columns.
    """

    name: Name
    group: Name
    """Features of a group change together and share one inverse (RecD's grouped features)."""
    type: FeatureType = "int"
    field: str | None = None
    """Path of the field in the event; the feature's own name by default."""
    source: SessionSource | None = None
    """Computed from the session instead of read: only events strictly before the impression's time count."""
    max_length: Positive = 50
    """Lists: only the last `max_length` ids are kept."""
    slices: Literal["auto", "always", "never"] = "auto"
    """Lists: whether batches store them as overlapping slices, which pays where they grow or slide within a session.
    `auto` decides batch by batch; samples are the same in any form."""
    length: Positive = 1
    """`list[float]`: exactly so many numbers, anything else is quarantined."""
    required: bool = False
    """An impression without it is quarantined; otherwise it counts as an empty list or `default`."""
    default: float = 0.0
    transforms: tuple[Transform, ...] = ()
    """Operations on its distinct rows, one after the other (`stream.transforms`): what batches hold is the result."""
    in_batch: bool = True
    """False: batches leave it out, only features of `derived` read it."""

    @property
    def kind(self) -> Kind:
        """What it is before its transforms."""
        if self.is_dense:
            return Numbers(len(self.dense_columns))
        return Ids(self.max_length if self.source or self.type.startswith("list") else 1)

    @property
    def is_dense(self) -> bool:
        """Whether the feature is made of dense columns."""
        return self.source in DENSE_SOURCES if self.source else self.type in ("float", "list[float]")

    @property
    def dense_columns(self) -> tuple[str, ...]:
        """Names of the feature's dense columns, empty for id features."""
        if not self.is_dense:
            return ()
        if self.type != "list[float]" or self.source:
            return (self.name,)
        return tuple(f"{self.name}.{i}" for i in range(self.length))


class DerivedConfig(Section, frozen=True):
    """A feature made of others, in the group of its inputs, which must be one and the same.

    The inputs are features as they are after their own transforms, of `features` or further up in `derived`.
    """

    name: Name
    inputs: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    transforms: tuple[Transform, ...] = ()
    """The first operation reads the inputs, each further one what the one before it made."""
    in_batch: bool = True
    """False: batches leave it out, only further features of `derived` read it."""


DENSE_SOURCES = (
    "session.impressions",
    "session.engagements",
    "session.ms_since_last_event",
    "session.ms_since_start",
)


class LabelConfig(Section, frozen=True):
    """One target: 1.0 where the impression found one of these engagements in its session, else 0.0."""

    name: Name
    engagements: tuple[str, ...]
    score_field: str | None = None
    """A logged probability on the impression (the truth of a simulator, the model in production), evaluated beside
    the trainer's own prediction. An event with a number outside [0, 1] there is quarantined."""


class ImportedField(Section, frozen=True):
    """A further field of the event, out of a column; empty cells leave it out."""

    column: str | None = None
    """The field's own name by default; a dot descends into a nested object of JSON."""
    type: FeatureType = "string"
    separator: str = " "
    """Between the elements of a list in a text cell."""


class ImportConfig(Section, frozen=True):
    """A format of `recd import`: which columns of a file make an event."""

    file: Literal["csv", "jsonl", "parquet"]
    key: str
    """The column of the session key."""
    time: str
    item: str
    type: str | None = None
    """The column that says what happened; without it every row is the first of `events.impressions`."""
    types: dict[str, str] = {}
    """From the column's values to event types; a value that is not listed stands for itself."""
    event_id: str | None = None
    """By default a row's own id, made of the file's digest and the row's number."""
    impression_id: str | None = None
    request_id: str | None = None
    fields: dict[str, ImportedField] = {}
    """By name of the event's field."""
    engaged: dict[str, str] = {}
    """From an engagement type to a column: 1, true, yes or a number above 0 makes one more event on the row's own."""
    time_format: str = "ms"
    """s, ms, us, ns (since 1970), iso, or a pattern of strptime; a time without an offset is UTC."""
    order: Literal["file", "time"] = "time"
    """`file` where the rows are in order of time; `time` sorts them first, on disk."""
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=8)] = ","
    quote: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] | None = '"'
    """csv: None where quotes mean nothing. A delimiter of several characters wants that."""
    columns: tuple[str, ...] = ()
    """csv: names of the columns of a file without a header."""


class SessionConfig(Section, frozen=True):
    """Event-time sessions. Changing any of these needs a journalled close-all (`recd control close`)."""

    gap_ms: Positive = 1_800_000
    out_of_orderness_ms: NonNegative = 5_000
    max_duration_ms: Positive = 14_400_000
    max_events: Positive = 10_000
    max_ahead_ms: Positive = 60_000
    """An event dated later than its record's own timestamp by more than this is quarantined."""
    keep_negatives: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Share of the samples without a true label that are kept, each with the weight 1 / share, which the trainer uses;
    the others are counted and left out. A sample's id decides, so a replay keeps the same ones."""
    idle_after_ms: Positive = 1_000
    """How long the end of a partition must last before the watermark grows by the time elapsed."""


class BatchConfig(Section, frozen=True):
    """Where a batch ends."""

    max_samples: Positive = 512
    max_wait_ms: Positive = 500
    """Longest time between two commits; a commit flushes what is there."""
    max_bytes: Positive = 8_388_608
    """A larger encoded batch is split; one larger sample goes to quarantine. At least 64 KiB."""
    compression: Literal["none", "zstd", "lz4"] = "zstd"


class DedupConfig(Section, frozen=True):
    """The dedup cache: value -> index."""

    inline_bytes: NonNegative = 1024
    """Encoded rows above this are shipped once, by global id, on the `values` topic."""
    near_cache_entries: Positive = 1_000_000
    salt: str = "1"
    """Version of the feature transforms; part of every fingerprint."""


class StreamConfig(Section, frozen=True):
    """One stream worker."""

    group_id: Name = "recd-stream"
    group_protocol: Literal["consumer", "classic"] = "consumer"
    worker_id: Name | None = None
    """Unique name of this process; host name and process id by default."""
    static_member: bool = False
    """Join the group as its member `worker_id`, which must be set: a short restart moves no partition."""
    max_poll_records: Positive = 5_000
    transaction_timeout_ms: Positive = 10_000
    snapshot_every_events: NonNegative = 100_000
    """Open sessions are written to the topic `snapshots` when a restart would have to read more of the log than this
    (or an eighth of the events that they hold), so that it need not start at the oldest one; 0: never."""
    host: str = "127.0.0.1"
    port: NonNegative = 6066
    """HTTP port of /health, /ready, /status, /metrics; 0 picks a free one (it stands in the log)."""
    data_dir: str = "var/stream"


class ArchiveConfig(Section, frozen=True):
    """Files of a history that outlives the topics."""

    url: str = "var/archive"
    """A folder, or an object store that fsspec knows (s3://, gs://, ...)."""
    max_rows: Positive = 500_000
    """Records after which a file is closed."""
    max_bytes: Positive = 134_217_728
    """Bytes of records that wait in memory, of all partitions together, before the largest becomes a file."""
    max_wait_ms: Positive = 600_000
    """A file is closed so long after its first record came."""


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


class Config(Section, frozen=True):
    """The whole file. Every section may be left out."""

    kafka: KafkaConfig = KafkaConfig()
    topics: TopicsConfig = TopicsConfig()
    redis: RedisConfig = RedisConfig()
    events: EventsConfig = EventsConfig()
    features: tuple[FeatureConfig, ...] = ()
    derived: tuple[DerivedConfig, ...] = ()
    labels: tuple[LabelConfig, ...] = (LabelConfig(name="click", engagements=("click",)),)
    imports: dict[Name, ImportConfig] = {}
    """Further formats of `recd import`, by name."""
    session: SessionConfig = SessionConfig()
    batch: BatchConfig = BatchConfig()
    dedup: DedupConfig = DedupConfig()
    stream: StreamConfig = StreamConfig()
    archive: ArchiveConfig = ArchiveConfig()
    trainer: TrainerConfig = TrainerConfig()
    serving: ServingConfig = ServingConfig()


def load(path: Path | None = None, *, overrides: tuple[str, ...] = ()) -> Config:
    """Read the file (None: all defaults), lay `a.b=c` overrides over it and check the whole.

    Raises ConfigError with the path of the offending key.
    """
    tree = _read_yaml(path) if path else {}
    for override in overrides:
        _lay_over(tree, override)
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        message = _with_names(str(error).replace("`", ""), tree)
        raise ConfigError(f"{path or 'defaults'}: {message}") from None
    _check(config)
    return config


def to_yaml(config: Config) -> str:
    """The whole configuration, defaults included, as YAML that `load` reads back."""
    return yaml.safe_dump(msgspec.to_builtins(config, str_keys=True), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: Expected object, got {type(tree).__name__} - at $")
    return tree


def _lay_over(tree: dict[str, object], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, for example session.gap_ms=5000")
    *parents, leaf = dotted.strip().split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {parent} is not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: not YAML: {error}") from None


def _with_names(message: str, tree: dict[str, Any]) -> str:
    """In the path of a transform, the name of its feature in place of its number."""

    def name(found: re.Match[str]) -> str:
        feature = tree[found[1]][int(found[2])]
        known = isinstance(feature, dict) and isinstance(feature.get("name"), str)
        return f"$.{found[1]}.{feature['name']}.transforms" if known else found[0]

    return re.sub(r"\$\.(features|derived)\[(\d+)\]\.transforms", name, message)


def _check(config: Config) -> None:
    """Rules between keys, which types cannot express."""
    _check_features(config.features)
    try:
        planned = in_batch(config.features, config.derived)
    except TransformError as error:
        raise ConfigError(str(error)) from None
    known = set(config.events.engagements)
    for i, label in enumerate(config.labels):
        for engagement in label.engagements:
            if engagement not in known:
                raise ConfigError(
                    f"'{engagement}' is not one of events.engagements {sorted(known)} - at $.labels[{i}].engagements"
                )
    overlap = known & set(config.events.impressions)
    if overlap:
        raise ConfigError(f"{sorted(overlap)} stand in both impressions and engagements - at $.events")
    if config.session.gap_ms >= config.session.max_duration_ms:
        raise ConfigError("gap_ms must be below max_duration_ms - at $.session.gap_ms")
    if config.batch.max_bytes < MIN_BATCH_BYTES:
        raise ConfigError(f"max_bytes must be at least {MIN_BATCH_BYTES} - at $.batch.max_bytes")
    if config.stream.static_member and config.stream.worker_id is None:
        raise ConfigError("a static member needs a name that outlives it, set worker_id - at $.stream.static_member")
    for name in config.trainer.model.tables:
        if name not in {feature.name for feature in planned if not feature.is_dense}:
            raise ConfigError(f"no id feature has this name - at $.trainer.model.tables.{name}")


def _check_features(features: tuple[FeatureConfig, ...]) -> None:
    seen: set[str] = set()
    for i, feature in enumerate(features):
        if feature.source is not None and feature.type != "int":
            raise ConfigError(f"'{feature.source}' has a type of its own, leave this out - at $.features[{i}].type")
        for column in feature.dense_columns or (feature.name,):
            if column in seen:
                raise ConfigError(f"feature '{column}' is named twice - at $.features[{i}].name")
            seen.add(column)
