"""Compiled code without waiting: a worker begins with the plain path and changes over when the kernels are there.

Machine code of an earlier run is loaded within half a second. Where there is none, a process of its own makes it
(`python -m stream.compiled.warm`, which set-up runs as well), for a compiler would hold up this one for ten.
"""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading

from dedup_cache.compiled import declare_ready, ready

__all__ = ["compile_now", "ready", "start"]

logger = logging.getLogger("stream.compiled")

_started = threading.Lock()

COLLECT_AFTER = 50_000
"""New objects between two looks for cycles. A poll makes thousands of messages, none of them in a cycle."""


def start() -> None:
    """Make the kernels ready, in a thread. The second call and later ones do nothing.

    Everything that a worker imports is there then, for good: the garbage collector is told not to look at it any more,
    which took a fifteenth of a busy worker's time.
    """
    if _started.acquire(blocking=False):
        threading.Thread(target=_prepare, name="kernels", daemon=True).start()


def compile_now() -> None:
    """Load or compile the kernels, however long it takes."""
    from stream.compiled.sample import run_samples

    run_samples()
    declare_ready()


def _prepare() -> None:
    from stream.compiled.sample import is_cached

    if not is_cached():
        logger.info("compiling")
        made = subprocess.run(
            [sys.executable, "-m", "stream.compiled.warm"], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if made.returncode or not is_cached():
            reason = made.stderr.decode(errors="replace")[-500:] or "its cache cannot be written: set NUMBA_CACHE_DIR"
            logger.warning("records are decoded one by one, at a third of the speed", extra={"reason": reason})
            return
    compile_now()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


if __name__ == "__main__":
    compile_now()
