"""The command `recd`: one subcommand per service or tool, each importing only what it needs."""

from __future__ import annotations

import sys

import click

from recd.commands import history, services, setup, sources
from recd.commands.command import EXIT_NOT_CLEAN


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="recd-stream", prog_name="recd")
def cli() -> None:
    """Streaming online training of recommendation models: interactions in, fresh models out."""


COMMANDS = (
    *(services.stream, services.train, services.serve, services.control, services.health),
    *(sources.generate, sources.import_),
    *(history.replay, history.archive, history.advise, history.audit),
    *(setup.demo, setup.doctor, setup.transactions, setup.topics, setup.show_config),
)
for command in COMMANDS:
    cli.add_command(command)
setup.topics.add_command(setup.topics_create)


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
