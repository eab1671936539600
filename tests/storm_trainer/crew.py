"""The ranks of one trainer, started together and warm; when one is killed the others end by themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from recd.embedded import free_port
from stream.config import Config, to_yaml
from tests.forkserver import TRAINING, WarmProcess
from tests.trainer.trainers import Trainer

SCRIPT = str(Path(__file__).with_name("rank.py"))
OTHERS_END_S = 60.0
START_S = 300.0


class CrewError(Exception):
    """A rank did what it must not."""


class Crew(Trainer):
    """As `Trainer`, whose process is rank 0; the others stand beside it."""

    def __init__(self, config: Config, folder: Path, *, ranks: int, victim: int = 0, cue: str = "never:0") -> None:
        self.config = config
        self.log = folder / f"rank-0-{time.monotonic_ns()}.log"
        path = folder / "recd.yaml"
        path.write_text(to_yaml(config))
        port = str(free_port())
        self.ranks: list[WarmProcess] = []
        for rank in range(ranks):
            log = self.log if rank == 0 else folder / f"rank-{rank}-{time.monotonic_ns()}.log"
            meeting = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
            with pytest.MonkeyPatch.context() as patch, log.open("wb") as out:
                for name, value in {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}.items():
                    patch.setitem(os.environ, name, value)
                program = [SCRIPT, str(path), cue if rank == victim else "never:0"]
                self.ranks.append(WarmProcess(program, preload=TRAINING, log=out))
        self.process = self.ranks[0]

    def victim_ended(self, rank: int, *, within_s: float) -> bool:
        """Whether it came to its cue, at most `within_s` after the ranks had begun to train."""
        began_s, training_s = time.monotonic(), None
        while (status := self.ranks[rank].poll()) is None:
            now_s = time.monotonic()
            if training_s is None and self.status().get("state") in ("training", "idle"):
                training_s = now_s
            if training_s is not None and now_s - training_s > within_s:
                return False
            if training_s is None and now_s - began_s > START_S:
                raise CrewError(f"the ranks did not begin to train in {START_S:.0f} s:\n{self.tail()}")
            time.sleep(0.02)
        if status != -signal.SIGKILL:
            raise CrewError(f"rank {rank} ended with status {status}:\n{self.tail()}")
        return True

    def bury(self) -> int:
        """After a kill: wait for the others; returns how many had to be killed as well."""
        killed, deadline = 0, time.monotonic() + OTHERS_END_S
        for rank in self.ranks:
            try:
                rank.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.wait(OTHERS_END_S)
                killed += 1
        return killed

    def stop(self) -> int:
        """SIGTERM to all; the worst status."""
        for rank in self.ranks:
            rank.send_signal(signal.SIGTERM)
        return max(abs(rank.wait(120)) for rank in self.ranks)

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            rank.kill()
