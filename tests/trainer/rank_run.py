"""One rank as its own process, which crashes on cue.

rank_run.py CONFIG.yaml [STAGE:NUMBER]     kill -9 when STAGE is reached for the NUMBERth time
rank_run.py CONFIG.yaml [step:NUMBER]      kill -9 when the NUMBERth step is about to be taken
"""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

from stream.config import load
from trainer import app
from trainer.sharding import ShardedModel


class CrashOnCue:
    """Counts the stages that pass by."""

    def __init__(self, cue: str) -> None:
        self._stage, _, number = cue.partition(":")
        self._number = int(number or 0)
        self._seen: Counter[str] = Counter()

    def __call__(self, stage: str) -> None:
        self._seen[stage] += 1
        if stage == self._stage and self._seen[stage] == self._number:
            os.kill(os.getpid(), signal.SIGKILL)


def armed(cue: str) -> CrashOnCue:
    """What the trainer is to be told its stages with; steps tell it by themselves."""
    crash = CrashOnCue(cue)
    update = ShardedModel.update

    def update_or_crash(self: ShardedModel, loss: object) -> None:
        crash("step")
        update(self, loss)

    ShardedModel.update = update_or_crash
    return crash


if __name__ == "__main__":
    sys.exit(app.run(load(Path(sys.argv[1])), hook=armed(sys.argv[2] if len(sys.argv) > 2 else "never:0")))
