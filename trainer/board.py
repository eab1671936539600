"""What the trainer shows of itself: `/status` and `/metrics`, put together from all ranks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from trainer.cut_files import Progress
from trainer.evaluation import merge_states
from trainer.latency import Histogram
from trainer.metrics import LabelMetrics, compute, compute_segments, segment_weights
from trainer.progress import merge_partitions

RATE_WINDOW_S = 5.0
AGES = {
    "event_to_weights": "From a sample's event time to the moment when weights that learned from it were taken.",
    "append_to_weights": "The same from the time at which the broker took the event.",
}
GAUGES = ("ne", "ne_window", "base_ne", "logged_ne", "auc", "auc_window", "calibration", "calibration_window")


@dataclass(frozen=True)
class RankReport:
    """One rank's part, sent to rank 0 from time to time."""

    partitions: dict[int, Progress]
    counters: dict[str, int]
    """Of this rank; those of the whole trainer only from rank 0."""
    evaluation: dict[str, np.ndarray]
    ages: dict[str, tuple[np.ndarray, float]]
    """By name as in AGES: counts of the histogram and sum in milliseconds."""
    loss: float | None
    loss_samples: int
    lag_batches: int
    stalled_s: float


@dataclass(frozen=True)
class Summary:
    """What rank 0 knows for all."""

    state: str
    step: int
    version: int
    cut: str
    last_error: str
    learning_rates: dict[str, float]
    """Of the next step, by part."""
    delta_share: float = 0.0
    """Bytes of the newest delta in those of the newest full version."""
    takeover: dict[str, Any] | None = None
    """What became of the model when the trainer went on from a cut (`trainer.takeover.TakenOver`)."""
    guards: dict[str, Any] | None = None
    """Whether publishing is held back, why, and the newest alarms."""


class Board:
    """The newest status, as one value that any thread may read."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = list(labels)
        self._rates: deque[tuple[float, int]] = deque()
        self._ages = {name: Histogram() for name in AGES}
        self._status: dict[str, Any] = {"service": "trainer", "state": "starting", "counters": {}}
        self._metrics = _Metrics(self)
        self.take_order: Callable[[bytes], str | None] = lambda _: "the trainer is not ready for orders yet"
        """What `order` hands orders to."""

    @property
    def status(self) -> dict[str, Any]:
        """The JSON of `/status`."""
        return self._status

    @property
    def ready(self) -> bool:
        """Whether the trainer trains, or would if there were something to train from."""
        return self._status["state"] in ("training", "idle", "paused")

    def order(self, body: bytes) -> str | None:
        """Take an order that came by HTTP; why not, None where it was taken."""
        return self.take_order(body)

    def ages(self) -> dict[str, Histogram]:
        """The histograms that the newest status came from."""
        return self._ages

    def say(self, state: str, *, message: str = "") -> None:
        """Change the state alone."""
        self._status = {**self._status, "state": state, "last_error": message}

    def metrics(self) -> bytes:
        """The text of `/metrics`."""
        return self._metrics.render()

    def show(self, summary: Summary, reports: Sequence[RankReport]) -> None:
        """Put a new status together."""
        partitions = merge_partitions(report.partitions for report in reports)
        samples = sum(progress.samples for progress in partitions.values())
        evaluation = merge_states([report.evaluation for report in reports])
        metrics = compute(evaluation)
        ages = {name: _merged([report.ages[name] for report in reports]) for name in AGES}
        first = asdict(metrics[0]) if metrics else {}
        self._ages = ages
        self._status = {
            "service": "trainer",
            **asdict(summary),
            "samples": samples,
            "counters": _added([report.counters for report in reports]),
            "loss": _mean_loss(reports),
            **first,
            "labels": self._by_label(metrics),
            "segments": {name: self._by_label(of) for name, of in compute_segments(evaluation).items()},
            "segment_weights": segment_weights(evaluation),
            "lag_batches": sum(report.lag_batches for report in reports),
            "positions": {str(p): partitions[p].position for p in sorted(partitions)},
            "partition_samples": {str(p): partitions[p].samples for p in sorted(partitions)},
            "samples_per_second": self._rate(samples),
            "data_stall_seconds": round(sum(report.stalled_s for report in reports), 3),
            "ranks": len(reports),
            **{f"{name}_ms": asdict(histogram.percentiles()) for name, histogram in ages.items()},
        }

    def _by_label(self, metrics: Sequence[LabelMetrics]) -> dict[str, dict[str, float | None]]:
        return {name: asdict(of) for name, of in zip(self._labels, metrics, strict=True)}

    def _rate(self, samples: int) -> float:
        """Over the last seconds."""
        now_s = time.monotonic()
        self._rates.append((now_s, samples))
        while len(self._rates) > 2 and now_s - self._rates[1][0] >= RATE_WINDOW_S:
            self._rates.popleft()
        (first_s, before), elapsed = self._rates[0], now_s - self._rates[0][0]
        return round((samples - before) / elapsed, 1) if elapsed > 0 and first_s < now_s else 0.0


class _Metrics(Collector):
    def __init__(self, board: Board) -> None:
        self._board = board
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        status = self._board.status
        for name, value in status["counters"].items():
            yield CounterMetricFamily(f"recd_trainer_{name}", f"The trainer's {name.replace('_', ' ')}.", value=value)
        yield CounterMetricFamily(
            "recd_data_stall_seconds", "How long steps waited for data.", value=status.get("data_stall_seconds", 0)
        )
        for name in ("step", "version", "lag_batches", "samples_per_second", "delta_share"):
            yield GaugeMetricFamily(
                f"recd_trainer_{name}", f"The trainer's {name.replace('_', ' ')}.", value=status.get(name, 0)
            )
        rates = GaugeMetricFamily("recd_trainer_learning_rate", "Learning rate of the next step.", labels=["part"])
        for part, rate in status.get("learning_rates", {}).items():
            rates.add_metric([part], rate)
        yield rates
        holding = bool(status.get("guards", {}).get("holding"))
        yield GaugeMetricFamily("recd_trainer_holding", "Whether guards hold versions back.", value=holding)
        for name in GAUGES:
            whole = GaugeMetricFamily(f"recd_trainer_{name}", f"Progressive evaluation: {name}.", labels=["label"])
            for label, metrics in status.get("labels", {}).items():
                _add(whole, [label], metrics[name])
            yield whole
            text = f"Progressive evaluation of a segment of the samples: {name}."
            part = GaugeMetricFamily(f"recd_trainer_segment_{name}", text, labels=["label", "segment"])
            for segment, labels in status.get("segments", {}).items():
                for label, metrics in labels.items():
                    _add(part, [label, segment], metrics[name])
            yield part
        for name, histogram in self._board.ages().items():
            yield HistogramMetricFamily(
                f"recd_{name}_seconds", AGES[name], buckets=histogram.cumulative(), sum_value=histogram.sum_ms / 1000
            )


def _add(gauge: GaugeMetricFamily, labels: list[str], value: float | None) -> None:
    if value is not None:
        gauge.add_metric(labels, value)


def _merged(parts: Sequence[tuple[np.ndarray, float]]) -> Histogram:
    histogram = Histogram()
    for counts, sum_ms in parts:
        histogram.merge(counts, sum_ms)
    return histogram


def _added(counters: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(part.get(name, 0) for part in counters) for name in counters[0]}


def _mean_loss(reports: Sequence[RankReport]) -> float | None:
    """Of the newest step, by samples."""
    known = [(report.loss, report.loss_samples) for report in reports if report.loss is not None]
    total = sum(samples for _, samples in known)
    return sum(loss * samples for loss, samples in known) / total if total else None
