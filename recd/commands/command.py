"""What the commands share: a configuration given with `--config` and `--set`, exit statuses, reports as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

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


def config_command(name: str | None = None) -> Callable[[Callable[..., Any]], click.Command]:
    """Decorator: a command with a configuration."""
    return click.command(name, cls=ConfigCommand)


def write_report(report: Any, path: Path | None) -> None:
    """As JSON, where a file was asked for."""
    if path:
        path.write_text(json.dumps(report, indent=2, default=str) + "\n")


def print_counts(result: Any, path: Path | None) -> None:
    """A dataclass as one line of JSON; for `path` see `write_report`."""
    counts = asdict(result)
    write_report(counts, path)
    click.echo(json.dumps(counts, default=str))
