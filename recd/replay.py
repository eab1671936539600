"""`recd replay`: what is asked for on the command line, a progress bar, a report."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from threading import Event
from typing import Any

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recd.sources import stop_on_signals
from recd.times import TimeError, parse_time_ms
from stream.compiled import warm
from stream.config import Config
from stream.context import Clock
from stream.replay.history import History, KafkaHistory
from stream.replay.request import ReplayReport, ReplayRequest
from stream.replay.run import Replay
from stream.replay.runner import Runner
from stream.replay.stretch import Bound

EVENTS, SAMPLES = "events", "samples"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """As they stand on the command line."""

    into: str
    first_time: str | None
    last_time: str | None
    first_offset: int | None
    last_offset: int | None
    partitions: tuple[int, ...]
    speed: float | None
    follow: bool
    archive_url: str | None
    what: str


def run_replay(config: Config, options: ReplayOptions) -> ReplayReport:
    """Replay with a progress bar on a terminal; Ctrl-C stops in order. Raises ReplayError, KafkaError."""
    warm.start()
    request = _request(options)
    stop = stop_on_signals()
    clock = Clock(lambda: time.time_ns() // 1_000_000, lambda: time.monotonic_ns() // 1_000_000)
    replay = _replay(config, request, options=options, clock=clock, stop=stop)
    with Progress(*_COLUMNS, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"-> {request.into}", total=None, said="")

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, said=_said(replay.report))

        return replay.run(on_progress=show)


def format_replay(report: ReplayReport) -> str:
    """For people."""
    written = report.written
    head = f"Replayed {report.events:,} {report.what} from {report.begin} to {report.end} into '{report.into}'"
    lines = [f"{head} in {report.wall_s:.1f} s: {written.samples:,} samples in {written.batches:,} batches"]
    if written.live_batches:
        lines.append(
            f"Followed the live run: {written.live_samples:,} samples in {written.live_batches:,} live batches"
        )
    for number, part in sorted(report.partitions.items()):
        lines.append(
            f"  partition {number}: offsets [{part.from_offset}, {part.to_offset}), "
            f"samples [{part.from_sample}, {part.to_sample}) as the live run counts them"
        )
    if report.late or report.quarantined:
        lines.append(
            f"  {report.late:,} late, {report.quarantined:,} quarantined events: counted, the live run has them"
        )
    if report.resumed:
        lines.append("  This run went on where an earlier one had stopped.")
    if not report.complete:
        lines.append("  Stopped before the end; start it again to go on.")
    return "\n".join(lines)


def report_dict(report: ReplayReport) -> dict[str, Any]:
    """For --json."""
    return asdict(report)


_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.fields[said]}"),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


def _said(report: ReplayReport) -> str:
    live = f", {report.written.live_samples:,} live" if report.written.live_batches else ""
    return f"{report.events:,} {report.what}, {report.written.samples:,} samples{live}"


def _replay(config: Config, request: ReplayRequest, *, options: ReplayOptions, clock: Clock, stop: Event) -> Runner:
    """Of what it was asked to read."""
    if options.what == SAMPLES:
        if options.archive_url is None:
            raise click.UsageError("samples are read from an archive: add --archive URL")
        from stream.archive.sample_history import ArchivedSamples
        from stream.archive.sample_replay import SampleReplay

        archive = ArchivedSamples(config, options.archive_url)
        return SampleReplay(config, request, archive=archive, clock=clock, stop=stop)
    history: History = KafkaHistory(config)
    if options.archive_url is not None:
        from stream.archive.history import ArchiveHistory

        history = ArchiveHistory(config, options.archive_url)
    return Replay(config, request, history=history, clock=clock, stop=stop)


def _request(options: ReplayOptions) -> ReplayRequest:
    first = _bound(options.first_time, options.first_offset, time="--from", offset="--from-offset")
    last = _bound(options.last_time, options.last_offset, time="--to", offset="--to-offset")
    by_offset = options.first_offset is not None or options.last_offset is not None
    if by_offset and len(options.partitions) != 1:
        raise click.UsageError("offsets are those of one partition: add --partition N")
    if options.follow and last != Bound():
        raise click.UsageError("--follow goes on with the live run: leave out --to and --to-offset")
    return ReplayRequest(
        into=options.into,
        first=first,
        last=last,
        partitions=options.partitions,
        speed=options.speed,
        follow=options.follow,
    )


def _bound(at: str | None, position: int | None, *, time: str, offset: str) -> Bound:
    if at is not None and position is not None:
        raise click.UsageError(f"{time} and {offset} exclude each other")
    try:
        return Bound(position, None if at is None else parse_time_ms(at))
    except TimeError as error:
        raise click.BadParameter(str(error), param_hint=time) from None
