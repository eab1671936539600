"""The command `recd`: one subcommand per service or tool, each importing only what it needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from stream.config import Config

ACTIONS = {
    "stream": ("pause", "resume", "drain", "close"),
    "trainer": ("pause", "resume", "checkpoint", "publish", "reload"),
    "serving": ("reload",),
}
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXIT_USAGE = 2
EXIT_NOT_CLEAN = 1


class ConfigCommand(click.Command):
    """A command with `--config` and `--set`, whose function is handed the loaded Config first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [
            click.Option(["--config", "-c"], type=click.Path(path_type=Path), help="The recd.yaml to use."),
            click.Option(["--set", "overrides"], multiple=True, metavar="A.B=C", help="Lay one key over the file."),
            *self.params,
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Load the configuration, then run; a configuration that cannot be used ends with status 2."""
        from stream.config import ConfigError, load

        path, overrides = ctx.params.pop("config"), ctx.params.pop("overrides")
        try:
            ctx.params["config"] = load(_find(path, preset=ctx.params.get("preset")), overrides=tuple(overrides))
        except ConfigError as error:
            click.echo(f"recd: {error}", err=True)
            ctx.exit(EXIT_USAGE)
        return super().invoke(ctx)


def _find(path: Path | None, *, preset: str | None = None) -> Path | None:
    """The named file, else the preset's, else `recd.yaml` of this folder where there is one."""
    if path is None and preset is not None:
        from recd.presets import preset_path

        return preset_path(preset)
    if path is None and Path("recd.yaml").is_file():
        return Path("recd.yaml")
    return path


def config_command(group: click.Group, name: str | None = None) -> Callable[[Callable[..., Any]], click.Command]:
    """Decorator: a subcommand of `group` with a configuration."""
    return group.command(name, cls=ConfigCommand)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="recd-stream", prog_name="recd")
def cli() -> None:
    """Streaming online training of recommendation models: interactions in, fresh models out."""


@config_command(cli)
@click.option("--accept-loss", multiple=True, type=int, metavar="PARTITION", help="Go on where the log was lost.")
@click.option("--close-all", is_flag=True, help="Close every session under the old parameters first (journalled).")
def stream(config: Config, accept_loss: tuple[int, ...], close_all: bool) -> None:
    """Always on: interactions -> deduplicated training batches."""
    from stream.app import run

    sys.exit(run(config, accept_loss=accept_loss, close_all=close_all))


@config_command(cli)
def train(config: Config) -> None:
    """Always on: batches -> model versions, one process per device."""
    from trainer.launch import launch

    sys.exit(launch(config))


@config_command(cli)
def serve(config: Config) -> None:
    """Always on: versions -> scores over HTTP."""
    from serving.app import run

    sys.exit(run(config))


@config_command(cli)
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

    _finish(run_generator(config, **options), json_path)


@config_command(cli, "import")
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
    _finish(report, json_path)
    sys.exit(EXIT_NOT_CLEAN if report.bad_rows and not report.events else 0)


@config_command(cli)
@click.option("--into", required=True, metavar="TOPIC", help="Batches topic to write; made where it is missing.")
@click.option("--from", "first_time", metavar="TIME", help="Arrival of the first event: 2026-11-01T00:00 is UTC.")
@click.option("--to", "last_time", metavar="TIME", help="Arrival of the first event that is left out.")
@click.option("--from-offset", "first_offset", type=click.IntRange(min=0), help="Instead of --from, with --partition.")
@click.option("--to-offset", "last_offset", type=click.IntRange(min=0), help="Instead of --to, with --partition.")
@click.option("--partition", "partitions", multiple=True, type=click.IntRange(min=0), help="Only this one; repeatable.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="Times as fast as event time passed.")
@click.option("--archive", "archive_url", metavar="URL", help="Read an archive in place of the topic.")
@click.option("--follow", is_flag=True, help="Then go on with the live batches, without a gap or a double.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the report.")
def replay(config: Config, json_path: Path | None, **options: Any) -> None:
    """A stretch of the interactions once more -> a batches topic of its own; the live run hears nothing of it.

    The samples of a partition are those of the live run, in its order. Killed and started again with the same
    --into it goes on where it was. To train on it: recd train --set topics.batches=TOPIC.
    """
    from recd.replay import ReplayOptions, format_replay, report_dict, run_replay

    report = run_replay(config, ReplayOptions(**options))
    if json_path:
        json_path.write_text(json.dumps(report_dict(report), indent=2) + "\n")
    click.echo(format_replay(report))


@config_command(cli)
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
    if json_path:
        json_path.write_text(json.dumps(report, indent=2) + "\n")


@config_command(cli)
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
    if json_path:
        json_path.write_text(json.dumps(advice_dict(advice), indent=2) + "\n")
    show(advice, Console())


@config_command(cli)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the whole result.")
def audit(config: Config, json_path: Path | None) -> None:
    """Which samples were trained once, twice, never. Status 1 when something is lost or doubled."""
    from recd.audit import audit as run_audit
    from recd.audit import format_report

    result = run_audit(config)
    if json_path:
        json_path.write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    click.echo(format_report(result))
    sys.exit(0 if result.ok else EXIT_NOT_CLEAN)


@cli.command()
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=120.0, show_default=True, help="Length of the traffic."
)
@click.option("--rate", type=click.FloatRange(min=1), default=1000.0, show_default=True, help="Events per second.")
@click.option(
    "--events",
    "events_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Real events instead of generated ones.",
)
@click.option("--format", "file_format", help="Format of --events: mind, rees46 or deskdrop.")
@click.option("--workers", type=click.IntRange(1, 16), default=2, show_default=True, help="Stream workers.")
@click.option("--ranks", type=click.IntRange(1, 16), default=1, show_default=True, help="Trainer processes.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--keep", is_flag=True, help="Stay up until Ctrl-C.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the report.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("var/demo"),
    show_default=True,
    help="Where logs and data of the run lie.",
)
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Lay one key over the demo's configuration.")
def demo(**options: Any) -> None:
    """All of it on this machine: Kafka, Redis, traffic, workers, trainer, server, live view, report."""
    from recd.demo import DemoOptions, run_demo

    if (options["events_path"] is None) != (options["file_format"] is None):
        raise click.UsageError("--events and --format go together")
    sys.exit(run_demo(DemoOptions(**options)))


