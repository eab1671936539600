"""The sums against torchrec.metrics, and against slow obvious versions."""

import math

import numpy as np
import pytest
import torch
from torchrec.metrics.auc import compute_auc
from torchrec.metrics.calibration import CalibrationMetricComputation
from torchrec.metrics.ne import NEMetricComputation

from trainer.evaluation import Evaluation, merge_states
from trainer.metrics import LabelMetrics, compute, compute_segments, cross_entropy
from trainer.segments import ITEM_BUCKETS, SEGMENTS, Marks


def stream(count: int, *, seed: int = 0, labels: int = 1, size: int = 200):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        truth = rng.beta(1, 5, (size, labels))
        yield {
            "predictions": np.clip(truth + rng.normal(0, 0.05, truth.shape), 0.001, 0.999).astype(np.float32),
            "labels": (rng.random(truth.shape) < truth).astype(np.float32),
            "weights": rng.choice([0.5, 1.0, 2.0], size).astype(np.float32),
            "scores": truth.astype(np.float32),
        }


def add(evaluation: Evaluation, batch: dict[str, np.ndarray]) -> np.ndarray:
    rest = {name: array for name, array in batch.items() if name != "predictions"}
    return evaluation.add(batch["predictions"], **rest)


def reference(kind: type, batches: list[dict[str, np.ndarray]]) -> float:
    metric = kind(my_rank=0, batch_size=200, n_tasks=1, window_size=10_000)
    for batch in batches:
        metric.update(
            predictions=torch.from_numpy(batch["predictions"].T).double(),
            labels=torch.from_numpy(batch["labels"].T).double(),
            weights=torch.from_numpy(batch["weights"][None]).double(),
        )
    return float(metric.compute()[0].value)


@pytest.mark.filterwarnings("ignore")
def test_ne_calibration_and_auc_equal_those_of_torchrec():
    batches = list(stream(40))
    evaluation = Evaluation(1)
    for batch in batches:
        add(evaluation, batch)
    metrics = compute(evaluation.state())[0]
    assert metrics.ne == pytest.approx(reference(NEMetricComputation, batches), rel=1e-6)
    assert metrics.calibration == pytest.approx(reference(CalibrationMetricComputation, batches), rel=1e-6)
    columns = {n: torch.from_numpy(np.concatenate([b[n] for b in batches])) for n in ("predictions", "labels")}
    weights = torch.from_numpy(np.concatenate([b["weights"] for b in batches]))
    auc = compute_auc(1, [columns["predictions"].T], [columns["labels"].T], [weights[None]])
    assert metrics.auc == pytest.approx(float(auc[0]), abs=2e-4)
    assert metrics.auc_window == pytest.approx(float(auc[0]), abs=1e-3)


def test_logged_scores_are_judged_on_the_samples_that_have_one():
    evaluation = Evaluation(1)
    entropy = positive = weight = 0.0
    for batch in stream(10):
        batch["scores"][::3] = np.nan
        add(evaluation, batch)
        for score, label, w in zip(batch["scores"][:, 0], batch["labels"][:, 0], batch["weights"], strict=True):
            if not math.isnan(score):
                entropy -= w * (math.log(score) if label else math.log1p(-score))
                positive, weight = positive + w * label, weight + w
    rate = positive / weight
    base = -(positive * math.log(rate) + (weight - positive) * math.log(1 - rate))
    assert compute(evaluation.state())[0].logged_ne == pytest.approx(entropy / base, rel=1e-5)


def test_the_progressive_base_rate_knows_only_the_past():
    evaluation = Evaluation(1)
    positive = weight = entropy = 0.0
    for batch in stream(10):
        rate = (positive + 1) / (weight + 2)
        sums = add(evaluation, batch)
        w, y = batch["weights"].astype(float), batch["labels"][:, 0]
        entropy -= float((w * np.where(y > 0, math.log(rate), math.log(1 - rate))).sum())
        positive, weight = positive + float((w * y).sum()), weight + float(w.sum())
        assert sums[0, 0] == pytest.approx(w.sum())
    rate = positive / weight
    base = -(positive * math.log(rate) + (weight - positive) * math.log(1 - rate))
    assert compute(evaluation.state())[0].base_ne == pytest.approx(entropy / base)


def test_the_window_forgets():
    batches = list(stream(30))
    for batch in batches[:20]:
        batch["labels"] = 1 - batch["labels"]
    evaluation = Evaluation(1, window=2_000)
    newest = Evaluation(1)
    for number, batch in enumerate(batches):
        add(evaluation, batch)
        if number >= 20:
            add(newest, batch)
    assert compute(evaluation.state())[0].ne_window == pytest.approx(compute(newest.state())[0].ne)
    assert compute(evaluation.state())[0].ne > 1.5


def test_non_finite_predictions_are_counted_and_added_nowhere():
    clean, spoiled = Evaluation(2), Evaluation(2)
    for batch in stream(5, labels=2):
        add(clean, {**batch, "weights": np.where(np.arange(200) < 3, 0, batch["weights"]).astype(np.float32)})
        batch["predictions"][:3] = [[np.nan, np.inf], [-np.inf, np.nan], [np.nan, np.nan]]
        add(spoiled, batch)
    assert spoiled.non_finite == 30
    assert compute(spoiled.state()) == compute(clean.state())


