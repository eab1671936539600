"""Ages of samples: percentiles within the width of a bin, memory bounded."""

import numpy as np
import pytest

from trainer.latency import BOUNDS_MS, Ages, Histogram


@pytest.mark.parametrize("scale", [3.0, 250.0, 9e6, 3e11])
def test_percentiles_are_right_within_a_bin(scale: float):
    values = np.random.default_rng(1).gamma(2, scale, 50_000)
    histogram = Histogram()
    for part in np.array_split(values, 7):
        histogram.add(part)
    found = histogram.percentiles()
    for quantile, value in ((50, found.p50), (95, found.p95), (99, found.p99)):
        assert value == pytest.approx(np.percentile(values, quantile), rel=0.1)
    assert histogram.sum_ms == pytest.approx(values.sum())


def test_nothing_counted_is_nothing_said():
    assert Histogram().percentiles().p99 is None


def test_values_beyond_both_ends_are_counted():
    histogram = Histogram()
    histogram.add(np.array([-5.0, 0.0, 1e18]))
    assert histogram.counts.sum() == 3
    assert histogram.percentiles().p50 <= 1
    assert histogram.percentiles().p99 == pytest.approx(BOUNDS_MS[-1])


def test_prometheus_buckets_are_cumulative_seconds():
    histogram = Histogram()
    histogram.add(np.array([0.5, 3.0, 3.0, 1e12]))
    buckets = dict(histogram.cumulative())
    assert buckets["0.001"] == 1
    assert buckets["0.004"] == 3
    assert buckets["+Inf"] == 4


def test_ages_count_from_the_time_of_the_event_to_the_copy_of_the_weights():
    ages = Ages()
    ages.add(np.array([1_000, 1_500]), np.array([1_400, 1_900]))
    ages.taken(2_000)
    ages.taken(9_000_000)
    assert ages.event_to_weights.sum_ms == 1_500
    assert ages.append_to_weights.sum_ms == 700
    assert ages.event_to_weights.counts.sum() == 2


def test_ages_that_wait_for_ever_are_given_up_and_counted(monkeypatch):
    monkeypatch.setattr("trainer.latency.MAX_PENDING", 3)
    ages = Ages()
    for _ in range(5):
        ages.add(np.zeros(2), np.zeros(2))
    ages.taken(10)
    assert ages.event_to_weights.counts.sum() == 4
    assert ages.not_measured == 6
