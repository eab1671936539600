"""A storm over the stream workers: traffic flows while workers, the broker and Redis go down; then the audit."""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis
import yaml

from recd import child
from recd.audit import AuditReport, audit, format_report
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from recd.presets import preset_path
from stream.kafka import end_offsets
from tests.storm.crew import Crew, CrewError, StormWorker, killed
from tests.storm.journal_watch import JournalWatch, now_ms
from tests.storm.plan import A_KILL, Blow, Kind, Round
from tests.storm.recoveries import logged, medians, steps
from tests.storm.worker import Order
from tests.stream.rig import ROOT, Rig, drained

RATE = 200
SESSION_TIMEOUT_MS, TRANSACTION_TIMEOUT_MS = 6_000, 8_000
"""Shorter ones, on a machine under heavy load, end transactions that only were slow, again and again."""
BROKER = {
    "group.consumer.session.timeout.ms": SESSION_TIMEOUT_MS,
    "group.consumer.min.session.timeout.ms": SESSION_TIMEOUT_MS,
    "group.min.session.timeout.ms": SESSION_TIMEOUT_MS,
}
CLASSIC = {"session.timeout.ms": str(SESSION_TIMEOUT_MS), "heartbeat.interval.ms": "500"}
POINT_PATIENCE_S = 8.0


@dataclass(slots=True)
class Tally:
    """What a storm did and found."""

    seed: int
    kills: int = 0
    kills_by_point: dict[str, int] = field(default_factory=dict)
    """`any` for those at a random moment."""
    rebalances: int = 0
    """Times that partitions were handed to a worker."""
    zombies: int = 0
    fenced: int = 0
    broker_restarts: int = 0
    redis_losses: int = 0
    events: int = 0
    samples: int = 0
    lost: int = -1
    duplicated: int = -1
    recovery_ms: dict[str, int | None] = field(default_factory=dict)
    recovery_steps_ms: dict[str, int] = field(default_factory=dict)
    """Medians: kill to assignment, from there to the open partition, from there to its first commit that is seen."""
    seconds: float = 0.0
    trouble: str = ""

    @property
    def clean(self) -> bool:
        """Nothing lost, nothing doubled, every zombie fenced, nobody ended by itself."""
        return self.lost == self.duplicated == 0 and not self.trouble and self.fenced == self.zombies

    def to_dict(self) -> dict[str, Any]:
        """The closing line."""
        return {**asdict(self), "clean": self.clean}


