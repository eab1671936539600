"""The whole configuration, and the rules between its keys."""

from __future__ import annotations

from stream.config.events import EventsConfig
from stream.config.features import DerivedConfig, FeatureConfig, LabelConfig
from stream.config.imports import ImportConfig
from stream.config.kafka import KafkaConfig, RedisConfig, TopicsConfig
from stream.config.section import ConfigError, Name, Section
from stream.config.trainer import ServingConfig, TrainerConfig
from stream.config.worker import MIN_BATCH_BYTES, ArchiveConfig, BatchConfig, DedupConfig, SessionConfig, StreamConfig
from stream.transforms import TransformError, in_batch


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


def check(config: Config) -> None:
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
    _check_model(config, id_features={feature.name for feature in planned if not feature.is_dense})


def _check_model(config: Config, *, id_features: set[str]) -> None:
    for name in config.trainer.model.tables:
        if name not in id_features:
            raise ConfigError(f"no id feature has this name - at $.trainer.model.tables.{name}")
    labels = [label.name for label in config.labels]
    for name in config.trainer.model.label_weights:
        if name not in labels:
            raise ConfigError(
                f"no label has this name, there are {', '.join(labels)} - at $.trainer.model.label_weights.{name}"
            )


def _check_features(features: tuple[FeatureConfig, ...]) -> None:
    seen: set[str] = set()
    for i, feature in enumerate(features):
        if feature.source is not None and feature.type != "int":
            raise ConfigError(f"'{feature.source}' has a type of its own, leave this out - at $.features[{i}].type")
        for column in feature.dense_columns or (feature.name,):
            if column in seen:
                raise ConfigError(f"feature '{column}' is named twice - at $.features[{i}].name")
            seen.add(column)
