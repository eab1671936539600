"""Compares the weights that train with those in service, on batches that neither was trained on.

The trainer predicts every batch before it learns from it; here the weights in service predict the newest of the same
batches. A difference within chance (two standard errors of the paired differences) and tolerance is none.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from stream.config import Config, GateConfig
from trainer.ikjt import TrainBatch
from trainer.metrics import cross_entropy
from trainer.model import GroupedDLRM
from trainer.sharding import tables_of
from trainer.versions import Snapshot, Version, apply_version

ERRORS = 2.0
MIN_SAMPLES = 500
"""Compared on fewer, nothing is worse."""


@dataclass(frozen=True)
class Comparison:
    """On the newest samples: mean cross entropy, in nats, of the weights that train and of those in service."""

    label: str
    samples: int
    entropy: float
    entropy_in_service: float


class Shadow:
    """The weights in service, unsharded, on the host."""

    def __init__(self, config: Config) -> None:
        distinct = config.trainer.distinct
        self._model = GroupedDLRM(
            config.features,
            labels=config.labels,
            config=config.trainer.model,
            derived=config.derived,
            # Batches with their ids expanded are read as such; VBE is for sharded tables, and reads what grouped does.
            distinct=msgspec.structs.replace(distinct, lookups="off" if distinct.lookups == "off" else "grouped"),
        )
        self._model.eval()

    def take(self, snapshot: Snapshot) -> None:
        """Make them those of a snapshot; of one that holds touched rows alone, on top of those before."""
        with torch.no_grad():
            tables = {table: tensor.numpy() for table, tensor in tables_of(self._model.state_dict()).items()}
            for shard in snapshot.shards:
                columns = slice(shard.col, shard.col + shard.weights.shape[1])
                whole = slice(shard.row, shard.row + shard.weights.shape[0])
                rows = whole if shard.ids is None else shard.ids
                tables[shard.table][rows, columns] = shard.weights
            dense = {key: torch.from_numpy(np.array(value)) for key, value in snapshot.dense.items()}
            self._model.load_state_dict(dense, strict=False)

    def take_version(self, version: Version) -> None:
        """Make them those of a published version."""
        apply_version(self._model, version)

    def predict(self, batch: TrainBatch) -> np.ndarray:
        """Probabilities [B, L]."""
        with torch.inference_mode():
            predictions: np.ndarray = torch.sigmoid(self._model(batch)).numpy()
        return predictions


class Gate:
    """Whether the newest weights may go out. Costs at most `time_share` of the time since it was made."""

    def __init__(self, config: GateConfig, *, labels: Sequence[str], shadow: Shadow) -> None:
        self._config = config
        self._labels = list(labels)
        self._shadow = shadow
        self._in_service = False
        self._began_s = time.monotonic()
        self._spent_s = 0.0
        self._batches: deque[np.ndarray] = deque()
        """Of each compared batch [3, B, L]: weight, entropy, entropy in service."""

    def published(self, snapshot: Snapshot) -> None:
        """The snapshot is in service from now on."""
        self._shadow.take(snapshot)
        self._in_service = True
        self._batches.clear()

    def went_back(self, version: Version) -> None:
        """An older version is in service from now on."""
        self._shadow.take_version(version)
        self._in_service = True
        self._batches.clear()

    def forget(self) -> None:
        """Compare nothing until the next publication."""
        self._in_service = False
        self._batches.clear()

    def look(self, batch: TrainBatch, *, predictions: np.ndarray) -> None:
        """A batch that was predicted, and is about to be trained; it lies on the host."""
        elapsed_s = time.monotonic() - self._began_s
        if not self._in_service or self._spent_s > self._config.time_share * elapsed_s:
            return
        began_s = time.monotonic()
        labels, weights = batch.labels.numpy().astype(np.float64), batch.weights.numpy()[:, None]
        served = self._shadow.predict(batch)
        finite = np.isfinite(served) & np.isfinite(predictions)
        entropies = [cross_entropy(np.where(finite, p, 0.5), labels=labels) for p in (predictions, served)]
        self._batches.append(np.stack([np.where(finite, weights, 0.0), *entropies]))
        while sum(b.shape[1] for b in self._batches) - self._batches[0].shape[1] >= self._config.samples:
            self._batches.popleft()
        self._spent_s += time.monotonic() - began_s

    def worse(self) -> Comparison | None:
        """The first label on which the weights that train are worse; None where they may go out."""
        if sum(batch.shape[1] for batch in self._batches) < MIN_SAMPLES:
            return None
        weights, mine, served = np.concatenate(list(self._batches), axis=1)
        for i, label in enumerate(self._labels):
            w = weights[:, i]
            gap = w * (mine[:, i] - served[:, i])
            total = float((w * served[:, i]).sum())
            chance = ERRORS * math.sqrt(float((gap**2).sum()))
            if gap.sum() > self._config.tolerance * total + chance:
                weight = float(w.sum())
                return Comparison(label, len(w), float((w * mine[:, i]).sum()) / weight, total / weight)
        return None
