"""The guards of all ranks together: what is held back, what servers go back to, who is told.

What is decided here: a loss that is not finite is passed over before anything is learned from it, for training on
would spoil the weights. Gradients that are not finite are seen when the weights are spoiled already (tables are
updated within the backward pass), so the trainer ends, and begins again from its last cut without that batch.
Everything else is learned on with: such weights heal as good batches come, and are held back until they have.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stream.config import Config
from trainer.alarms import Alarm, AlarmFile, Place, Skips
from trainer.cut import CutError
from trainer.feed import FedBatch
from trainer.gate import Gate, Shadow
from trainer.guards import Guards, Sight, merged
from trainer.ikjt import TrainBatch
from trainer.publishing import Publisher
from trainer.ranks import Ranks
from trainer.versions import Snapshot, VersionError, VersionStore

logger = logging.getLogger("trainer.guards")

SHOWN_ALARMS = 20
SPOILED_LOSSES = 5
"""So many losses in a row that are not finite are no batch's fault: the weights are spoiled."""


class SpoiledWeights(Exception):
    """The weights are not finite any more: they must not be kept."""


class Guarding:
    """Made by every rank. Methods that say so are collectives; only rank 0 writes, publishes and tells."""

    def __init__(
        self, config: Config, *, ranks: Ranks, root: Path, versions: VersionStore, publisher: Publisher
    ) -> None:
        self._config = config.trainer.guards
        self._topic = config.topics.batches
        self._ranks = ranks
        self._versions = versions
        self._publisher = publisher
        self._guards = Guards(self._config, labels=[label.name for label in config.labels])
        try:
            self._skips = Skips(root, ranges=self._config.skip)
        except (ValueError, msgspec.DecodeError) as error:
            raise CutError(f"{root}: skip.json cannot be read: {error}; mend it or remove it") from None
        self._file = AlarmFile(root)
        self._raised: list[Alarm] = []
        self._shown: deque[Alarm] = deque(maxlen=SHOWN_ALARMS)
        self._first_bad_step: int | None = None
        self._bad_losses = 0
        self._bad_places: list[tuple[int, int]] = []
        self._refusal = ""
        self.counts = dict.fromkeys(("alarms", "publications_held", "rollbacks"), 0)
        gated = self._config.enabled and self._config.gate.enabled and ranks.rank == 0
        names = [label.name for label in config.labels]
        self._gate = Gate(self._config.gate, labels=names, shadow=Shadow(config)) if gated else None

    @property
    def new_alarms(self) -> int:
        """Raised by this rank, and not told yet."""
        return len(self._raised)

    @property
    def holding(self) -> bool:
        """Whether this rank has a reason not to publish."""
        return self._guards.holding

    @property
    def stops_at_bad_losses(self) -> bool:
        """Whether a loss that is not finite ends training, in place of being passed over."""
        return not self._config.enabled or self._config.non_finite_loss == "stop"

    @property
    def measures_moves(self) -> bool:
        """Whether `moved` is to be called after every step."""
        return self._config.enabled

    def passes_over(self, partition: int, offset: int) -> bool:
        """Whether this batch is not to be trained."""
        return (partition, offset) in self._skips

    def look(self, fed: FedBatch, *, predictions: np.ndarray, step: int) -> None:
        """A batch with a finite loss was predicted and is about to be trained."""
        self._bad_losses, self._bad_places = 0, []
        batch = fed.tensors
        numbers = sum(group.dense.numel() for group in batch.groups.values())
        sight = Sight(
            Place(fed.partition, fed.offset, step),
            predictions,
            batch.labels.numpy(),
            batch.weights.numpy(),
            users=fed.marks.users if fed.marks else None,
            non_finite_share=fed.non_finite_dense / numbers if numbers else 0.0,
        )
        self._raised += self._guards.look(sight)
        if self._gate is not None:
            self._gate.look(batch, predictions=predictions)

    def bad(self, fed: FedBatch | None, *, loss: float, step: int) -> None:
        """The loss was not finite. Raises SpoiledWeights where that is no batch's fault."""
        self._bad_losses += 1
        self._bad_places += [(fed.partition, fed.offset)] if fed else []
        place = Place(fed.partition, fed.offset, step) if fed else Place(-1, -1, step)
        self._raised += self._guards.spoiled(place, "loss", value=loss)
        if self._bad_losses >= SPOILED_LOSSES:
            self._skips.add(self._bad_places)
            raise SpoiledWeights(f"{SPOILED_LOSSES} losses in a row were not finite, the last of {_name(place)}")

    def rest(self, samples: int) -> None:
        """This rank had no data for a step in which the others trained so many samples."""
        self._guards.rest(samples)

    def moved(self, fed: FedBatch | None, *, share: float, step: int) -> None:
        """The step moved the dense weights, on all ranks alike. SpoiledWeights on all of them where to nowhere.

        Gradients are averaged over the ranks, so nobody knows whose batch it was: all of the step are passed over.
        """
        if fed is None and math.isfinite(share):
            return  # those with data hold
        place = Place(fed.partition, fed.offset, step) if fed else Place(-1, -1, step)
        alarms = self._guards.moved(place, share)
        if math.isfinite(share):
            self._raised += alarms
            return
        own = [msgspec.structs.replace(alarm, topic=self._topic) for alarm in alarms] if fed else []
        named = [alarm for part in self._ranks.gather(own) for alarm in part]
        if self._ranks.rank == 0:
            self._skips.add([(alarm.partition, alarm.offset) for alarm in named])
            self._file.append(named)
        places = " and ".join(_name(Place(alarm.partition, alarm.offset, step)) for alarm in named) or "a step"
        raise SpoiledWeights(f"the gradients of {places} were not finite: back to the last cut without it")

    def tell(self) -> None:
        """A collective, when any rank has alarms: into log and file, and servers go back."""
        alarms = [alarm for part in self._ranks.gather(self._raised) for alarm in part]
        self._raised = []
        if not alarms:
            return
        self.counts["alarms"] += len(alarms)
        first = min(alarm.step for alarm in alarms)
        self._first_bad_step = first if self._first_bad_step is None else min(first, self._first_bad_step)
        if self._ranks.rank != 0:
            return
        named = [msgspec.structs.replace(alarm, topic=self._topic) for alarm in alarms]
        for alarm in named:
            logger.error("a guard stops publishing", extra={"alarm": msgspec.to_builtins(alarm)})
        self._shown.extend(named)
        self._file.append(named)
        if self._config.rollback:
            self._go_back(self._first_bad_step)

    def end(self, *, released: bool) -> None:
        """No rank holds any more; `released`: because an operator says that things are as they should be."""
        if released:
            self._guards.release()
            self._raised = []
            if self._gate is not None:
                self._gate.forget()
        if self._first_bad_step is not None and self._ranks.rank == 0:
            logger.warning("publishing goes on", extra={"held_since_step": self._first_bad_step})
        self._first_bad_step = None

    def may_publish(self) -> bool:
        """Rank 0's gate: whether the weights are not worse than those in service."""
        worse = self._gate.worse() if self._gate is not None else None
        refusal = "" if worse is None else f"worse than version {self._publisher.version} in service on {worse.label}"
        if worse is not None:
            self.counts["publications_held"] += 1
        if worse is not None and not self._refusal:
            facts = {"entropy": worse.entropy, "in_service": worse.entropy_in_service, "samples": worse.samples}
            logger.warning("a version is held back", extra={"reason": refusal, **facts})
        self._refusal = refusal
        return worse is None

    def reloaded(self) -> None:
        """Other weights were taken, as ordered: they are not compared with those in service."""
        if self._gate is not None:
            self._gate.forget()

    def published(self, snapshot: Snapshot) -> None:
        """Rank 0 gave this snapshot out."""
        if self._gate is not None:
            self._gate.published(snapshot)

    def status(self, *, held: bool) -> dict[str, Any]:
        """For `/status`: whether publishing is held back and why, and the newest alarms."""
        return {
            "holding": held,
            "held_back": self._refusal,
            "since_step": self._first_bad_step,
            "alarms": [msgspec.to_builtins(alarm) for alarm in self._shown],
        }

    def state(self) -> dict[str, np.ndarray]:
        """What the cut keeps."""
        first = -1 if self._first_bad_step is None else self._first_bad_step
        return self._guards.state() | {"first_bad_step": np.array([first])}

    def restore(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """From the `state` of every rank that wrote the cut; one from before there were guards has none.

        Where there were as many ranks each takes its own, else all take all together: a hold outlives any change.
        """
        if not all("first_bad_step" in state for state in states):
            return
        same = len(states) == self._ranks.world_size
        self._guards.restore(dict(states[self._ranks.rank]) if same else merged(states))
        held = any(state["counts"][1] > 0 for state in states)
        firsts = [first for state in states if (first := int(state["first_bad_step"][0])) >= 0]
        self._first_bad_step = min(firsts, default=None) if held else None

    def _go_back(self, step: int) -> None:
        """Servers to the newest version that was taken before `step`; where there is none they stay."""
        self._publisher.wait()
        try:
            newest = self._versions.newest()
            if newest is None or self._versions.manifest(newest).step < step:
                return
            for version in reversed([v for v in self._versions.versions() if v < newest]):
                if self._versions.manifest(version).step < step:
                    self._publisher.serve(version)
                    self.counts["rollbacks"] += 1
                    logger.error("servers go back", extra={"from_version": newest, "to_version": version})
                    self._compare_with(version)
                    return
            logger.error("no version from before is left", extra={"in_service": newest, "step": step})
        except VersionError as error:
            logger.critical("servers could not be sent back", extra={"reason": str(error)})

    def _compare_with(self, version: int) -> None:
        """It is in service now; where it cannot be loaded nothing is compared until the next publication."""
        if self._gate is None:
            return
        try:
            self._gate.went_back(self._versions.load(version))
        except VersionError as error:
            self._gate.forget()
            logger.warning("nothing is compared with the version in service", extra={"reason": str(error)})


def passed_over(fed: FedBatch, *, dummy: TrainBatch) -> FedBatch:
    """The same place without its samples."""
    return FedBatch(
        tensors=dummy,
        partition=fed.partition,
        offset=fed.offset,
        next_partition=fed.next_partition,
        num_samples=0,
        id_sum=fed.id_sum,
        event_times_ms=fed.event_times_ms[:0],
        append_times_ms=fed.append_times_ms[:0],
        non_finite_dense=0,
        skipped=fed.num_samples,
    )


def _name(place: Place) -> str:
    return f"batch {place.partition}@{place.offset}" if place.partition >= 0 else "a step without data"
