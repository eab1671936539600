"""The services, always on: stream, train, serve; and what is said to them or asked of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from recd.commands.command import EXIT_NOT_CLEAN, config_command

if TYPE_CHECKING:
    from stream.config import Config

ACTIONS = {
    "stream": ("pause", "resume", "drain", "close"),
    "trainer": ("pause", "resume", "checkpoint", "publish", "reload", "rates", "release"),
    "serving": ("reload",),
}


@config_command()
@click.option("--accept-loss", multiple=True, type=int, metavar="PARTITION", help="Go on where the log was lost.")
@click.option("--close-all", is_flag=True, help="Close every session under the old parameters first (journalled).")
def stream(config: Config, accept_loss: tuple[int, ...], close_all: bool) -> None:
    """Always on: interactions -> deduplicated training batches."""
    from stream.app import run

    sys.exit(run(config, accept_loss=accept_loss, close_all=close_all))


@config_command()
def train(config: Config) -> None:
    """Always on: batches -> model versions, one process per device."""
    from trainer.launch import launch

    sys.exit(launch(config))


@config_command()
def serve(config: Config) -> None:
    """Always on: versions -> scores over HTTP.

    POST /score takes {"features": {...}, "candidates": [{...}, ...]}; /v2 is the Open Inference Protocol, for KServe's
    and Triton's clients, with the model's inputs and outputs under GET /v2/models/NAME (serving.model_name). POST
    /reload {"version": N} stays at a version, null follows the newest. GET /health, /ready, /status, /metrics.
    """
    from serving.app import run

    sys.exit(run(config))


@config_command()
@click.argument("target", type=click.Choice([*ACTIONS, "all"]))
@click.argument("action", type=click.Choice(sorted({action for actions in ACTIONS.values() for action in actions})))
@click.option("--version", type=int, help="reload: the version to take; the newest without.")
@click.option(
    "--rate",
    "rates",
    multiple=True,
    metavar="PART=RATE",
    help="rates: a learning rate from the next step on, of dense, sparse or tables.FEATURE; `config` for the config's.",
)
def control(config: Config, target: str, action: str, version: int | None, rates: tuple[str, ...]) -> None:
    """Tell running services something over the control topic."""
    from stream.control import send

    if target != "all" and action not in ACTIONS[target]:
        raise click.UsageError(f"{target} knows {', '.join(ACTIONS[target])}")
    if bool(rates) != (action == "rates"):
        raise click.UsageError("`control trainer rates` and --rate belong together")
    send(config, target=target, action=action, version=version, rates=dict(map(_rate, rates)) or None)


def _rate(given: str) -> tuple[str, float | None]:
    part, _, rate = given.partition("=")
    try:
        return part, None if rate == "config" else float(rate)
    except ValueError:
        raise click.UsageError(f"--rate {given}: expected PART=RATE, such as dense=0.001") from None


@click.command()
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
