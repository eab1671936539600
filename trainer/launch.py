"""Starts the ranks under torchrun, and starts all of them again when one dies."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stream.config import Config, to_yaml
from stream.log import configure_logging
from trainer.cut_files import CURRENT, cuts_folder
from trainer.run_folder import EXIT_FAILED, EXIT_OK, EXIT_OPERATOR, VARIABLE, RunFolder

logger = logging.getLogger("trainer.launch")

STOP_PATIENCE_S = 60
"""How long the ranks may take for their last cut and version after SIGTERM, before they are killed."""
RESTART_WAIT_S = 1.0


def launch(config: Config) -> int:
    """Run `trainer.ranks` ranks on this machine until SIGTERM or SIGINT; returns the exit status.

    A rank that dies takes the others with it, and all begin again from the cut; after `trainer.max_restarts` times in a
    row without a new cut in between, this ends. A rank that ends for a reason which starting again cannot heal (a
    damaged batch, a config that does not fit) ends all.
    """
    configure_logging("trainer")
    with tempfile.TemporaryDirectory(prefix="recd-trainer-") as folder:
        run_folder = RunFolder(Path(folder))
        path = Path(folder) / "recd.yaml"
        path.write_text(to_yaml(config))
        with _environment(config, folder):
            return _run_until_told(config, path=path, run_folder=run_folder)


def _run_until_told(config: Config, *, path: Path, run_folder: RunFolder) -> int:
    ranks = config.trainer.ranks
    try:
        return _run_again_and_again(config, path=path, run_folder=run_folder)
    except SignalException as stopped:
        done = run_folder.num_done()
        logger.info("stopped", extra={"signal": stopped.sigval.name, "ranks": ranks, "in_order": done})
        return EXIT_OK if done == ranks else EXIT_FAILED


def _run_again_and_again(config: Config, *, path: Path, run_folder: RunFolder) -> int:
    """Until the ranks end in order, or for a reason; SignalException when this process is told to stop."""
    trainer, restarts = config.trainer, Restarts(cuts_folder(config.trainer.checkpoint_url) / CURRENT)
    while restarts.in_a_row <= trainer.max_restarts:
        run_folder.clear()
        try:
            elastic_launch(_launch_config(trainer.ranks), sys.executable)("-m", "trainer", "--config", str(path))
        except ChildFailedError as failure:
            _, first = failure.get_first_failure()
            if reasons := run_folder.reasons():
                logger.critical("the trainer cannot go on", extra={"reason": reasons[0]})
                return EXIT_OPERATOR
            facts = {"rank": first.local_rank, "exit_status": first.exitcode, "restarts": restarts.count()}
            logger.warning("a rank died, all begin again from the cut", extra=facts)
        else:
            return EXIT_OK
        time.sleep(RESTART_WAIT_S)
    logger.critical("gave up", extra={"max_restarts": trainer.max_restarts})
    return EXIT_FAILED


class Restarts:
    """Counts those since the last one that was worth it: after it, a new cut came into force."""

    def __init__(self, current: Path) -> None:
        """`current`: the file that names the cut in force."""
        self._current = current
        self._seen = self._look()
        self.in_a_row = 0

    def count(self) -> int:
        """One more; returns how many in a row."""
        seen = self._look()
        self.in_a_row = 1 if seen != self._seen else self.in_a_row + 1
        self._seen = seen
        return self.in_a_row

    def _look(self) -> bytes:
        with suppress(OSError):
            return self._current.read_bytes()
        return b""


def _launch_config(ranks: int) -> LaunchConfig:
    """As `torchrun --standalone --nproc_per_node=ranks`, without its own restarts."""
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        role="trainer",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        local_addr="localhost",
    )


@contextmanager
def _environment(config: Config, folder: str) -> Iterator[None]:
    """What the ranks inherit."""
    os.environ |= {
        VARIABLE: folder,
        "RECD_LAUNCHER_PID": str(os.getpid()),
        "OMP_NUM_THREADS": str(config.trainer.threads),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(STOP_PATIENCE_S),
    }
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
