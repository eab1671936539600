"""A version as a model that scores: built as a whole, put into service as a whole, never changed afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from dedup_cache.arrays import Float32
from serving.errors import ScoringError
from serving.recipe import Recipe, recipe_of
from serving.requests import ScoreRequest
from stream.config import ConfigError
from stream.transforms import TransformError
from trainer.ikjt import dummy_batch
from trainer.model import GroupedDLRM
from trainer.versions import Version, VersionError, apply_version


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


@dataclass(frozen=True, slots=True, eq=False)
class ScoredBatch:
    """The answers to several requests that were computed together, by one version."""

    version: int
    labels: tuple[str, ...]
    scores: list[Float32 | ScoringError]
    """Of each request: one column of its candidates a label, float32[labels, K], or why there is none."""
    rows: int
    distinct: int


class ServedModel:
    """One version, ready to score; safe to call from several threads."""

    def __init__(self, version: Version) -> None:
        """Builds and tries the model; VersionError where this code cannot make a model of the version."""
        self.manifest = version.manifest
        what = f"version {self.manifest.version}"
        try:
            self.recipe: Recipe = recipe_of(self.manifest.config)
            config = self.recipe.config
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
        self.try_out()

    def try_out(self) -> None:
        """VersionError where an empty sample gets no finite score."""
        with torch.inference_mode():
            trial = self._module(dummy_batch(self._module.specs, num_labels=len(self.recipe.labels)))
        if not bool(torch.isfinite(trial).all()):
            raise VersionError(f"version {self.version}: scores an empty sample with a number that is not finite")

    @property
    def module(self) -> GroupedDLRM:
        """The weights: changed by nobody while the model is in service."""
        return self._module

    @property
    def version(self) -> int:
        """Its number."""
        return self.manifest.version

    def score(self, body: bytes) -> Scored:
        """Score one body of `/score`. RequestError where it does not fit, ScoringError where a score is not finite."""
        request = self.recipe.bodies.decode(body)
        batch = self.score_all([request])
        [scores] = batch.scores
        if isinstance(scores, ScoringError):
            raise scores
        by_label = dict(zip(batch.labels, scores.tolist(), strict=True))
        return Scored(batch.version, by_label, request.num_candidates, rows=batch.rows, distinct=batch.distinct)

    def score_all(self, requests: Sequence[ScoreRequest], *, dedup: bool = True) -> ScoredBatch:
        """Score requests in one forward pass; each gets what it would get alone. They must be of this recipe."""
        labels = self.recipe.labels
        asked = [request for request in requests if request.num_candidates]
        if not asked:
            empty = np.empty((len(labels), 0), np.float32)
            return ScoredBatch(self.version, labels, [empty] * len(requests), rows=0, distinct=0)
        encoded = self.recipe.encoder.encode(asked, dedup=dedup)
        with torch.inference_mode():
            scores_LB = torch.sigmoid(self._module(encoded.batch)).T.numpy()
        scores: list[Float32 | ScoringError] = []
        begin = 0
        for request in requests:
            scores_LK = scores_LB[:, begin : begin + request.num_candidates]
            begin += request.num_candidates
            error = ScoringError(f"version {self.version} gives a score that is not finite")
            scores.append(scores_LK if bool(np.isfinite(scores_LK).all()) else error)
        return ScoredBatch(self.version, labels, scores, rows=encoded.rows, distinct=encoded.distinct)