@config_command(cli)
@click.option("--all", "everything", is_flag=True, help="Also what runs by itself: torch, Java, embedded servers.")
def doctor(config: Config, everything: bool) -> None:
    """Is everything set up and reachable? Status 1 when something is not."""
    from recd.doctor import diagnose

    checks = diagnose(config, everything=everything)
    for check in checks:
        click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:22} {check.detail}")
        if not check.ok and check.remedy:
            click.echo(f"      {'':22} -> {check.remedy}")
    sys.exit(0 if all(check.ok for check in checks) else EXIT_NOT_CLEAN)


@config_command(cli)
@click.option(
    "--end", is_flag=True, help="End them as their coordinator decided; abort those whose producer nobody knows."
)
@click.option("--abort-unknown", is_flag=True, help="With --end: also abort those that may have been committed.")
def transactions(config: Config, end: bool, abort_unknown: bool) -> None:
    """Transactions that a broker never ended, and behind which nobody reads on. Status 1 where one is left."""
    from recd.transactions import look_for_hanging

    if abort_unknown and not end:
        raise click.UsageError("--abort-unknown goes with --end")
    found = look_for_hanging(config, end=end, abort_unknown=abort_unknown)
    for line in found.lines:
        click.echo(line)
    sys.exit(EXIT_NOT_CLEAN if found.left else 0)


@cli.group()
def topics() -> None:
    """The topics of the configuration."""


@config_command(topics, "create")
def topics_create(config: Config) -> None:
    """Create what is missing, check what is there."""
    from stream.topics import create_topics

    for line in create_topics(config):
        click.echo(line)


@config_command(cli)
@click.argument("target", type=click.Choice([*ACTIONS, "all"]))
@click.argument("action", type=click.Choice(sorted({action for actions in ACTIONS.values() for action in actions})))
@click.option("--version", type=int, help="reload: the version to take; the newest without.")
def control(config: Config, target: str, action: str, version: int | None) -> None:
    """Tell running services something over the control topic."""
    from stream.control import send

    if target != "all" and action not in ACTIONS[target]:
        raise click.UsageError(f"{target} knows {', '.join(ACTIONS[target])}")
    send(config, target=target, action=action, version=version)


@cli.command()
@click.argument("url")
def health(url: str) -> None:
    """Ask a service's URL; status 0 when it answers 200 (for container health checks)."""
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=5) as answer:
            click.echo(answer.read().decode(errors="replace").strip())
    except (URLError, OSError, ValueError) as error:
        click.echo(f"{url}: {error}", err=True)
        sys.exit(EXIT_NOT_CLEAN)


@config_command(cli, "config")
def show_config(config: Config) -> None:
    """Print the whole configuration in force, defaults included."""
    from stream.config import to_yaml

    click.echo(to_yaml(config), nl=False)


def _finish(result: Any, json_path: Path | None) -> None:
    from dataclasses import asdict

    counts = asdict(result)
    if json_path:
        json_path.write_text(json.dumps(counts, indent=2, default=str) + "\n")
    click.echo(json.dumps(counts, default=str))


def main() -> None:
    """Entry point; an error with a name ends in one line, not in a traceback."""
    try:
        cli(prog_name="recd")
    except Exception as error:
        if not isinstance(error, _named_errors()):
            raise
        click.echo(f"recd: {error}", err=True)
        sys.exit(EXIT_NOT_CLEAN)


def _named_errors() -> tuple[type[Exception], ...]:
    """Imported only when something failed: `recd health` is started every few seconds and needs none of them."""
    from dedup_cache.errors import DedupCacheError
    from recd.java import EmbeddedError
    from stream.archive.errors import ArchiveError
    from stream.config import ConfigError
    from stream.control import ControlError
    from stream.journal import JournalError
    from stream.kafka import KafkaError
    from stream.replay.errors import ReplayError
    from stream.topics import TopicError

    return (
        ArchiveError,
        ConfigError,
        ControlError,
        DedupCacheError,
        EmbeddedError,
        JournalError,
        KafkaError,
        ReplayError,
        TopicError,
    )
