"""Score requests for a demo: the newest requests of the log, asked of the server again and again."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.request import Request, urlopen

import msgspec
import numpy as np

from recd.fleet import fetch
from stream.config import Config
from stream.events import Decoder
from stream.kafka import KafkaError, Message, Reader, begin_offsets, end_offsets
from stream.records import RecordBlock

PAUSE_S = 0.2
REQUESTS_KEPT = 64
REQUESTS_WAITING = 2
LOOK_BACK = 500
MAX_MESSAGES = 2_000


class Probe(threading.Thread):
    """Takes impressions of one request from the log and posts them to `/score`, a few times a second."""

    def __init__(self, config: Config, *, url: str) -> None:
        super().__init__(name="probe", daemon=True)
        self._config = config
        self._url = url
        self._ended = threading.Event()
        self._requests: OrderedDict[str, list[Mapping[str, Any]]] = OrderedDict()
        self._decoder = Decoder(
            config.events,
            features=config.features,
            labels=config.labels,
            max_ahead_ms=config.session.max_ahead_ms,
        )
        self._ready = False
        self.answered = 0
        self.failed = 0

    def stop(self) -> None:
        """End it and wait until it has ended."""
        self._ended.set()
        if self.is_alive():
            self.join(timeout=10)

    def run(self) -> None:
        """Until `stop`; a broker or server that does not answer is tried again."""
        while not self._ended.wait(PAUSE_S):
            try:
                self._follow()
            except KafkaError:
                self.failed += 1

    def _follow(self) -> None:
        topic = self._config.topics.interactions
        begins, ends = (ask(self._config.kafka, topic) for ask in (begin_offsets, end_offsets))
        positions = {p: max(begins[p], end - LOOK_BACK) for p, end in ends.items()}
        reader = Reader(self._config.kafka, topic=topic, positions=positions)
        try:
            while not self._ended.wait(PAUSE_S):
                for message in self._well_formed(reader.poll(max_messages=MAX_MESSAGES, timeout_ms=50)):
                    self._take(message)
                self._ask()
        finally:
            reader.close()

    def _well_formed(self, messages: list[Message]) -> list[Message]:
        """Those that a worker would not quarantine: nobody asks for scores with the others."""
        good: list[Message] = []
        for partition in {message.partition for message in messages}:
            of_partition = [message for message in messages if message.partition == partition]
            block = RecordBlock(
                partition,
                np.array([message.offset for message in of_partition], np.int64),
                np.array([message.timestamp_ms for message in of_partition], np.int64),
                [message.key for message in of_partition],
                [message.value for message in of_partition],
            )
            bad = {rejected.offset for rejected in self._decoder.decode(block).quarantined}
            good += [message for message in of_partition if message.offset not in bad]
        return good

    def _take(self, message: Message) -> None:
        event = msgspec.json.decode(message.value or b"")
        fields = self._config.events.fields
        if _at(event, fields.type) not in self._config.events.impressions:
            return
        group = _at(event, fields.request_id) if fields.request_id else None
        features = {f.name: _at(event, f.field or f.name) for f in self._config.features if f.source is None}
        known = {name: value for name, value in features.items() if value is not None}
        self._requests.setdefault(str(group or _at(event, fields.key)), []).append(known)
        while len(self._requests) > REQUESTS_KEPT:
            self._requests.popitem(last=False)

    def _ask(self) -> None:
        """Post the oldest request that is whole by now (the newest may still be arriving)."""
        if len(self._requests) < REQUESTS_WAITING or not self._is_ready():
            return
        _, candidates = self._requests.popitem(last=False)
        shared = {k: v for k, v in candidates[0].items() if all(k in c and c[k] == v for c in candidates)}
        body = {"features": shared, "candidates": [{k: v for k, v in c.items() if k not in shared} for c in candidates]}
        request = Request(
            f"{self._url}/score", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        try:
            with urlopen(request, timeout=5) as answer:
                answer.read()
                self.answered += 1
        except (OSError, HTTPException):
            self.failed += 1

    def _is_ready(self) -> bool:
        """Whether the server had a version once: from then on every request counts."""
        self._ready = self._ready or fetch(f"{self._url}/ready")[0] == HTTPStatus.OK
        return self._ready


def _at(event: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    node: Any = event
    for part in path.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node
