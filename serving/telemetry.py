"""What a server counts and measures, for `/status` and `/metrics`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.batcher import BatchDone

WINDOW = 10_000
"""Measurements that percentiles look back over."""
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
FRESHNESS_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)

Percentiles = dict[str, float | None]


class Window:
    """The last measurements of one quantity."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        """Take one in."""
        self._values.append(value)

    def percentiles(self) -> Percentiles:
        """p50, p95 and p99; None before the first measurement."""
        if not self._values:
            return dict.fromkeys(("p50", "p95", "p99"))
        p50, p95, p99 = np.percentile(np.array(self._values), (50, 95, 99)).tolist()
        return {"p50": round(p50, 3), "p95": round(p95, 3), "p99": round(p99, 3)}


class Telemetry:
    """Counters of one server. Called from the event loop and from the follower's thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests that were scored or refused, by outcome.", "outcome")
        self.candidates = self._counter("candidates", "Candidates scored.")
        self.rows = self._counter("rows", "Rows of feature groups: asked for, and distinct ones computed.", "kind")
        self.versions = self._counter("versions", "Versions put into service or refused.", "outcome")
        self.store_errors = self._counter("store_errors", "Times that the newest version could not be found out.")
        self.control_errors = self._counter("control_errors", "Control messages that could not be read or done.")
        self.version = Gauge("recd_serving_version", "The version in service, 0 for none.", registry=self.registry)
        self._latency_s = self._histogram(
            "request_seconds", "Time from a whole request to its answer.", LATENCY_BUCKETS
        )
        self._waited_s = self._histogram("queue_seconds", "Time that a request waited to be scored.", LATENCY_BUCKETS)
        self._batch_s = self._histogram("batch_seconds", "Time to score what was scored together.", LATENCY_BUCKETS)
        self._batch_requests = self._histogram("batch_requests", "Requests scored together.", BATCH_BUCKETS)
        self._waiting = Gauge("recd_serving_under_way", "Requests taken in, not answered yet.", registry=self.registry)
        self._weights_to_server_s = Histogram(
            "recd_weights_to_server_seconds",
            "Time from taking the weights in the trainer to having them in service.",
            buckets=FRESHNESS_BUCKETS,
            registry=self.registry,
        )
        self.latency_ms = Window()
        self.waited_ms = Window()
        self.batch_requests = Window()
        self.weights_to_server_ms = Window()
        self._totals = dict.fromkeys(
            (
                "requests",
                "candidates",
                "errors",
                "batches",
                "versions_loaded",
                "versions_rejected",
                "rows",
                "rows_computed",
            ),
            0,
        )

    def scored(self, candidates: int, *, elapsed_s: float) -> None:
        """A request was answered."""
        self._totals["requests"] += 1
        self._totals["candidates"] += candidates
        self.requests.labels("ok").inc()
        self.candidates.inc(candidates)
        self._latency_s.observe(elapsed_s)
        self.latency_ms.add(1000 * elapsed_s)

    def batch_scored(self, batch: BatchDone) -> None:
        """Requests were scored together."""
        self._totals["batches"] += 1
        self._totals["rows"] += batch.rows
        self._totals["rows_computed"] += batch.distinct
        self.rows.labels("asked").inc(batch.rows)
        self.rows.labels("computed").inc(batch.distinct)
        self._batch_s.observe(batch.elapsed_s)
        self._batch_requests.observe(batch.requests)
        self.batch_requests.add(batch.requests)
        for waited_s in batch.waited_s:
            self._waited_s.observe(waited_s)
            self.waited_ms.add(1000 * waited_s)

    def show_waiting(self, count: Callable[[], int]) -> None:
        """Export how many requests are under way."""
        self._waiting.set_function(count)

    def failed(self, outcome: str) -> None:
        """A request got no scores: `invalid`, `not_ready`, `overloaded`, `deadline`, `cancelled` or `error`."""
        self._totals["requests"] += 1
        self._totals["errors"] += 1
        self.requests.labels(outcome).inc()

    def version_loaded(self, version: int, *, weights_to_server_ms: int | None) -> None:
        """A version is in service; None where its age says nothing (the first one found at start, one asked for)."""
        self._totals["versions_loaded"] += 1
        self.versions.labels("loaded").inc()
        self.version.set(version)
        if weights_to_server_ms is not None:
            self.weights_to_server_ms.add(weights_to_server_ms)
            self._weights_to_server_s.observe(max(0, weights_to_server_ms) / 1000)

    def version_rejected(self) -> None:
        """A version could not be loaded."""
        self._totals["versions_rejected"] += 1
        self.versions.labels("rejected").inc()

    def counters(self) -> dict[str, int]:
        """Totals since the start; `rows - rows_computed` is what deduplication saved."""
        return dict(self._totals)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text form."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"recd_serving_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"recd_serving_{name}", text, buckets=buckets, registry=self.registry)
