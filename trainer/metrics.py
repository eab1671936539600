"""Metrics from the sums of an evaluation: normalised entropy, calibration, AUC.

Normalised entropy (NE) is the mean cross entropy of the predictions over that of always predicting the base rate
(He et al., ADKDD 2014). Letters in shapes: B samples, L labels, C cells of samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trainer.segments import NUM_CELLS, SEGMENTS

LOGIT_LIMIT = 16.0
LIFETIME_BINS = 2_048
WINDOW_BINS = 512
"""Bins of equal width in the logit of a prediction; inside a bin predictions count as equal."""
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
State = dict[str, np.ndarray]


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
    auc_window: float | None
    calibration: float | None
    """Sum of predictions over sum of labels; 1 is right on average."""
    calibration_window: float | None


def compute(state: State) -> list[LabelMetrics]:
    """The metrics of every label over all samples, from one rank's state or a merged one."""
    return _compute(state, cells=tuple(range(NUM_CELLS)))


def compute_segments(state: State) -> dict[str, list[LabelMetrics]]:
    """The same for each of SEGMENTS; `base_ne` is of the rate of positives among all samples so far."""
    return {name: _compute(state, cells=cells) for name, cells in SEGMENTS.items()}


def segment_weights(state: State) -> dict[str, float]:
    """Weight of each segment's samples, over the lifetime."""
    return {name: float(state["sums"][list(cells), 0].max(axis=-1).sum()) for name, cells in SEGMENTS.items()}


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


def score_bins(predictions: np.ndarray) -> np.ndarray:
    """The bin of each prediction among LIFETIME_BINS."""
    clipped = np.clip(predictions, ETA, 1 - ETA)
    logits = np.log(clipped) - np.log1p(-clipped)
    places = (logits / LOGIT_LIMIT + 1) / 2 * LIFETIME_BINS
    bins: np.ndarray = np.clip(places.astype(np.int64), 0, LIFETIME_BINS - 1)
    return bins


def _compute(state: State, *, cells: tuple[int, ...]) -> list[LabelMetrics]:
    chosen = list(cells)
    sums = state["sums"][chosen].sum(axis=0)
    window = state["window"].sum(axis=0)[chosen].sum(axis=0)
    scores = state["scores"][chosen].sum(axis=0)
    window_scores = state["window_scores"].sum(axis=0, dtype=np.float64)[chosen].sum(axis=0)
    return [
        _label_metrics(
            dict(zip(SUMS, sums[:, label].tolist(), strict=True)),
            window=dict(zip(SUMS, window[:, label].tolist(), strict=True)),
            auc=_auc(scores[:, label]),
            auc_window=_auc(window_scores[:, label]),
        )
        for label in range(sums.shape[1])
    ]


def _label_metrics(
    sums: dict[str, float], *, window: dict[str, float], auc: float | None, auc_window: float | None
) -> LabelMetrics:
    def ne(of: dict[str, float], name: str, prefix: str = "") -> float | None:
        weight, positive = of[f"{prefix}weight"], of[f"{prefix}positive"]
        return normalised_entropy(entropy=of[name], weight=weight, positive=positive)

    return LabelMetrics(
        ne=ne(sums, "entropy"),
        ne_window=ne(window, "entropy"),
        base_ne=ne(sums, "base_entropy"),
        logged_ne=ne(sums, "logged_entropy", "logged_"),
        auc=auc,
        auc_window=auc_window,
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
