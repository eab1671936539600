"""A rank that waits for the others in vain ends when it is told to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recd.embedded import free_port

ROOT = Path(__file__).parents[2]
RANK = """
import signal
from trainer.meeting import STOPS, ends_when_told
from trainer.ranks import join
for number in STOPS:
    signal.signal(number, lambda *_: None)
with ends_when_told(lambda: print("done", flush=True)):
    print("meeting", flush=True)
    join()
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_other_never_comes_ends_when_told(rank: int):
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | place) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"meeting\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert process.stdout.read() == b"done\n"
        finally:
            process.kill()