class Storm:
    """One storm on servers of its own."""

    def __init__(self, folder: Path, *, seed: int, say: Callable[[str], object]) -> None:
        self._kafka = EmbeddedKafka(folder / "kafka", settings=BROKER)
        self._redis = EmbeddedRedis(folder / "redis")
        self._folder = folder
        self._began_s = time.monotonic()
        self._say = say
        self._logs: set[str] = set()
        self._struck_ms = self._due = 0
        self.tally = Tally(seed)

    def run(self, rounds: Sequence[Round]) -> Tally:
        """All of it; what goes wrong with the workers stands in the tally."""
        with self._kafka, self._redis:
            self._rig = _rig(self._folder, self._kafka, self._redis).create()
            self._traffic = self._start_traffic()
            try:
                with JournalWatch(self._rig.config) as self._watch:
                    for round_ in rounds:
                        self._round(round_, last=round_ is rounds[-1])
                self._judge(audit(self._rig.config))
            except CrewError as error:
                self.tally.trouble = str(error)
                self._tell(f"TROUBLE {error}")
            finally:
                child.kill(self._traffic)
                self._rig.close()
        events, recoveries = logged(self._folder, self._logs), self._watch.recoveries()
        self.tally.rebalances = sum(event["event"] == "assigned" and bool(event["partitions"]) for event in events)
        self.tally.recovery_ms = {
            "p50": int(statistics.median(one.took_ms for one in recoveries)) if recoveries else None,
            "max": max((one.took_ms for one in recoveries), default=None),
        }
        self.tally.recovery_steps_ms = medians(steps(recoveries, events))
        self.tally.seconds = round(time.monotonic() - self._began_s, 1)
        return self.tally

    def _round(self, round_: Round, *, last: bool) -> None:
        self._rig.tree["stream"]["group_protocol"] = round_.protocol
        self._rig.tree["kafka"]["options"] = CLASSIC if round_.protocol == "classic" else {}
        self._rig.write()
        self._crew = Crew(self._rig, round_, tick=self._check_servers)
        for phase in round_.phases:
            self._crew.resize(phase.workers)
            self._tell(f"{round_.name}: {phase.workers} workers")
            for blow in phase.blows:
                if blow.calm:
                    self._crew.wait(self._all_is_well, "commit of every partition")
                time.sleep(blow.pause_s)
                self._hit(blow)
        self._make_up(round_)
        if last:
            self._settle()
        self._crew.stop()
        self._logs |= self._crew.names

    def _hit(self, blow: Blow) -> None:
        self._strike(blow)
        self._crew.fill()
        self._struck_ms = now_ms()

    def _make_up(self, round_: Round) -> None:
        """A kill at any moment for each victim that was gone, or never came to its point."""
        self._due += round_.kills
        while self.tally.kills < self._due:
            self._crew.wait(self._all_is_well, "commit of every partition")
            self._hit(A_KILL)

    def _all_is_well(self) -> bool:
        partitions = self._rig.config.topics.partitions
        return self._watch.all_went_on(since_ms=self._struck_ms, partitions=partitions)

    def _strike(self, blow: Blow) -> None:
        match blow.kind:
            case Kind.KILL:
                self._kill(self._crew.victim(blow.victim), "any")
            case Kind.KILL_IN_TRANSACTION:
                victim = self._crew.victim(blow.victim)
                victim.arm(Order(blow.point, blow.count, blow.delay_ms))
                self._kill_at_point(victim, blow)
            case Kind.KILL_HEIR:
                self._kill_heir(blow)
            case Kind.KILL_LEAVER:
                victim = self._crew.victim(blow.victim)
                victim.arm(Order(blow.point, 1, blow.delay_ms))
                victim.process.send_signal(signal.SIGTERM)
                self._kill_at_point(victim, blow)
            case Kind.ZOMBIE:
                self._zombie(blow)
            case Kind.BROKER_KILL | Kind.BROKER_STOP:
                self._restart_broker(blow)
            case Kind.REDIS_KILL:
                self._redis.kill()
                time.sleep(1.0)
                self._redis.start()
                self._note_redis(blow)
            case Kind.REDIS_FLUSH:
                with redis.Redis.from_url(self._redis.url) as client:
                    client.flushall()
                self._note_redis(blow)

    def _kill(self, victim: StormWorker, point: str, *, at_ms: int | None = None) -> None:
        at_ms = killed(victim) if at_ms is None else at_ms
        held = tuple(sorted(victim.held))
        self.tally.kills += 1
        self.tally.kills_by_point[point] = self.tally.kills_by_point.get(point, 0) + 1
        self._watch.lost(at_ms=at_ms, partitions=held)
        self._tell(f"kill {self.tally.kills}: {victim.name}, which held {list(held)}, at {point}")

    def _kill_at_point(self, victim: StormWorker, blow: Blow) -> None:
        """It was armed; where it does not come to the point it is killed anyway."""
        ended = victim.ended_within(POINT_PATIENCE_S)
        if ended and victim.process.returncode != -signal.SIGKILL:
            self._tell(f"{victim.name} left before it came to {blow.point}")
            return
        self._kill(victim, blow.point if ended else "any", at_ms=now_ms() if ended else None)

    def _kill_heir(self, blow: Blow) -> None:
        """The first dies; who is assigned its partitions, or has to give some to its replacement, dies as well."""
        victim = self._crew.victim(blow.victim)
        order = Order(blow.point, 1, blow.delay_ms)
        heirs = [worker for worker in self._crew.alive if worker is not victim]
        for heir in heirs:
            heir.arm(order)
        self._kill(victim, "any")
        self._crew.fill()
        newcomers = [worker for worker in self._crew.alive if worker not in heirs]
        if not heirs or blow.point != "revoked":
            for newcomer in newcomers:
                newcomer.arm(order)
        deadline = time.monotonic() + 2 * POINT_PATIENCE_S
        armed = [*heirs, *newcomers]
        while time.monotonic() < deadline and all(worker.alive for worker in armed):
            self._check_servers()
            time.sleep(0.005)
        for worker in armed:
            if not worker.alive:
                self._kill(worker, blow.point, at_ms=now_ms())
        for worker in armed:
            worker.arm(Order(""))

    def _zombie(self, blow: Blow) -> None:
        """Stopped with a transaction open; the others take over; it wakes up and must notice."""
        zombie = self._crew.victim(blow.victim)
        zombie.arm(Order(blow.point, 1, blow.delay_ms, stop=True))
        if not zombie.stopped_within(POINT_PATIENCE_S):
            zombie.process.send_signal(signal.SIGSTOP)
        held = zombie.held
        self._tell(f"zombie: {zombie.name} stopped at {blow.point} with {sorted(held)}")
        others = [worker for worker in self._crew.alive if worker is not zombie]
        self._crew.wait(lambda: held <= {p for worker in others for p in worker.working_on}, "heir of a zombie")
        before = zombie.troubles()
        zombie.process.send_signal(signal.SIGCONT)
        self.tally.zombies += 1
        self._crew.wait(lambda: zombie.troubles() > before or not zombie.alive, "zombie that found out")
        self.tally.fenced += zombie.alive
        self._tell(f"zombie: {zombie.name} woke up and was fenced")

    def _restart_broker(self, blow: Blow) -> None:
        worker = self._crew.victim(blow.victim)
        if blow.kind is Kind.BROKER_KILL:
            worker.arm(Order(blow.point, 1, blow.delay_ms, stop=True))
            worker.stopped_within(POINT_PATIENCE_S)
            self._kafka.kill()
        else:
            self._kafka.stop()
        worker.process.send_signal(signal.SIGCONT)
        self._kafka.start()
        self.tally.broker_restarts += 1
        self._tell(f"{blow.kind}: up again")

    def _note_redis(self, blow: Blow) -> None:
        self.tally.redis_losses += 1
        self._tell(str(blow.kind))

    def _settle(self) -> None:
        """The traffic ends, every session is closed, everything is committed."""
        self._traffic.terminate()
        if status := self._traffic.wait(timeout=90):
            log = (self._folder / "generate.log").read_text()[-1_000:]
            raise CrewError(f"the generator ended with status {status}: {log}")
        config = self._rig.config
        self._crew.wait(lambda: all(worker.state.get("ready") for worker in self._crew.alive), "crew that is ready")
        self._rig.control("close")
        ends = end_offsets(config.kafka, config.topics.interactions)

        def done() -> bool:
            shown = {p: s for worker in self._crew.alive for p, s in worker.state.get("partitions", {}).items()}
            live = {int(p): s for p, s in shown.items() if s["state"] == "live"}
            return live.keys() == ends.keys() and all(drained(live[p], end=ends[p]) for p in ends)

        self._crew.wait(done, "drained crew")

    def _judge(self, report: AuditReport) -> None:
        self._say(format_report(report))
        self.tally.events, self.tally.samples = report.events, report.samples
        self.tally.lost, self.tally.duplicated = report.lost, report.duplicated
        left = report.unread + report.open_impressions + report.open_engagements + report.unsettled
        if not report.ok or left:
            self.tally.trouble = f"audit: {report.offences}, {left} records without a fate"
        self._rig.samples()

    def _check_servers(self) -> None:
        if self._traffic.poll():
            log = (self._folder / "generate.log").read_text()[-1_000:]
            raise CrewError(f"the generator ended with status {self._traffic.returncode}: {log}")

    def _start_traffic(self) -> subprocess.Popen[bytes]:
        faults = ("--out-of-order", "0.05", "--retries", "0.03", "--malformed", "0.03")
        options = ("--rate", str(RATE), "--seed", str(self.tally.seed), *faults)
        command = [sys.executable, "-m", "recd", "generate", "--config", str(self._rig.config_path), *options]
        return child.spawn(command, log_path=self._folder / "generate.log", cwd=ROOT)

    def _tell(self, text: str) -> None:
        self._say(f"[{time.monotonic() - self._began_s:6.1f} s] {text}")


def _rig(folder: Path, kafka: EmbeddedKafka, redis_server: EmbeddedRedis) -> Rig:
    """The demo's events and features, sessions of a second or two, transactions that do not hold readers up long."""
    rig = Rig(folder, kafka=kafka.bootstrap, redis=redis_server.url, prefix="storm-")
    preset = yaml.safe_load(preset_path("demo").read_text())
    rig.tree |= {section: preset[section] for section in ("events", "features", "labels")}
    rig.tree["topics"]["partitions"] = 4
    rig.tree["session"] = {"gap_ms": 2_000, "out_of_orderness_ms": 300, "idle_after_ms": 300}
    rig.tree["batch"] = {"max_wait_ms": 150, "max_samples": 64}
    rig.tree["dedup"] = {"inline_bytes": 128}
    snapshots = {"snapshot_every_events": 50}
    rig.tree["stream"] |= {"max_poll_records": 200, "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS, **snapshots}
    rig.write()
    return rig
