"""The control plane: a Faust agent on the control topic, in an application of its own that may fail and come back."""

from __future__ import annotations

import asyncio
import logging
import queue
from typing import Any

import faust
from faust.types import StreamT
from mode import Service

from stream.config import Config
from stream.context import CLOSE, DRAIN, PAUSE, RESUME, Command
from stream.control import ControlError, decode_control
from stream.control_access import broker_access, without_effect
from stream.kafka import KafkaError, end_offsets
from stream.kafka.security import RequestRefused

logger = logging.getLogger("stream.control_plane")

ACTIONS = (PAUSE, RESUME, DRAIN, CLOSE)
RETRY_S = 2.0


class ControlPlane(Service):
    """Keeps a Faust application on the control topic; what it hears goes to `commands`.

    Each worker has an application id of its own, so that each hears every message, once, that was sent after the
    control plane was `ready` for the first time, whatever the application inside it goes through.
    """

    def __init__(self, config: Config, *, name: str, commands: queue.SimpleQueue[Command], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._config = config
        self._name = name
        self._commands = commands
        self._app: faust.App | None = None
        self._next: dict[int, int] | None = None
        """By partition, the offset of the next order; None until the broker told the end."""
        self.refusal = ""
        """Why no order will ever be heard, if so: Faust does not speak what kafka.options ask for."""

    @property
    def ready(self) -> bool:
        """Whether orders that are sent from now on will be heard, or none ever will."""
        return self._next is not None or bool(self.refusal)

    @Service.task
    async def _keep(self) -> None:
        """Start it, look whether it lives, start it again."""
        if unheard := without_effect(self._config.kafka.options):
            logger.info("options without effect on the control topic", extra={"options": ", ".join(unheard)})
        try:
            access = broker_access(self._config.kafka.options)
        except RequestRefused as error:
            self.refusal = f"{error}; records flow on, orders go by signals alone"
            logger.error("orders are not heard", extra={"reason": self.refusal})  # noqa: TRY400 - it has a name
            return
        while not self.should_stop:
            try:
                await asyncio.get_running_loop().run_in_executor(None, self._find_start)
                self._app = self._make(access)
                await self._app.maybe_start()
                logger.info("listening to the control topic", extra={"topic": self._config.topics.control})
                await self._until_it_ends(self._app)
            except asyncio.CancelledError:
                raise
            except KafkaError as error:
                logger.warning("no control topic", extra={"reason": str(error)})
            except Exception:
                logger.exception("the control plane failed")
            await self._drop()
            await self.sleep(RETRY_S)

    async def _until_it_ends(self, app: faust.App) -> None:
        while not self.should_stop and not app.crashed:
            await self.sleep(RETRY_S)

    async def on_stop(self) -> None:
        """Called by mode."""
        await self._drop()

    def _find_start(self) -> None:
        if self._next is None:
            self._next = end_offsets(self._config.kafka, self._config.topics.control)

    async def _drop(self) -> None:
        app, self._app = self._app, None
        if app is not None:
            try:
                await asyncio.wait_for(app.stop(), timeout=5.0)
            except Exception:
                logger.exception("the control plane does not stop")

    def _make(self, access: dict[str, Any]) -> faust.App:
        app = faust.App(
            f"recd-control-{self._name}",
            broker=[f"kafka://{server.strip()}" for server in self._config.kafka.bootstrap.split(",")],
            datadir=self._config.stream.data_dir,
            store="memory://",
            web_enabled=False,
            topic_disable_leader=True,
            consumer_auto_offset_reset="earliest",
            autodiscover=False,
            **access,
        )
        topic = app.topic(self._config.topics.control, value_type=bytes, value_serializer="raw", internal=False)

        @app.agent(topic)
        async def obey(messages: StreamT[bytes]) -> None:
            async for event in messages.events():
                self._take(event.message.partition, event.message.offset, event.value)

        return app

    def _take(self, partition: int, offset: int, value: Any) -> None:
        """One message, perhaps an old one, perhaps for the second time."""
        if self._next is not None and offset >= self._next.get(partition, 0):
            self._next[partition] = offset + 1
            self._hear(value)

    def _hear(self, data: bytes | None) -> None:
        try:
            message = decode_control(data)
        except ControlError as error:
            logger.warning("control message ignored", extra={"reason": str(error)})
            return
        if message.is_for("stream") and message.action in ACTIONS:
            self._commands.put(Command(message.action, message.id))
