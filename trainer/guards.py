"""Whether what the trainer learns is still fit to be served: NE, calibration, users, numbers, moves of the weights.

A function of one rank's batches in their order; nothing here reads a clock. Letters in shapes: B samples, L labels.

The reference is what NE and calibration were before the window, over batches that raised no alarm, older ones counting
ever less; a calibration off 1 only widens the band, for a model that is still learning starts far off. Chance is
allowed for by three standard errors of the window's own sums.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stream.config import GuardsConfig
from trainer.alarms import Alarm, Place
from trainer.metrics import cross_entropy, normalised_entropy
from trainer.segments import USER_BUCKETS

ERRORS = 3.0
"""Standard errors that count as chance."""
MEMORY_SAMPLES = 100_000
"""After so many samples a batch counts in the reference for a third."""
MIN_OF_EACH_KIND = 30
"""Positives and negatives in the window, below which a label is not judged."""
WEIGHT, POSITIVE, PREDICTED, ENTROPY, ENTROPY_SQUARES, POSITIVE_VARIANCE = range(6)
NUM_SUMS = 6


@dataclass(frozen=True)
class Sight:
    """A batch with what the model said of it before learning: predictions, labels [B, L], weights [B]."""

    place: Place
    predictions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    users: np.ndarray | None = None
    """Bucket of each sample's user."""
    non_finite_share: float = 0.0
    """Of its numbers."""


@dataclass
class _Seen:
    place: Place
    samples: int
    sums: np.ndarray
    users: tuple[np.ndarray, np.ndarray] | None
    named: bool = field(default=False)


