"""Progressive evaluation: every sample is predicted before the model learns from it.

Normalised entropy (NE) is the mean cross entropy of the predictions over that of always predicting the base rate
(He et al., ADKDD 2014). All sums are weighted and in float64. Letters in shapes: B samples, L labels.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SCORE_BINS = 10_000
"""Bins of a prediction in the histogram that gives the AUC; inside a bin predictions count as equal."""
WINDOW_SAMPLES = 20_000
WINDOW_PARTS = 50
ETA = 1e-12
"""Predictions are clipped to [ETA, 1 - ETA], as in torchrec.metrics."""
SUMS = (
    "weight",
    "positive",
    "predicted",
    "entropy",
    "base_entropy",
    "logged_weight",
    "logged_positive",
    "logged_entropy",
)
NUM_SUMS = len(SUMS)


@dataclass(frozen=True)
class LabelMetrics:
    """Metrics of one label; None where there is nothing to compute them from."""

    ne: float | None
    ne_window: float | None
    base_ne: float | None
    """Of predicting, at each moment, the rate of positives so far."""
    logged_ne: float | None
    """Of the logged scores, on the samples that have one."""
    auc: float | None
    calibration: float | None
    """Sum of predictions over sum of labels; 1 is right on average."""
    calibration_window: float | None


class Evaluation:
    """Sums over one rank's predictions, by label: over the lifetime, and over the newest `window` samples."""

    def __init__(self, num_labels: int, *, window: int = WINDOW_SAMPLES) -> None:
        self._window = window
        self._sums = np.zeros((NUM_SUMS, num_labels))
        self._scores = np.zeros((2, num_labels, SCORE_BINS))
        self._parts: deque[np.ndarray] = deque()
        self._part_samples: deque[int] = deque()
        self.samples = 0
        self.non_finite = 0
        """Predictions that were NaN or infinite: counted here, added nowhere."""

    def add(
        self, predictions: np.ndarray, *, labels: np.ndarray, weights: np.ndarray, scores: np.ndarray
    ) -> np.ndarray:
        """Take in one batch: predictions, labels and scores [B, L], weights [B]; returns its sums [len(SUMS), L]."""
        finite = np.isfinite(predictions)
        self.non_finite += int(predictions.size - finite.sum())
        weights_BL = np.where(finite, weights[:, None], 0.0).astype(np.float64)
        clean = np.where(finite, predictions, 0.5).astype(np.float64)
        sums = _batch_sums(clean, labels=labels.astype(np.float64), weights=weights_BL, scores=scores)
        sums[SUMS.index("base_entropy")] = self._base_entropy(sums)
        self._sums += sums
        self._add_scores(clean, labels=labels, weights=weights_BL)
        self._add_window(sums, num_samples=len(labels))
        self.samples += len(labels)
        return sums

    def state(self) -> dict[str, np.ndarray]:
        """Everything that is remembered, as arrays; `restore` takes it back."""
        window = np.stack(list(self._parts)) if self._parts else np.zeros((0, *self._sums.shape))
        return {
            "sums": self._sums.copy(),
            "scores": self._scores.copy(),
            "window": window,
            "window_samples": np.array(self._part_samples, dtype=np.int64),
            "counts": np.array([self.samples, self.non_finite], dtype=np.int64),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a `state` of the same labels; ValueError otherwise."""
        if state["sums"].shape != self._sums.shape or state["scores"].shape != self._scores.shape:
            raise ValueError(f"metrics of {state['sums'].shape}, expected {self._sums.shape}")
        self._sums, self._scores = state["sums"].copy(), state["scores"].copy()
        self._parts = deque(np.array(part) for part in state["window"])
        self._part_samples = deque(state["window_samples"].tolist())
        self.samples, self.non_finite = state["counts"].tolist()

    def _base_entropy(self, sums: np.ndarray) -> np.ndarray:
        """Cross entropy of the rate of positives before this batch (one positive and one negative at the start)."""
        rate = (self._sums[1] + 1) / (self._sums[0] + 2)
        weight, positive = sums[0], sums[1]
        entropy: np.ndarray = -(positive * np.log(rate) + (weight - positive) * np.log1p(-rate))
        return entropy

    def _add_scores(self, predictions: np.ndarray, *, labels: np.ndarray, weights: np.ndarray) -> None:
        bins = np.minimum((np.clip(predictions, 0, 1) * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
        for label in range(labels.shape[1]):
            for side, share in enumerate((1 - labels[:, label], labels[:, label])):
                self._scores[side, label] += np.bincount(
                    bins[:, label], weights=weights[:, label] * share, minlength=SCORE_BINS
                )

    def _add_window(self, sums: np.ndarray, *, num_samples: int) -> None:
        if self._parts and self._part_samples[-1] < self._window // WINDOW_PARTS:
            self._parts[-1] += sums
            self._part_samples[-1] += num_samples
        else:
            self._parts.append(sums.copy())
            self._part_samples.append(num_samples)
        while sum(self._part_samples) - self._part_samples[0] >= self._window:
            self._parts.popleft()
            self._part_samples.popleft()


def merge_states(states: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One state for what several ranks saw; windows stand one behind the other."""
    return {
        "sums": np.sum([state["sums"] for state in states], axis=0),
        "scores": np.sum([state["scores"] for state in states], axis=0),
        "window": np.concatenate([state["window"] for state in states]),
        "window_samples": np.concatenate([state["window_samples"] for state in states]),
        "counts": np.sum([state["counts"] for state in states], axis=0),
    }


def compute(state: dict[str, np.ndarray]) -> list[LabelMetrics]:
    """The metrics of every label, from one rank's state or a merged one."""
    window = state["window"].sum(axis=0)
    return [
        _label_metrics(
            dict(zip(SUMS, state["sums"][:, label].tolist(), strict=True)),
            window=dict(zip(SUMS, window[:, label].tolist(), strict=True)),
            auc=_auc(state["scores"][:, label]),
        )
        for label in range(state["sums"].shape[1])
    ]


def cross_entropy(predictions: np.ndarray, *, labels: np.ndarray) -> np.ndarray:
    """Of each prediction with its label, in nats."""
    clipped = np.clip(predictions, ETA, 1 - ETA)
    entropy: np.ndarray = -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))
    return entropy