def test_stopping_and_resuming_is_invisible():
    batches = list(stream(60, labels=2))
    whole, first, second = Evaluation(2, window=1_000), Evaluation(2, window=1_000), Evaluation(2, window=1_000)
    for batch in batches:
        add(whole, batch)
    for batch in batches[:31]:
        add(first, batch)
    second.restore(first.state())
    for batch in batches[31:]:
        add(second, batch)
    expected = whole.state()
    for name, array in second.state().items():
        np.testing.assert_array_equal(array, expected[name])


def test_two_ranks_together_are_one():
    batches = list(stream(20, labels=2))
    whole, even, odd = Evaluation(2), Evaluation(2), Evaluation(2)
    for number, batch in enumerate(batches):
        add(whole, batch)
        add(even if number % 2 == 0 else odd, batch)
    together, alone = compute(merge_states([even.state(), odd.state()])), compute(whole.state())
    for mine, other in zip(together, alone, strict=True):
        assert mine.ne == pytest.approx(other.ne)
        assert mine.auc == pytest.approx(other.auc)
        assert mine.calibration == pytest.approx(other.calibration)


def test_without_both_kinds_of_labels_there_is_no_ne():
    evaluation = Evaluation(1)
    assert compute(evaluation.state())[0].ne is None
    predictions = np.full((4, 1), 0.3, np.float32)
    evaluation.add(predictions, labels=np.zeros((4, 1)), weights=np.ones(4), scores=np.full((4, 1), np.nan))
    metrics = compute(evaluation.state())[0]
    assert (metrics.ne, metrics.auc, metrics.calibration, metrics.logged_ne) == (None, None, None, None)


def test_a_label_or_a_weight_that_is_not_finite_spoils_nothing():
    clean, spoiled = Evaluation(2), Evaluation(2)
    for batch in stream(5, labels=2):
        add(clean, {**batch, "weights": np.where(np.arange(200) < 2, 0, batch["weights"]).astype(np.float32)})
        batch["weights"][0], batch["labels"][1] = np.nan, np.inf
        add(spoiled, batch)
    assert spoiled.non_finite == 20
    assert compute(spoiled.state()) == compute(clean.state())


def marked(count: int, *, seed: int = 0):
    """Batches with marks: items come up one after the other."""
    rng = np.random.default_rng(seed)
    for number, batch in enumerate(stream(count, seed=seed, labels=2)):
        items = rng.integers(0, 5 + 3 * number, 200) % ITEM_BUCKETS
        yield batch | {"marks": Marks(items, None, rng.random(200) < 0.2)}


def slow_metrics(rows: list[tuple], *, label: int) -> dict[str, float]:
    """NE, AUC and calibration of rows (prediction, label, weight), pair by pair."""
    p, y, w = (np.array([row[i] for row in rows], float) for i in range(3))
    rate = (w * y).sum() / w.sum()
    base = (w * cross_entropy(np.full(len(p), rate), labels=y)).sum()
    right = pairs = 0.0
    for i in np.flatnonzero(y == 1):
        others = y == 0
        won = (p[i] > p[others]) + 0.5 * (p[i] == p[others])
        right, pairs = right + w[i] * (w[others] * won).sum(), pairs + w[i] * w[others].sum()
    return {
        "ne": (w * cross_entropy(p, labels=y)).sum() / base,
        "auc": right / pairs,
        "calibration": (w * p).sum() / (w * y).sum(),
    }


def test_every_segment_is_as_the_slow_obvious_version_says():
    evaluation = Evaluation(2, new_item_samples=20)
    seen: dict[int, int] = {}
    rows: dict[str, list[list[tuple]]] = {name: [[], []] for name in SEGMENTS}
    for batch in marked(30):
        marks = batch["marks"]
        before = dict(seen)
        for i, (item, late) in enumerate(zip(marks.items.tolist(), marks.late.tolist(), strict=True)):
            seen[item] = seen.get(item, 0) + 1
            known = before.get(item, 0) >= 20
            for segment in ("known_items" if known else "new_items", "late" if late else "on_time"):
                for label in range(2):
                    row = (batch["predictions"][i, label], batch["labels"][i, label], batch["weights"][i])
                    rows[segment][label].append(row)
        add(evaluation, batch)
    for state in (evaluation.state(), evaluation.totals(), merge_states([evaluation.totals()])):
        for segment, metrics in compute_segments(state).items():
            for label, found in enumerate(metrics):
                expected = slow_metrics(rows[segment][label], label=label)
                assert found.ne == pytest.approx(expected["ne"], rel=1e-6)
                assert found.calibration == pytest.approx(expected["calibration"], rel=1e-6)
                assert found.auc == pytest.approx(expected["auc"], abs=1e-3)
                assert found.ne_window == pytest.approx(expected["ne"], rel=1e-6)
    assert min(len(rows[segment][0]) for segment in SEGMENTS) > 100


def test_segments_survive_a_resume():
    batches = list(marked(40))
    whole, first, second = (Evaluation(2, window=1_000, new_item_samples=20) for _ in range(3))
    for batch in batches:
        add(whole, batch)
    for batch in batches[:17]:
        add(first, batch)
    second.restore(first.state())
    for batch in batches[17:]:
        add(second, batch)
    assert compute_segments(second.state()) == compute_segments(whole.state())
    assert isinstance(compute_segments(whole.state())["new_items"][0], LabelMetrics)


def test_a_state_of_another_form_is_refused():
    with pytest.raises(ValueError, match=r"sums is \(8, 2\), expected \(4, 8, 2\)"):
        Evaluation(2).restore({**Evaluation(2).state(), "sums": np.zeros((8, 2))})