class Guards:
    """One rank's guards. Every method returns the alarms that it raises; `holding` says whether to publish."""

    def __init__(self, config: GuardsConfig, *, labels: Sequence[str]) -> None:
        self._config = config
        self._labels = list(labels)
        self._window: deque[_Seen] = deque()
        self._users = np.zeros(USER_BUCKETS, np.int64)
        self._reference = np.zeros((NUM_SUMS, len(labels)))
        self._good_samples = 0
        self._unclean = 0
        """Samples without an alarm that are still to come before publishing goes on."""
        self._wrong = False

    @property
    def holding(self) -> bool:
        """Whether something was wrong so lately that nothing should be published."""
        return self._unclean > 0

    def look(self, sight: Sight) -> list[Alarm]:
        """Take in a batch that was predicted and is about to be trained."""
        if not self._config.enabled:
            return []
        seen = _seen(sight)
        self._push(seen)
        self._wrong = False
        alarms = [*self._check_numbers(sight), *self._check_users(), *self._check_labels()]
        if self._wrong:
            self._hold()
        else:
            self._unclean = max(0, self._unclean - seen.samples)
        return alarms

    def rest(self, samples: int) -> None:
        """So many samples were trained by other ranks alone."""
        self._unclean = max(0, self._unclean - samples)

    def moved(self, place: Place, share: float) -> list[Alarm]:
        """The step changed the dense weights by this share of their length."""
        limit = self._config.max_move
        if not self._config.enabled or (math.isfinite(share) and (limit is None or share <= limit)):
            return []
        if not math.isfinite(share):
            return self.spoiled(place, "gradient")
        self._hold()
        return [_alarm("move", place, value=share, limit=limit)]

    def spoiled(self, place: Place, reason: str, *, value: float = math.nan) -> list[Alarm]:
        """A loss or a gradient was not finite."""
        self._hold()
        return [_alarm(reason, place, value=value)]

    def release(self) -> None:
        """Take things as they are now for good: publishing goes on, and the reference is learned anew."""
        self._unclean = self._good_samples = 0
        self._reference[:] = 0
        self._window.clear()
        self._users[:] = 0

    def state(self) -> dict[str, np.ndarray]:
        """What outlives a restart; `restore` takes it back. The window begins anew."""
        return {"reference": self._reference.copy(), "counts": np.array([self._good_samples, self._unclean])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """From a `state` of the same labels; of others nothing is taken over but the hold."""
        self._good_samples, self._unclean = state["counts"].tolist()
        if state["reference"].shape == self._reference.shape:
            self._reference = state["reference"].copy()
        else:
            self._good_samples = 0

    def _hold(self) -> None:
        self._unclean = self._config.window_samples

    def _push(self, seen: _Seen) -> None:
        self._window.append(seen)
        if seen.users is not None:
            np.add.at(self._users, *seen.users)
        while self._num_samples - self._window[0].samples >= self._config.window_samples:
            old = self._window.popleft()
            if old.users is not None:
                np.subtract.at(self._users, *old.users)
            if not self.holding and not old.named:
                self._reference = self._reference * math.exp(-old.samples / MEMORY_SAMPLES) + old.sums
                self._good_samples += old.samples

    @property
    def _num_samples(self) -> int:
        return sum(seen.samples for seen in self._window)

    def _check_numbers(self, sight: Sight) -> Iterator[Alarm]:
        limit = self._config.max_non_finite_share
        if limit is not None and sight.non_finite_share > limit:
            yield from self._name([self._window[-1]], "features", value=sight.non_finite_share, limit=limit)

    def _check_users(self) -> Iterator[Alarm]:
        limit, samples = self._config.max_user_share, self._num_samples
        if limit is None or samples < self._config.window_samples:
            return
        user = int(self._users.argmax())
        share = float(self._users[user] / samples)
        if share <= limit:
            return
        flooded = [seen for seen in self._window if _share_of(seen, user) > limit]
        yield from self._name(flooded, "user", value=share, limit=limit)

    def _check_labels(self) -> Iterator[Alarm]:
        if self._good_samples < self._config.warmup_samples or self._num_samples < self._config.window_samples:
            return
        window = np.sum([seen.sums for seen in self._window], axis=0)
        for i, label in enumerate(self._labels):
            mine, usual = window[:, i], self._reference[:, i]
            if min(mine[POSITIVE], mine[WEIGHT] - mine[POSITIVE]) >= MIN_OF_EACH_KIND:
                yield from self._check_ne(mine, usual, label=label, column=i)
            if usual[POSITIVE] >= MIN_OF_EACH_KIND:
                yield from self._check_calibration(mine, usual, label=label, column=i)

    def _check_ne(self, mine: np.ndarray, usual: np.ndarray, *, label: str, column: int) -> Iterator[Alarm]:
        ne, ne_usual = _ne(mine), _ne(usual)
        if self._config.ne_band is None or ne is None or ne_usual is None:
            return
        limit = ne_usual * (1 + self._config.ne_band)
        chance = ERRORS * math.sqrt(mine[ENTROPY_SQUARES]) * ne / mine[ENTROPY]
        if ne - chance <= limit:
            return
        per_sample = (1 + self._config.ne_band) * usual[ENTROPY] / usual[WEIGHT]
        bad = [s for s in self._window if s.sums[ENTROPY, column] > per_sample * s.sums[WEIGHT, column]]
        yield from self._name(bad, "ne", value=ne, limit=limit, label=label)

    def _check_calibration(self, mine: np.ndarray, usual: np.ndarray, *, label: str, column: int) -> Iterator[Alarm]:
        band = self._config.calibration_band
        if band is None:
            return
        was = usual[PREDICTED] / usual[POSITIVE]
        upper, lower = band * max(1.0, was), min(1.0, was) / band
        chance = ERRORS * math.sqrt(mine[POSITIVE_VARIANCE])
        too_high = mine[PREDICTED] > upper * (mine[POSITIVE] + chance)
        too_low = mine[PREDICTED] < lower * (mine[POSITIVE] - chance)
        if not (too_high or too_low):
            return

        def is_off(seen: _Seen) -> bool:
            predicted, positive = seen.sums[PREDICTED, column], seen.sums[POSITIVE, column]
            return bool(predicted > upper * positive if too_high else predicted < lower * positive)

        bad = [seen for seen in self._window if is_off(seen)]
        value = float(mine[PREDICTED] / mine[POSITIVE]) if mine[POSITIVE] else math.inf
        limit = upper if too_high else lower
        yield from self._name(bad, "calibration", value=value, limit=limit, label=label)

    def _name(
        self, batches: Sequence[_Seen], reason: str, *, value: float, limit: float, label: str = ""
    ) -> Iterator[Alarm]:
        """Each batch once, for the first reason. Where none stands out the newest is named, unless one was before."""
        self._wrong = True
        if not batches and not any(seen.named for seen in self._window):
            batches = [self._window[-1]]
        for seen in batches:
            if seen.named:
                continue
            seen.named = True
            yield _alarm(reason, seen.place, value=value, limit=limit, label=label)


def merged(states: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One state for what several ranks knew: held as long as the one that is held longest."""
    good, unclean = zip(*(state["counts"].tolist() for state in states), strict=True)
    references = [state["reference"] for state in states]
    return {"reference": np.sum(references, axis=0), "counts": np.array([sum(good), max(unclean)])}


def _alarm(reason: str, place: Place, *, value: float, limit: float | None = None, label: str = "") -> Alarm:
    return Alarm(
        reason=reason,
        label=label,
        partition=place.partition,
        offset=place.offset,
        step=place.step,
        value=float(value) if math.isfinite(value) else None,
        limit=None if limit is None else float(limit),
    )


def _seen(sight: Sight) -> _Seen:
    """The batch's sums; what is not finite adds nothing."""
    finite = np.isfinite(sight.predictions) & np.isfinite(sight.labels) & np.isfinite(sight.weights)[:, None]
    weights = np.where(finite, sight.weights[:, None], 0.0).astype(np.float64)
    predictions = np.where(finite, sight.predictions, 0.5).astype(np.float64)
    labels = np.where(finite, sight.labels, 0.0).astype(np.float64)
    entropy = weights * cross_entropy(predictions, labels=labels)
    parts = [
        weights,
        weights * labels,
        weights * predictions,
        entropy,
        entropy**2,
        weights**2 * predictions * (1 - predictions),
    ]
    users = None if sight.users is None else np.unique(sight.users, return_counts=True)
    return _Seen(sight.place, len(weights), np.stack([part.sum(axis=0) for part in parts]), users)


def _share_of(seen: _Seen, user: int) -> float:
    if seen.users is None:
        return 0.0
    buckets, counts = seen.users
    return float(counts[buckets == user].sum() / seen.samples)


def _ne(sums: np.ndarray) -> float | None:
    return normalised_entropy(entropy=sums[ENTROPY], weight=sums[WEIGHT], positive=sums[POSITIVE])
