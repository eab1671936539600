"""All that a server makes of a version's configuration; versions that share it share this."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from serving.encoding import RequestEncoder
from serving.requests import ItemType, RequestSchema
from serving.tensor_schema import TensorSchema
from stream.config import DerivedConfig, FeatureConfig, LabelConfig, ModelConfig

KEPT = 4


class VersionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What of a version's config a server builds the model from."""

    features: tuple[FeatureConfig, ...]
    derived: tuple[DerivedConfig, ...] = ()
    labels: tuple[LabelConfig, ...]
    model: ModelConfig
    items: ItemType = "id"
    """What events have as items, hence a session's history."""


class Recipe:
    """How requests are read and encoded for versions of one configuration."""

    def __init__(self, config: VersionConfig) -> None:
        self.config = config
        self.labels = tuple(label.name for label in config.labels)
        self.bodies = RequestSchema(config.features, items=config.items)
        self.tensors = TensorSchema(config.features, items=config.items)
        self.encoder = RequestEncoder(
            config.features, num_labels=len(self.labels), model=config.model, derived=config.derived
        )


def recipe_of(config: Mapping[str, Any]) -> Recipe:
    """The recipe for a version's config, made once.

    ValidationError, ConfigError or TransformError where nothing can be made of it.
    """
    return _recipe(msgspec.json.encode(config))


@lru_cache(maxsize=KEPT)
def _recipe(config: bytes) -> Recipe:
    return Recipe(msgspec.json.decode(config, type=VersionConfig))
