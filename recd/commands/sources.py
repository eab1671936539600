"""Where events come from: the generator and files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recd.commands.command import EXISTING_FILE, EXIT_NOT_CLEAN, config_command, print_counts

if TYPE_CHECKING:
    from stream.config import Config


@config_command()
@click.option(
    "--preset",
    type=click.Choice(["demo", "recd", "transforms"]),
    help="Kind of traffic; its configuration where no --config is given.",
)
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Events per second; as fast as it goes without."
)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after so long.")
@click.option("--events", "max_events", type=click.IntRange(min=1), help="Stop after so many events.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--start-ms", type=int, help="Event time at which the world begins; with it the same seed gives the same events."
)
@click.option("--out-of-order", type=click.FloatRange(0, 1), default=0.0, help="Fraction of events sent late.")
@click.option("--retries", type=click.FloatRange(0, 1), default=0.0, help="Fraction sent twice, as producers do.")
@click.option("--malformed", type=click.FloatRange(0, 1), default=0.0, help="Fraction of records that fit no schema.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write what was sent.")
def generate(config: Config, json_path: Path | None, **options: Any) -> None:
    """Traffic with a known truth -> interactions."""
    from recd.sources import run_generator

    print_counts(run_generator(config, **options), json_path)


@config_command("import")
@click.argument("paths", nargs=-1, required=True, metavar="FILE...", type=EXISTING_FILE)
@click.option(
    "--format",
    "file_format",
    required=True,
    help="mind, rees46, retailrocket, criteo, movielens, deskdrop, or a name under imports in the configuration.",
)
@click.option("--items", type=EXISTING_FILE, help="The catalogue: news.tsv for mind, movies.csv for movielens.")
@click.option(
    "--order",
    type=click.Choice(["file", "time"]),
    help="Rows as they stand, or sorted by time first (on disk); what the format needs without.",
)
@click.option("--max-bad", type=click.IntRange(min=0), help="Stop at more bad rows than this in a file.")
@click.option("--again", is_flag=True, help="From the beginning, although it was imported: repeats its events.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Events per second; as fast as it goes without."
)
@click.option("--temp", type=click.Path(file_okay=False, exists=True, path_type=Path), help="Where to sort.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write what was sent.")
def import_(config: Config, json_path: Path | None, **options: Any) -> None:
    """Files of events -> interactions; gzip, zstd and bz2 are unpacked.

    Stopped or killed, the same command goes on where it was: no event is lost or doubled. Rows that fit nothing are
    counted and shown. Status 1 when no row was an event.
    """
    from recd.sources import run_import

    report = run_import(config, **options)
    print_counts(report, json_path)
    sys.exit(EXIT_NOT_CLEAN if report.bad_rows and not report.events else 0)
