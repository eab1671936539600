"""The one configuration file, `recd.yaml`: every key with its meaning, unit and default.

A component is handed its own section, never the whole. An unknown key or a wrong type is refused with its
path: ``Expected int, got str - at $.session.gap_ms``.
"""

from __future__ import annotations

from stream.config.events import EventsConfig, FieldsConfig, RegistryConfig
from stream.config.features import DENSE_SOURCES, DerivedConfig, FeatureConfig, FeatureType, LabelConfig, SessionSource
from stream.config.imports import ImportConfig, ImportedField
from stream.config.kafka import KafkaConfig, RedisConfig, TopicsConfig
from stream.config.learning import EvaluationConfig, GateConfig, GuardsConfig
from stream.config.read import load, to_yaml
from stream.config.section import ConfigError, Name, NonNegative, Positive, Section
from stream.config.trainer import (
    DeviceConfig,
    DistinctConfig,
    InteractionConfig,
    ModelConfig,
    OptimizerConfig,
    RateConfig,
    SequenceConfig,
    ServingConfig,
    TableConfig,
    TrainerConfig,
)
from stream.config.whole import Config
from stream.config.worker import MIN_BATCH_BYTES, ArchiveConfig, BatchConfig, DedupConfig, SessionConfig, StreamConfig

__all__ = [
    "DENSE_SOURCES",
    "MIN_BATCH_BYTES",
    "ArchiveConfig",
    "BatchConfig",
    "Config",
    "ConfigError",
    "DedupConfig",
    "DerivedConfig",
    "DeviceConfig",
    "DistinctConfig",
    "EvaluationConfig",
    "EventsConfig",
    "FeatureConfig",
    "FeatureType",
    "FieldsConfig",
    "GateConfig",
    "GuardsConfig",
    "ImportConfig",
    "ImportedField",
    "InteractionConfig",
    "KafkaConfig",
    "LabelConfig",
    "ModelConfig",
    "Name",
    "NonNegative",
    "OptimizerConfig",
    "Positive",
    "RateConfig",
    "RedisConfig",
    "RegistryConfig",
    "Section",
    "SequenceConfig",
    "ServingConfig",
    "SessionConfig",
    "SessionSource",
    "StreamConfig",
    "TableConfig",
    "TopicsConfig",
    "TrainerConfig",
    "load",
    "to_yaml",
]
