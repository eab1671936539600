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
        listener = await loop.create_server(_handler(runner), config.serving.host, config.serving.port)
        server.start()
        host, port = listener.sockets[0].getsockname()[:2]
        logger.info("started", extra={"host": host, "port": port, "versions": config.trainer.versions_url})
        await stopped.wait()
        server.announce_stop()
        await _stop_listening(listener)
        # Before the runner is cleaned up: it throws away what arrives from then on.
        await server.drain(timeout_s=SHUTDOWN_S)
    finally:
        await runner.cleanup()
        await asyncio.to_thread(server.stop)
        logger.info("stopped")


def _handler(runner: web.AppRunner) -> web.Server:
    """What answers connections; there from `setup` on."""
    if runner.server is None:
        raise RuntimeError("the runner is not set up")
    return runner.server


async def _stop_listening(listener: asyncio.Server) -> None:
    """Refuse new connections; serve those that were accepted before.

    asyncio leaks a connection that it accepted in the very turn in which its listener closes: the client hears nothing
    until the process ends. So accepting ends first, and what was accepted gets the turns that it needs to attach.
    """
    for socket in listener.sockets:
        asyncio.get_running_loop().remove_reader(socket)
    for _ in range(2):
        await asyncio.sleep(0)
    listener.close()


def _one_log() -> None:
    """Let torch's own loggers speak through ours, as JSON lines, and only of errors."""
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("torch", "torchrec")]:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(logging.ERROR)
