"""Prometheus metrics of a stream worker, declared once, read from its counters when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from stream.counters import AGE_BOUNDS_S, Ages

COUNTERS = {
    "events": "Records of interactions processed.",
    "impressions": "Impressions accepted.",
    "engagements": "Engagements accepted.",
    "duplicates": "Events dropped because their id stood in the session already.",
    "late": "Records written to the late topic.",
    "quarantined": "Records written to the quarantine topic.",
    "sessions_closed": "Sessions closed.",
    "samples": "Samples written.",
    "sampled_out": "Impressions without a true label that are left out of the samples.",
    "positives": "Samples whose first label is true.",
    "batches": "Batches written.",
    "batch_bytes": "Bytes of batches, before compression.",
    "commits": "Transactions committed.",
    "aborts": "Transactions aborted.",
    "rebuilds": "Partitions rebuilt from the log.",
    "restores": "Partitions restored from a snapshot.",
    "snapshot_bytes": "Bytes of snapshots of open sessions, before compression.",
    "rows_in": "Feature rows before deduplication.",
    "rows_distinct": "Feature rows after deduplication.",
    "ids_in": "Ids in list features before deduplication.",
    "ids_stored": "Ids in list features after deduplication.",
    "bytes_plain": "Bytes that batches without deduplication would have.",
    "bytes_dedup": "Bytes of the deduplicated batches.",
    "values_shipped": "Values written to the values topic.",
    "near_hits": "Fingerprints found in the worker's own memory.",
    "near_misses": "Fingerprints that Redis was asked for.",
    "redis_errors": "Cuts, of many batches each, and commits that got no answer of Redis: values stand inline.",
    "redis_wait_ms": "Milliseconds spent waiting for Redis; redis.max_wait_share bounds them.",
    "redis_refused": "Calls to Redis that were not made because it is silent or too slow.",
    "kafka_errors": "Passing troubles with the broker.",
    "restarts": "Times the data path was started again.",
}
"""Every field of stream.counters.Counters, as `recd_stream_<name>_total`."""

GAUGES = {
    "position": "Next offset to process.",
    "lag": "Records of the partition that are not processed yet.",
    "open_sessions": "Sessions open.",
    "open_events": "Events that open sessions hold.",
    "watermark_ms": "Event time, in milliseconds, behind which sessions close.",
}
"""By partition, as `recd_stream_<name>`."""

NO_WATERMARK_SHOWN = 0


class WorkerMetrics(Collector):
    """All metrics of one worker. `status` is what `/status` shows."""

    def __init__(self, status: Callable[[], dict[str, Any]], *, ages: Ages) -> None:
        self._status = status
        self._ages = ages
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """Called by the registry."""
        status = self._status()
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"recd_stream_{name}", text, value=status["counters"][name])
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"recd_stream_{name}", text, labels=["partition"])
            for partition, shown in status["partitions"].items():
                gauge.add_metric([partition], max(NO_WATERMARK_SHOWN, shown.get(name, 0)))
            yield gauge
        yield GaugeMetricFamily(
            "recd_stream_hanging_transactions",
            "Transactions in the job's topics that the broker never ended: nobody reads past them.",
            value=len(status["hanging_transactions"]),
        )
        totals = np.cumsum(self._ages.counts).tolist()
        bounds = [*map(str, AGE_BOUNDS_S), "+Inf"]
        yield HistogramMetricFamily(
            "recd_event_to_batch_seconds",
            "From an impression's event time to the commit of its batch.",
            buckets=list(zip(bounds, totals, strict=True)),
            sum_value=self._ages.sum_ms / 1000,
        )
