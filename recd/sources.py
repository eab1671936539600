"""What fills `interactions` from the command line: the generator and the importers."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

from stream.config import Config


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set, so that what was begun is finished and counted."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def run_generator(config: Config, *, preset: str | None = None, **options: Any) -> Any:
    """Generate until the bound, or a signal; returns the generator's report."""
    from stream.generator import generate
    from stream.traffic import traffic_options

    return generate(config, options=traffic_options(preset or "demo", **options), stop=stop_on_signals())


def run_import(config: Config, path: Path, *, file_format: str, rate: float | None) -> Any:
    """Import one file with a progress bar on a terminal; returns the importer's report."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from stream.importers import import_file

    stop = stop_on_signals()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} events"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(path.name, total=None)
        return import_file(
            config,
            path,
            format=file_format,
            rate=rate,
            stop=stop,
            on_progress=lambda events: progress.update(task, completed=events),
        )
