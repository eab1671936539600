"""The training loop: what every rank does, step after step."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from stream.kafka import KafkaError
from trainer.agreement import Agreed, StepRules
from trainer.board import Board, RankReport, Summary
from trainer.cut import CutError
from trainer.feed import FedBatch, Feed, FeedError
from trainer.guarding import passed_over
from trainer.keeper import Keeper, Trained
from trainer.metrics import SUMS
from trainer.moves import DenseMove
from trainer.ranks import Ranks
from trainer.rates import RateError
from trainer.schedule import Schedule

logger = logging.getLogger("trainer.loop")

PATIENCE_S = 10.0
"""How long the other ranks wait for one whose topic is known to hold more."""
LOOK_UP_S = 0.1
"""How often a waiting rank looks whether it was told to stop."""
PAUSED_S = 0.05
PUBLISHER_PATIENCE_S = 20.0
"""How long the end waits for a version that is being written, twice at most: less than the launcher waits."""


class NonFiniteLoss(Exception):
    """A batch, or the weights before it, gave a loss that is not finite; training stops before the update."""


class OtherRankFailed(Exception):
    """Another rank cannot go on; its own error says why."""


class TrainingLoop:
    """Trains until it is told to stop. All ranks step together; one without data brings an empty sample."""

    def __init__(
        self,
        trained: Trained,
        *,
        feed: Feed,
        keeper: Keeper,
        board: Board,
        schedule: Schedule,
        rules: StepRules,
        stop: threading.Event,
    ) -> None:
        """`stop`, once set by anyone: finish the step, keep what was trained, return from `run`."""
        self._trained = trained
        self._ranks: Ranks = trained.model.ranks
        self._feed = feed
        self._keeper = keeper
        self._board = board
        self._schedule = schedule
        self._dummy = rules.dummy.to(self._ranks.device)
        self._full_batch = rules.full_batch
        self._label_weights = rules.label_weights.to(self._ranks.device)
        self._stop = stop
        self._failure: Exception | None = None
        self._spoiled = 0
        """Ranks whose loss was not finite in the last step."""
        self._passed_over = False
        """Whether the last step's loss was not finite, so that nobody learned from it."""
        self._held = False
        self._paused = False
        self._was_dummy = False
        self._uncut = False
        # What was trained before, but never published: without traffic no step would ask for it.
        self._unpublished = trained.state.step > 0 and keeper.publisher.version == 0
        self._rates: Mapping[str, float | None] = {}
        """What rank 0 was told; the others are told by it."""
        self._rates_refused = 0
        self._loss: float | None = None
        self._loss_samples = 0
        counted = ("batches", "dummy_steps", "non_finite_dense", "batches_passed_over")
        self._own_counters = dict.fromkeys(counted, 0)

    def run(self) -> None:
        """Train. Raises FeedError, KafkaError, NonFiniteLoss (what was trained is kept), CutError (the last failed)."""
        while True:
            fed = self._fetch()
            agreed = self._agree(fed)
            if agreed.ranks_with_data:
                self._step(fed, agreed)
            if agreed.stop or agreed.failed or self._spoiled:
                break
            self._obey(agreed)
        self._finish()
        if self._failure is not None:
            raise self._failure
        if agreed.failed or self._spoiled:
            raise OtherRankFailed(f"rank {self._ranks.rank} stops: another rank cannot go on")

    def _fetch(self) -> FedBatch | None:
        """The next batch of this rank, if there is one soon enough."""
        if self._paused or self._failure is not None:
            time.sleep(PAUSED_S)
            return None
        try:
            return self._wait_for_batch()
        except (FeedError, KafkaError) as error:
            self._failure = error
            return None

    def _wait_for_batch(self) -> FedBatch | None:
        idle_s = self._schedule.idle_timeout_s
        alone = self._ranks.world_size == 1
        deadline_s = time.monotonic() + (idle_s if alone else PATIENCE_S)
        while True:
            at_end = self._feed.idle
            fed = self._feed.get(timeout_s=0 if at_end and self._was_dummy else min(idle_s, LOOK_UP_S))
            if fed is not None and self._keeper.guarding.passes_over(fed.partition, fed.offset):
                logger.warning("a batch is passed over", extra={"partition": fed.partition, "offset": fed.offset})
                return passed_over(fed, dummy=self._dummy)
            if fed is not None or at_end or self._stop.is_set() or time.monotonic() >= deadline_s:
                return fed

    def _agree(self, fed: FedBatch | None) -> Agreed:
        has_data = fed is not None
        failed = self._failure is not None
        guarding = self._keeper.guarding
        vector: list[int] = [fed.num_samples if fed else 0, has_data, self._stop.is_set(), failed]
        if self._ranks.rank == 0:
            publisher, cuts = self._keeper.publisher, self._keeper.cuts
            wants = self._schedule.wants(
                uncut=self._uncut or cuts.owes,
                unpublished=(self._unpublished or publisher.owes) and not self._held,
                cut_busy=cuts.busy,
                publisher_busy=publisher.busy,
            )
            self._rates = wants.rates
            publish = wants.publish and guarding.may_publish()
            vector += [wants.checkpoint, publish, wants.report, wants.reload, bool(wants.rates)]
            vector += [self._schedule.paused, wants.release]
        else:
            vector += [0] * 7
        vector += [guarding.holding, guarding.new_alarms]
        agreed = Agreed(*self._ranks.sums(vector))
        self._was_dummy = not has_data and agreed.ranks_with_data > 0
        return agreed

    def _step(self, fed: FedBatch | None, agreed: Agreed) -> None:
        """Predict, judge the predictions, learn, and only then count the batch as trained."""
        trained = self._trained
        sums, self._passed_over = None, False
        if agreed.samples:
            real = fed is not None and fed.num_samples > 0
            batch = fed.tensors.to(self._ranks.device) if fed is not None else self._dummy
            trained.model.use_rates(step=trained.state.step)
            logits = trained.model(batch)
            losses = binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
            loss = (losses * batch.weights[:, None] * self._label_weights).sum()
            self._passed_over = not self._agree_to_learn(fed, loss)
            if self._spoiled:
                return
            if fed is not None and real and math.isfinite(float(loss.detach())):
                sums = self._judge(fed, logits)
            if self._passed_over:
                trained.model.forget_batch()
            else:
                self._learn(fed, loss)
                if not real:
                    self._keeper.guarding.rest(agreed.samples)
        trained.state.step += 1
        self._uncut = self._unpublished = True
        if fed is None:
            self._own_counters["dummy_steps"] += 1
        else:
            self._record(fed, sums)

    def _agree_to_learn(self, fed: FedBatch | None, loss: torch.Tensor) -> bool:
        """Whether every rank's loss is finite. If not, nobody learns from this step, and all may stop after it."""
        value = float(loss.detach())
        if fed is not None and fed.num_samples:
            weight = float(fed.tensors.weights.sum(dtype=torch.float64)) or 1.0
            self._loss, self._loss_samples = value / weight, fed.num_samples
        finite = math.isfinite(value)
        stops = self._keeper.guarding.stops_at_bad_losses
        if not finite and not stops:
            self._keeper.guarding.bad(fed, loss=value, step=self._trained.state.step + 1)
        elif not finite:
            place = f"the loss of batch {fed.partition}@{fed.offset}" if fed else "the loss of a step without data"
            self._failure = NonFiniteLoss(
                f"{place} is {value}: look at the batch, or go back to an older cut; nothing was learned from it"
            )
        (bad,) = self._ranks.sums([not finite])
        self._spoiled = bad if stops else 0
        return not bad

    def _learn(self, fed: FedBatch | None, loss: torch.Tensor) -> None:
        trained, guarding = self._trained, self._keeper.guarding
        if not guarding.measures_moves:
            trained.model.update(loss / self._full_batch)
            return
        move = DenseMove(trained.model)
        trained.model.update(loss / self._full_batch)
        guarding.moved(fed, share=move.share(), step=trained.state.step + 1)

    def _judge(self, fed: FedBatch, logits: torch.Tensor) -> np.ndarray:
        """Progressive evaluation: what the model said before it learns."""
        batch, predictions = fed.tensors, torch.sigmoid(logits.detach()).cpu().numpy()
        self._keeper.guarding.look(fed, predictions=predictions, step=self._trained.state.step + 1)
        return self._trained.evaluation.add(
            predictions,
            labels=batch.labels.numpy(),
            weights=batch.weights.numpy(),
            scores=batch.scores.numpy(),
            marks=fed.marks,
        )

    def _record(self, fed: FedBatch, sums: np.ndarray | None) -> None:
        trained = self._trained
        learned = not self._passed_over and not fed.skipped
        trained.state.record(fed, learned=learned)
        self._own_counters["batches_passed_over"] += not learned
        if learned:
            trained.ages.add(fed.event_times_ms, fed.append_times_ms)
        self._own_counters["batches"] += 1
        self._own_counters["non_finite_dense"] += fed.non_finite_dense
        line: dict[str, Any] = {
            "step": trained.state.step,
            "partition": fed.partition,
            "offset": fed.offset,
            "samples": fed.num_samples,
            "loss": self._loss if sums is not None else None,
        }
        if sums is not None:
            line |= {name: sums[i].tolist() for i, name in enumerate(SUMS)}
        trained.steps.append(line)

    def _obey(self, agreed: Agreed) -> None:
        """Between two steps, in this order: learning rates, other weights, a cut, a version, a report."""
        self._paused = bool(agreed.paused)
        if agreed.rates:
            self._take_rates()
        guarding, was_held = self._keeper.guarding, self._held
        self._held = bool(agreed.held)
        if agreed.release or (was_held and not self._held and not agreed.alarms):
            guarding.end(released=bool(agreed.release))
        elif agreed.alarms:
            guarding.tell()
        if agreed.reload and self._keeper.reload(agreed.reload):
            self._uncut = self._unpublished = True
        if agreed.checkpoint and self._passed_over:
            self._schedule.cut_later()  # the weights may be spoiled, which the next batches tell
        elif agreed.checkpoint:
            self._tell_alarms()
            self._keeper.begin_cut()
            self._uncut = False
        # Asked again: what was agreed on is from before the step.
        if agreed.publish and not self._ranks.sums([guarding.holding])[0]:
            self._keeper.publish()
            self._unpublished = False
        if agreed.report:
            idle = "idle" if self._feed.idle and not agreed.ranks_with_data else "training"
            self._report("paused" if self._paused else idle)

    def _tell_alarms(self) -> None:
        """Those of the last step: after a cut behind their batches nobody would raise them again."""
        guarding = self._keeper.guarding
        if self._ranks.sums([guarding.new_alarms])[0]:
            guarding.tell()

    def _take_rates(self) -> None:
        """Those that rank 0 heard of, on all ranks."""
        given = self._ranks.gather(self._rates)[0]
        try:
            self._trained.model.rates.give(given)
        except RateError as error:
            self._rates_refused += 1
            logger.warning("learning rates were refused", extra={"reason": str(error)})
        else:
            logger.info("learning rates were given", extra={"rates": dict(given)})
            self._uncut = True

    def _finish(self) -> None:
        """The last cut and the last version, where there is something new."""
        self._tell_alarms()
        self._keeper.cuts.wait()
        (uncut,) = self._ranks.sums([self._uncut or self._keeper.cuts.owes])
        kept = not uncut or self._keeper.checkpoint()
        publisher = self._keeper.publisher
        publisher.wait(timeout_s=PUBLISHER_PATIENCE_S)
        guarding = self._keeper.guarding
        own = [self._unpublished or publisher.owes, publisher.busy, guarding.holding or not guarding.may_publish()]
        unpublished, busy, held = self._ranks.sums(own)
        if unpublished and not busy and not held:
            self._keeper.publish()
            publisher.wait(timeout_s=PUBLISHER_PATIENCE_S)
        publisher.wait_for_full(timeout_s=PUBLISHER_PATIENCE_S)
        if publisher.busy:
            logger.warning("the last version is not waited for any longer", extra={"seconds": PUBLISHER_PATIENCE_S})
        self._report("failed" if self._failure else "stopped")
        if self._failure is None and not kept:
            why = self._keeper.last_error
            self._failure = CutError(f"the last cut was not written, the one before it is in force: {why}")

    def _report(self, state: str) -> None:
        trained, keeper = self._trained, self._keeper
        keeper.note_cuts()
        ages = {"event_to_weights": trained.ages.event_to_weights, "append_to_weights": trained.ages.append_to_weights}
        report = RankReport(
            partitions=trained.state.partitions,
            counters=self._counters(),
            evaluation=trained.evaluation.totals(),
            ages={name: (histogram.counts.copy(), histogram.sum_ms) for name, histogram in ages.items()},
            loss=self._loss,
            loss_samples=self._loss_samples,
            lag_batches=self._feed.lag_batches,
            stalled_s=self._feed.stalled_s,
        )
        reports = self._ranks.gather(report)
        error = self._failure or keeper.last_error or keeper.publisher.last_error
        takeover, rates = msgspec.to_builtins(keeper.taken_over), trained.model.rates.at(trained.state.step)
        publisher, said = keeper.publisher, str(error or "")
        share = round(publisher.delta_share, 6)
        guards, step = keeper.guarding.status(held=self._held), trained.state.step
        summary = Summary(state, step, publisher.version, keeper.cut, said, rates, share, takeover, guards)
        if self._ranks.rank == 0:
            self._board.show(summary, reports)

    def _counters(self) -> dict[str, int]:
        """This rank's; those that all ranks count alike only on rank 0."""
        trained, keeper, first = self._trained, self._keeper, self._ranks.rank == 0
        own = {
            **self._own_counters,
            "non_finite_predictions": trained.evaluation.non_finite,
            "samples_not_measured": trained.ages.not_measured,
            "step_log_failures": trained.steps.failures,
            **self._feed.counters(),
        }
        alike = {
            "steps": trained.state.step,
            **asdict(keeper.counts),
            **keeper.releases.counters(),
            **keeper.guarding.counts,
            "orders_obeyed": self._schedule.orders_obeyed,
            "orders_refused": self._schedule.orders_refused + self._rates_refused,
        }
        return own | {name: value if first else 0 for name, value in alike.items()}
