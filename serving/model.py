"""A version as a model that scores: built as a whole, put into service as a whole, never changed afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from serving.encoding import RequestEncoder
from serving.errors import ScoringError
from stream.config import ConfigError, DerivedConfig, FeatureConfig, LabelConfig, ModelConfig
from stream.transforms import TransformError
from trainer.ikjt import dummy_batch
from trainer.model import GroupedDLRM
from trainer.versions import Version, VersionError, apply_version


class VersionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What of a version's config a server builds the model from."""

    features: tuple[FeatureConfig, ...]
    derived: tuple[DerivedConfig, ...] = ()
    labels: tuple[LabelConfig, ...]
    model: ModelConfig


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer to one request: by label, one probability a candidate, all by one version."""

    version: int
    scores: dict[str, list[float]]
    candidates: int
    rows: int
    """Rows of all groups, had every candidate one of its own."""
    distinct: int
    """Rows that were computed."""


class ServedModel:
    """One version, ready to score; safe to call from several threads."""

    def __init__(self, version: Version) -> None:
        """Builds and tries the model; VersionError where this code cannot make a model of the version."""
        self.manifest = version.manifest
        what = f"version {self.manifest.version}"
        try:
            config = msgspec.convert(self.manifest.config, VersionConfig)
            self._module = GroupedDLRM(
                config.features,
                labels=config.labels,
                config=config.model,
                derived=config.derived,
                device=torch.device("meta"),
            )
        except (msgspec.ValidationError, ConfigError, TransformError) as error:
            raise VersionError(f"{what}: config: {str(error).replace('`', '')}") from None
        try:
            apply_version(self._module, version)
        except VersionError as error:
            raise VersionError(f"{what}: {error}") from None
        self._module.eval().requires_grad_(requires_grad=False)
        self._labels = [label.name for label in config.labels]
        self._encoder = RequestEncoder(
            config.features, num_labels=len(self._labels), model=config.model, derived=config.derived
        )
        with torch.inference_mode():
            trial = self._module(dummy_batch(self._module.specs, num_labels=len(self._labels)))
        if not bool(torch.isfinite(trial).all()):
            raise VersionError(f"{what}: scores an empty sample with a number that is not finite")

    @property
    def version(self) -> int:
        """Its number."""
        return self.manifest.version

    def score(self, body: bytes) -> Scored:
        """Score one request body. RequestError where it does not fit, ScoringError where a score is not finite."""
        request = self._encoder.schema.decode(body)
        count = len(request.candidates)
        if not count:
            return Scored(self.version, {label: [] for label in self._labels}, candidates=0, rows=0, distinct=0)
        encoded = self._encoder.encode(request)
        with torch.inference_mode():
            scores_KL = torch.sigmoid(self._module(encoded.batch)).numpy()
        if not np.isfinite(scores_KL).all():
            raise ScoringError(f"version {self.version} gives a score that is not finite")
        scores = {label: scores_KL[:, i].tolist() for i, label in enumerate(self._labels)}
        return Scored(self.version, scores, candidates=count, rows=encoded.rows, distinct=encoded.distinct)
