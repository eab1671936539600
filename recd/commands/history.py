"""What was: replay, archive, advice, audit."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recd.commands.command import EXIT_NOT_CLEAN, config_command, write_report

if TYPE_CHECKING:
    from stream.config import Config


@config_command()
@click.option("--into", required=True, metavar="TOPIC", help="Batches topic to write; made where it is missing.")
@click.option("--from", "first_time", metavar="TIME", help="Arrival of the first event: 2026-11-01T00:00 is UTC.")
@click.option("--to", "last_time", metavar="TIME", help="Arrival of the first event that is left out.")
@click.option("--from-offset", "first_offset", type=click.IntRange(min=0), help="Instead of --from, with --partition.")
@click.option("--to-offset", "last_offset", type=click.IntRange(min=0), help="Instead of --to, with --partition.")
@click.option("--partition", "partitions", multiple=True, type=click.IntRange(min=0), help="Only this one; repeatable.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="Times as fast as event time passed.")
@click.option("--archive", "archive_url", metavar="URL", help="Read an archive in place of the topic.")
@click.option(
    "--what",
    type=click.Choice(["events", "samples"]),
    default="events",
    show_default=True,
    help="Of an archive: its events, made into samples again, or its samples as they are.",
)
@click.option("--follow", is_flag=True, help="Then go on with the live batches, without a gap or a double.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the report.")
def replay(config: Config, json_path: Path | None, **options: Any) -> None:
    """A stretch of the interactions once more -> a batches topic of its own; the live run hears nothing of it.

    The samples of a partition are those of the live run, in its order. Killed and started again with the same
    --into it goes on where it was. To train on it: recd train --set topics.batches=TOPIC.
    """
    from recd.replay import ReplayOptions, format_replay, report_dict, run_replay

    report = run_replay(config, ReplayOptions(**options))
    write_report(report_dict(report), json_path)
    click.echo(format_replay(report))


@config_command()
@click.option(
    "--what",
    multiple=True,
    type=click.Choice(["events", "samples"]),
    default=("events",),
    show_default=True,
    help="The interactions with their journal, or the samples of the batches; repeatable.",
)
@click.option("--until-end", is_flag=True, help="Stop at what is there now.")
@click.option("--accept-gap", is_flag=True, help="Go on where records were deleted before they were archived.")
@click.option("--list", "list_only", is_flag=True, help="Show what there is, and archive nothing.")
@click.option(
    "--leftovers", is_flag=True, help="Show files that a crash left and no manifest lists; a day old or more."
)
@click.option("--clean", is_flag=True, help="Delete them.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the report.")
def archive(
    config: Config, json_path: Path | None, list_only: bool, leftovers: bool, clean: bool, **options: Any
) -> None:
    """Always on: events or samples -> Parquet under archive.url, every row exactly once.

    One column per field or feature, clustered by session. `recd replay --archive URL` reads the events again when the
    topic's retention is over. Killed and started again it goes on where the manifest ends.
    """
    from recd.archive import (
        ArchiveOptions,
        clean_up,
        format_archive,
        format_files,
        format_leftovers,
        list_files,
        run_archive,
    )

    if list_only:
        files = list_files(config)
        report: Any = [file.to_dict() for file in files]
        click.echo(format_files(files))
    elif leftovers or clean:
        left = clean_up(config, delete=clean)
        report = asdict(left)
        click.echo(format_leftovers(left, url=config.archive.url, deleted=clean))
    else:
        reports = run_archive(config, ArchiveOptions(**options))
        report = [one.to_dict() for one in reports]
        click.echo(format_archive(reports))
    write_report(report, json_path)


@config_command()
@click.option("--records", type=click.IntRange(min=1), help="Look at so many of the newest; 50000 without a time.")
@click.option("--from", "first_time", metavar="TIME", help="Arrival of the first event: 2026-11-01T00:00 is UTC.")
@click.option("--to", "last_time", metavar="TIME", help="Arrival of the first event that is left out.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the whole result.")
def advise(config: Config, json_path: Path | None, **options: Any) -> None:
    """What repeats in a topic: which groups and slices would save most, and the config to paste.

    Reads a stretch of the interactions without a consumer group: the live run hears nothing of it.
    """
    from rich.console import Console

    from recd.advise import advice_dict, run_advise, show

    advice = run_advise(config, **options)
    write_report(advice_dict(advice), json_path)
    show(advice, Console())


@config_command()
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the whole result.")
def audit(config: Config, json_path: Path | None) -> None:
    """Which samples were trained once, twice, never. Status 1 when something is lost or doubled."""
    from recd.audit import audit as run_audit
    from recd.audit import format_report

    result = run_audit(config)
    write_report(result.to_dict(), json_path)
    click.echo(format_report(result))
    sys.exit(0 if result.ok else EXIT_NOT_CLEAN)
