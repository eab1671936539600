"""`recd serve`: one process that scores until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal

from aiohttp import web

from serving.server import Server
from stream.config import Config
from stream.log import configure_logging
from trainer.versions import VersionError

logger = logging.getLogger("serving")

SHUTDOWN_S = 10.0
"""How long requests in flight may take to end."""


def run(config: Config) -> int:
    """Serve until SIGTERM or SIGINT; the exit status, 1 where it cannot start."""
    configure_logging("serving")
    _one_log()
    try:
        asyncio.run(_serve(config))
    except (VersionError, OSError) as error:
        reason = str(error)
    else:
        return 0
    logger.error("cannot serve", extra={"reason": reason})
    return 1


async def _serve(config: Config) -> None:
    """A stop takes five steps: not ready any more, no new connections, requests in flight end, threads end, done."""
    server = Server(config)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, config.serving.host, config.serving.port)
        await site.start()
        server.start()
        host, port = runner.addresses[0][:2]
        logger.info("started", extra={"host": host, "port": port, "versions": config.trainer.versions_url})
        await stopped.wait()
        server.announce_stop()
        await site.stop()
        # Before the runner is cleaned up: it throws away what arrives from then on.
        await server.drain(timeout_s=SHUTDOWN_S)
    finally:
        await runner.cleanup()
        await asyncio.to_thread(server.stop)
        logger.info("stopped")


def _one_log() -> None:
    """Let torch's own loggers speak through ours, as JSON lines, and only of errors."""
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("torch", "torchrec")]:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(logging.ERROR)
