"""A storm over the trainer: kill -9 in training, checkpointing and publishing; then its losses against a calm run's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from recd.audit.compare import compare_training
from recd.audit.report import Offences
from recd.audit.topics import read_cut, read_samples
from recd.embedded import EmbeddedKafka
from stream.config import Config
from tests.storm_trainer.crew import Crew, CrewError
from tests.storm_trainer.plan import ANY, CHUNK, Blow
from tests.trainer.made_batches import World
from tests.trainer.trainers import cut_in_force, make_topics, send, steps, trained, trainer_config
from trainer.versions import VersionStore

OFTEN_MS = 40
POINT_PATIENCE_S = 60.0


@dataclass(slots=True)
class Tally:
    """What a storm did and found; numbers of samples, milliseconds."""

    seed: int
    kills: int = 0
    kills_by_point: dict[str, int] = field(default_factory=dict)
    ranks: list[int] = field(default_factory=list)
    batches: int = 0
    lost: int = 0
    duplicated: int = 0
    resumed_bit_equal: bool = True
    recovery_ms: dict[str, int | None] = field(default_factory=dict)
    """From a kill (and the end of the other ranks) until all train again, where no kill came before."""
    missed: list[str] = field(default_factory=list)
    """Points that were planned, and at which nobody was killed."""
    lingered: int = 0
    """Ranks that did not end by themselves after another one was killed."""
    seconds: float = 0.0
    trouble: str = ""

    @property
    def clean(self) -> bool:
        """Nothing lost, nothing doubled, every loss to the bit, and every point was hit."""
        return self.lost == self.duplicated == 0 and self.resumed_bit_equal and not self.trouble and not self.missed

    def to_dict(self) -> dict[str, Any]:
        """The closing line."""
        return {**asdict(self), "clean": self.clean}


class Storm:
    """Storms over trainers of some ranks, on one broker."""

    def __init__(self, kafka: EmbeddedKafka, folder: Path, *, seed: int, say: Callable[[str], object]) -> None:
        self._kafka = kafka
        self._folder = folder
        self._say = say
        self._began_s = time.monotonic()
        self._recoveries: list[int] = []
        self._planned: set[str] = set()
        self._killed_ms: int | None = None
        self.tally = Tally(seed)

    def run(self, blows: Sequence[Blow], *, ranks: int) -> Tally:
        """One trainer of so many ranks through all blows; what goes wrong stands in the tally."""
        tally = self.tally
        tally.ranks.append(ranks)
        self._killed_ms = None
        root = self._folder / f"ranks-{ranks}"
        stormy = self._config(root / "stormy", ranks=ranks)
        make_topics(stormy, partitions=ranks)
        worlds = [World(stormy, seed=tally.seed + p) for p in range(ranks)]
        try:
            for blow in blows:
                self._send(stormy, worlds)
                self._strike(stormy, root / "stormy", blow, ranks=ranks)
                self._audit(stormy, samples_in_all=None)
            self._send(stormy, worlds)
            count = (len(blows) + 1) * CHUNK
            tally.batches += count * ranks
            self._finish(stormy, root / "stormy", ranks=ranks, count=count)
            self._audit(stormy, samples_in_all=count * ranks * 64)
            calm = self._config(root / "calm", ranks=ranks)
            self._finish(calm, root / "calm", ranks=ranks, count=count)
            self._compare(stormy, calm, ranks=ranks)
        except (CrewError, AssertionError) as error:
            tally.trouble = str(error)
            self._tell(f"TROUBLE {error}")
        self._planned.update(blow.point for blow in blows)
        tally.missed = sorted(self._planned - tally.kills_by_point.keys())
        found = self._recoveries
        tally.recovery_ms = {"p50": int(statistics.median(found)) if found else None, "max": max(found, default=None)}
        tally.seconds = round(time.monotonic() - self._began_s, 1)
        return tally

    def _config(self, folder: Path, *, ranks: int) -> Config:
        folder.mkdir(parents=True)
        prefix = f"storm-{self._folder.name}-{ranks}-"
        often = {"checkpoint_every_ms": OFTEN_MS, "publish_every_ms": OFTEN_MS, "keep_versions": 5}
        config = trainer_config(folder, kafka=self._kafka, prefix=prefix, ranks=ranks, **often)
        # What the made batches say that they came from.
        return replace(config, topics=replace(config.topics, interactions="interactions"))

    def _send(self, config: Config, worlds: Sequence[World]) -> None:
        """While nobody trains: the ranks' steps then pair the same batches however they are polled."""
        for partition, world in enumerate(worlds):
            send(config, list(world.batches(CHUNK, partition=partition)), partition=partition)

    def _strike(self, config: Config, folder: Path, blow: Blow, *, ranks: int) -> None:
        tally = self.tally
        cue = "never:0" if blow.point == ANY else blow.cue
        with Crew(config, folder, ranks=ranks, victim=blow.rank, cue=cue) as crew:
            if blow.point == ANY:
                if blow.in_training:
                    crew.wait_until(lambda status: status["state"] in ("training", "idle"))
                time.sleep(blow.delay_s)
            ended = blow.point != ANY and crew.victim_ended(blow.rank, within_s=POINT_PATIENCE_S)
            if not ended:
                crew.ranks[blow.rank].kill()
            tally.lingered += crew.bury()
        point = blow.point if ended else ANY
        tally.kills += 1
        tally.kills_by_point[point] = tally.kills_by_point.get(point, 0) + 1
        self._note_recovery(crew)
        self._killed_ms = _now_ms()
        progress = f"{trained(config)} batches trained, {_cut_step(config)} steps in the cut"
        self._tell(f"kill {tally.kills}: rank {blow.rank} of {ranks} at {point}, {progress}")

    def _note_recovery(self, crew: Crew) -> None:
        if self._killed_ms is not None and (events := crew.events("training")):
            began = datetime.fromisoformat(events[0]["time"]).timestamp() * 1000
            self._recoveries.append(round(began) - self._killed_ms)

    def _finish(self, config: Config, folder: Path, *, ranks: int, count: int) -> None:
        """Train all that there is, undisturbed, and end in order."""
        with Crew(config, folder, ranks=ranks) as crew:
            crew.wait_until(lambda status: status.get("lag_batches") == 0 and trained(config) >= count * ranks)
            if (status := crew.stop()) != 0:
                raise CrewError(f"told to stop, a rank ended with status {status}:\n{crew.tail()}")
            self._note_recovery(crew)
            self._killed_ms = None

    def _audit(self, config: Config, *, samples_in_all: int | None) -> None:
        """Of the cut in force against the topic; at the end it has to hold all samples."""
        cut, samples, offences = read_cut(config), read_samples(config), Offences()
        counts = compare_training(cut, samples, topic=config.topics.batches, offences=offences)
        self.tally.lost += counts["trained_never"]
        self.tally.duplicated += counts["trained_twice"]
        problems = [*cut.problems, *samples.problems]
        if problems or offences.counts:
            raise CrewError(f"audit: {dict(offences.counts)} {problems}")
        if samples_in_all is not None and counts["trained_once"] != samples_in_all:
            raise CrewError(f"audit: {counts['trained_once']} of {samples_in_all} samples are in the last cut")

    def _compare(self, stormy: Config, calm: Config, *, ranks: int) -> None:
        """Every loss and every weight, to the bit."""
        for rank in range(ranks):
            pairs = zip(steps(stormy, rank=rank), steps(calm, rank=rank), strict=True)
            if odd := [(a, b) for a, b in pairs if a != b]:
                self.tally.resumed_bit_equal = False
                self._tell(f"rank {rank}: {len(odd)} steps differ, the first: {odd[0][0]} in place of {odd[0][1]}")
        found, expected = (_last_weights(config) for config in (stormy, calm))
        if found.keys() != expected.keys() or any(not np.array_equal(found[k], expected[k]) for k in found):
            self.tally.resumed_bit_equal = False
            self._tell(f"{ranks} ranks: the last versions differ")

    def _tell(self, text: str) -> None:
        self._say(f"[{time.monotonic() - self._began_s:6.1f} s] {text}")


def _last_weights(config: Config) -> dict[str, np.ndarray]:
    store = VersionStore(config.trainer.versions_url, keep=5)
    newest = store.newest()
    if newest is None:
        raise CrewError(f"{config.trainer.versions_url}: nothing was published")
    version = store.load(newest)
    return {**version.dense, **version.tables}


def _cut_step(config: Config) -> int:
    current = Path(config.trainer.checkpoint_url) / "current.json"
    return int(cut_in_force(config)["step"]) if current.exists() else 0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
