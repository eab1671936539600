"""Progressive evaluation: every sample is predicted before the model learns from it.

What is remembered are sums, in float64 and weighted: over the lifetime, and over the newest samples in parts, so that
a window can forget. They stand by cell (`trainer.segments`), so that any segment's metrics are sums of cells.
Letters in shapes: B samples, L labels, C cells, P parts of the window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from trainer.metrics import (
    LIFETIME_BINS,
    NUM_SUMS,
    SUMS,
    WINDOW_BINS,
    State,
    cross_entropy,
    score_bins,
)
from trainer.segments import ITEM_BUCKETS, NUM_CELLS, KnownItems, Marks

WINDOW_SAMPLES = 20_000
WINDOW_PARTS = 20
NEW_ITEM_SAMPLES = 50


class Evaluation:
    """Sums over one rank's predictions, by label: over the lifetime, and over the newest `window` samples."""

    def __init__(
        self, num_labels: int, *, window: int = WINDOW_SAMPLES, new_item_samples: int = NEW_ITEM_SAMPLES
    ) -> None:
        """An item is new until this rank has trained `new_item_samples` of it (255 at most)."""
        self._window = window
        self._sums = np.zeros((NUM_CELLS, NUM_SUMS, num_labels))
        self._scores = np.zeros((NUM_CELLS, 2, num_labels, LIFETIME_BINS))
        self._parts: deque[np.ndarray] = deque()
        self._part_scores: deque[np.ndarray] = deque()
        self._part_samples: deque[int] = deque()
        self._items = KnownItems(enough=new_item_samples)
        self.samples = 0
        self.non_finite = 0
        """Predictions that were not finite, or whose label or weight was not: counted here, added nowhere."""

    def add(
        self,
        predictions: np.ndarray,
        *,
        labels: np.ndarray,
        weights: np.ndarray,
        scores: np.ndarray,
        marks: Marks | None = None,
    ) -> np.ndarray:
        """Take in one batch: predictions, labels and scores [B, L], weights [B]; returns its sums [len(SUMS), L].

        Without `marks` all samples are on time and of known items.
        """
        finite = np.isfinite(predictions) & np.isfinite(labels) & np.isfinite(weights)[:, None]
        self.non_finite += int(predictions.size - finite.sum())
        weights_BL = np.where(finite, weights[:, None], 0.0).astype(np.float64)
        clean = np.where(finite, predictions, 0.5).astype(np.float64)
        clean_labels = np.where(finite, labels, 0.0).astype(np.float64)
        cells_B = self._items.cells(marks, num_samples=len(labels))
        sums = _batch_sums(clean, labels=clean_labels, weights=weights_BL, scores=scores, cells=cells_B)
        sums[:, SUMS.index("base_entropy")] = self._base_entropy(sums)
        histogram = _histogram(clean, labels=clean_labels, weights=weights_BL, cells=cells_B)
        self._sums += sums
        self._scores += histogram
        self._add_window(sums, histogram=histogram, num_samples=len(labels))
        self.samples += len(labels)
        total: np.ndarray = sums.sum(axis=0)
        return total

    def state(self) -> State:
        """Everything that is remembered, as arrays; `restore` takes it back."""
        return {
            **self._lifetime(),
            "window": _stack(self._parts, like=self._sums),
            "window_scores": _stack(self._part_scores, like=_coarse(self._scores)),
            "window_samples": np.array(self._part_samples, dtype=np.int64),
            "items": self._items.counts.copy(),
        }

    def totals(self) -> State:
        """The same for `merge_states` and the metrics alone: the window in one part, items left out."""
        whole = self.state() | {"items": np.zeros(0, np.uint8)}
        samples = whole["window_samples"].sum(keepdims=True)
        sums = {name: whole[name].sum(axis=0, keepdims=True) for name in ("window", "window_scores")}
        return whole | sums | {"window_samples": samples}

    def restore(self, state: State) -> None:
        """Continue from a `state` of the same labels; ValueError otherwise."""
        parts = state["window_samples"].shape[:1] if "window_samples" in state else (0,)
        shapes = {
            "sums": self._sums.shape,
            "scores": self._scores.shape,
            "window": (*parts, *self._sums.shape),
            "window_scores": (*parts, *_coarse(self._scores).shape),
            "window_samples": parts,
            "counts": (2,),
            "items": (ITEM_BUCKETS,),
        }
        for name, shape in shapes.items():
            if name not in state or state[name].shape != shape:
                found = state[name].shape if name in state else "nothing"
                raise ValueError(f"metrics: {name} is {found}, expected {shape}")
        self._sums, self._scores = state["sums"].copy(), state["scores"].copy()
        self._parts = deque(np.array(part) for part in state["window"])
        self._part_scores = deque(np.array(part) for part in state["window_scores"])
        self._part_samples = deque(state["window_samples"].tolist())
        self._items.counts = state["items"].copy()
        self.samples, self.non_finite = state["counts"].tolist()

    def restore_items(self, state: State) -> None:
        """Continue with what is known of items only: another rank goes on with the metrics. ValueError as `restore`."""
        if "items" not in state or state["items"].shape != (ITEM_BUCKETS,):
            raise ValueError("metrics: no items, or of another form")
        self._items.counts = state["items"].copy()

    def _lifetime(self) -> State:
        return {
            "sums": self._sums.copy(),
            "scores": self._scores.copy(),
            "counts": np.array([self.samples, self.non_finite], dtype=np.int64),
        }

    def _base_entropy(self, sums: np.ndarray) -> np.ndarray:
        """Cross entropy of the rate of positives before this batch (one positive and one negative at the start)."""
        before = self._sums.sum(axis=0)
        rate = (before[1] + 1) / (before[0] + 2)
        weight, positive = sums[:, 0], sums[:, 1]
        entropy: np.ndarray = -(positive * np.log(rate) + (weight - positive) * np.log1p(-rate))
        return entropy

    def _add_window(self, sums: np.ndarray, *, histogram: np.ndarray, num_samples: int) -> None:
        if self._parts and self._part_samples[-1] < self._window // WINDOW_PARTS:
            self._parts[-1] += sums
            self._part_scores[-1] += _coarse(histogram)
            self._part_samples[-1] += num_samples
        else:
            self._parts.append(sums.copy())
            self._part_scores.append(_coarse(histogram))
            self._part_samples.append(num_samples)
        while sum(self._part_samples) - self._part_samples[0] >= self._window:
            self._parts.popleft()
            self._part_scores.popleft()
            self._part_samples.popleft()


