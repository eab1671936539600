"""What fills `interactions` from the command line: the generator and the importers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream.config import Config

if TYPE_CHECKING:
    from rich.progress import TaskID

    from stream.importers import ImportReport


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


def run_import(
    config: Config,
    paths: Sequence[Path],
    *,
    file_format: str,
    items: Path | None,
    order: str | None = None,
    **options: Any,
) -> Any:
    """Import files with a progress bar on a terminal; tells people what became of the rows, returns the report."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from stream.importers import ImportOptions, Look, Order, import_files

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[events]:,} events"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[tuple[Path, str], TaskID] = {}

        def look(at: Look) -> None:
            if (at.file, at.phase) not in tasks:
                tasks[at.file, at.phase] = progress.add_task(f"{at.phase} {at.file.name}", events=0)
            progress.update(tasks[at.file, at.phase], completed=at.done, total=at.total, events=at.events)

        report = import_files(
            config,
            paths,
            format=file_format,
            items=items,
            options=ImportOptions(
                order=Order(order) if order else None, stop=stop_on_signals(), on_progress=look, **options
            ),
        )
    for line in import_lines(report):
        console.print(line, soft_wrap=True, markup=False)
    return report


def import_lines(report: ImportReport) -> list[str]:
    """What became of the rows of each file, for people."""
    lines = []
    for file in report.files:
        state = "" if file.complete else " so far; the same command goes on"
        before = f", {file.resumed_rows:,} rows of them before this run" if file.resumed_rows else ""
        lines.append(
            f"{file.file}: {file.rows:,} rows, {file.events:,} events ({file.impressions:,} impressions, "
            f"{file.engagements:,} engagements){before}{state}"
        )
        if file.bad_rows:
            counts = ", ".join(f"{reason} {count:,}" for reason, count in file.bad_by_reason.items())
            lines.append(f"  {file.bad_rows:,} rows are no events: {counts}")
            lines += [f"    line {line}: {detail}" for line, detail in file.first_bad_rows]
        if file.behind:
            lines.append(
                f"  {file.behind:,} events come later in the file than their session can wait, so the stream may send "
                "them to its late topic: import with --order time"
            )
    return lines
