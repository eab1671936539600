"""What stands around the services: demo, doctor, topics, transactions, the configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recd.commands.command import EXIT_NOT_CLEAN, config_command

if TYPE_CHECKING:
    from stream.config import Config


@click.command()
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


@config_command()
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


@config_command()
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


@click.group()
def topics() -> None:
    """The topics of the configuration."""


@config_command("create")
def topics_create(config: Config) -> None:
    """Create what is missing, check what is there."""
    from stream.topics import create_topics

    for line in create_topics(config):
        click.echo(line)


@config_command("config")
def show_config(config: Config) -> None:
    """Print the whole configuration in force, defaults included."""
    from stream.config import to_yaml

    click.echo(to_yaml(config), nl=False)