def normalised_entropy(*, entropy: float, weight: float, positive: float) -> float | None:
    """Entropy sum over that of the base rate; None without samples or with one kind of label only."""
    if not 0 < positive < weight:
        return None
    rate = positive / weight
    return entropy / -(positive * math.log(rate) + (weight - positive) * math.log1p(-rate))


def _batch_sums(predictions: np.ndarray, *, labels: np.ndarray, weights: np.ndarray, scores: np.ndarray) -> np.ndarray:
    logged = np.isfinite(scores)
    logged_weights = weights * logged
    clean_scores = np.where(logged, scores, 0.5).astype(np.float64)
    parts = {
        "weight": weights,
        "positive": weights * labels,
        "predicted": weights * predictions,
        "entropy": weights * cross_entropy(predictions, labels=labels),
        "base_entropy": np.zeros_like(weights),
        "logged_weight": logged_weights,
        "logged_positive": logged_weights * labels,
        "logged_entropy": logged_weights * cross_entropy(clean_scores, labels=labels),
    }
    return np.stack([parts[name].sum(axis=0) for name in SUMS])


def _label_metrics(sums: dict[str, float], *, window: dict[str, float], auc: float | None) -> LabelMetrics:
    def ne(of: dict[str, float], name: str, prefix: str = "") -> float | None:
        weight, positive = of[f"{prefix}weight"], of[f"{prefix}positive"]
        return normalised_entropy(entropy=of[name], weight=weight, positive=positive)

    return LabelMetrics(
        ne=ne(sums, "entropy"),
        ne_window=ne(window, "entropy"),
        base_ne=ne(sums, "base_entropy"),
        logged_ne=ne(sums, "logged_entropy", "logged_"),
        auc=auc,
        calibration=_ratio(sums["predicted"], sums["positive"]),
        calibration_window=_ratio(window["predicted"], window["positive"]),
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _auc(scores: np.ndarray) -> float | None:
    """From the histograms [negatives and positives, bins]: the share of pairs in the right order, ties half."""
    negative, positive = scores
    pairs = negative.sum() * positive.sum()
    if not pairs > 0:
        return None
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs)