def merge_states(states: Sequence[State]) -> State:
    """One state for what several ranks saw; windows stand one behind the other, an item is as known as by all."""
    return {
        "sums": np.sum([state["sums"] for state in states], axis=0),
        "scores": np.sum([state["scores"] for state in states], axis=0),
        "window": np.concatenate([state["window"] for state in states]),
        "window_scores": np.concatenate([state["window_scores"] for state in states]),
        "window_samples": np.concatenate([state["window_samples"] for state in states]),
        "counts": np.sum([state["counts"] for state in states], axis=0),
        "items": np.minimum(np.sum([state["items"] for state in states], axis=0), 255).astype(np.uint8),
    }


def of_labels(state: State, *, was: Sequence[str], now: Sequence[str]) -> State:
    """The same state for other labels, taken over by name; a new label begins with nothing."""
    if list(was) == list(now):
        return state
    moved = {}
    for name, axis in (("sums", -1), ("scores", -2), ("window", -1), ("window_scores", -2)):
        before = np.moveaxis(state[name], axis, 0)
        nothing = np.zeros_like(before, shape=before.shape[1:])
        parts = [before[was.index(label)] if label in was else nothing for label in now]
        moved[name] = np.stack(parts, axis=axis)
    return state | moved


def _batch_sums(
    predictions: np.ndarray, *, labels: np.ndarray, weights: np.ndarray, scores: np.ndarray, cells: np.ndarray
) -> np.ndarray:
    """Sums by cell [C, len(SUMS), L]."""
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
    stacked = np.stack([parts[name] for name in SUMS])
    sums = np.zeros((NUM_CELLS, NUM_SUMS, labels.shape[1]))
    for cell in np.unique(cells):
        sums[cell] = stacked[:, cells == cell].sum(axis=1)
    return sums


def _histogram(predictions: np.ndarray, *, labels: np.ndarray, weights: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Weights [C, negatives and positives, L, LIFETIME_BINS] of predictions."""
    num_labels = labels.shape[1]
    shape = (NUM_CELLS, 2, num_labels, LIFETIME_BINS)
    bins = score_bins(predictions) + np.arange(num_labels) * LIFETIME_BINS
    places = bins + cells[:, None] * (2 * num_labels * LIFETIME_BINS)
    both = np.concatenate([places.ravel(), (places + num_labels * LIFETIME_BINS).ravel()])
    shares = np.concatenate([(weights * (1 - labels)).ravel(), (weights * labels).ravel()])
    counted: np.ndarray = np.bincount(both, weights=shares, minlength=int(np.prod(shape))).reshape(shape)
    return counted


def _coarse(histogram: np.ndarray) -> np.ndarray:
    coarse: np.ndarray = histogram.reshape(*histogram.shape[:-1], WINDOW_BINS, -1).sum(axis=-1).astype(np.float32)
    return coarse


def _stack(parts: deque[np.ndarray], *, like: np.ndarray) -> np.ndarray:
    return np.stack(list(parts)) if parts else np.zeros((0, *like.shape), like.dtype)
