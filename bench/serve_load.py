"""Asks a server for scores as fast as it answers, or at a rate: a process of its own, with as little work as can be.

    python -m bench.serve_load PORT FILE --connections 8 --seconds 5 [--rate 50]

FILE holds whole HTTP requests, each behind its length in eight bytes (little-endian). Without a rate every connection
asks again as soon as it was answered (closed loop). With one, requests begin at random times whatever the server does
(open loop, Poisson), and their latency counts from when they should have begun. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter
from itertools import cycle
from pathlib import Path

import numpy as np

VERSION = re.compile(rb'"(?:model_)?version":"?(\d+)')
HEAD_END = b"\r\n\r\n"
PATIENCE_S = 60.0


class Load:
    """What was asked and what came back."""

    def __init__(self, port: int, requests: list[bytes]) -> None:
        self._port = port
        self._requests = cycle(requests)
        self.latencies_s: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.versions: set[bytes] = set()

    async def closed(self, *, connections: int, seconds: float) -> None:
        """Each connection asks one request after the other."""
        end = time.perf_counter() + seconds

        async def ask_on() -> None:
            reader, writer = await self._connect()
            while (begin := time.perf_counter()) < end:
                await self._ask(reader, writer, begin)
            writer.close()

        await asyncio.gather(*(ask_on() for _ in range(connections)))

    async def open(self, *, rate: float, seconds: float) -> None:
        """Requests at random times; a connection that is free is used again."""
        free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        drawn = random.Random(0)

        async def ask_once(begin: float) -> None:
            pair = free.pop() if free else await self._connect()
            await self._ask(*pair, begin)
            free.append(pair)

        asked = []
        start = at = time.perf_counter()
        while at < start + seconds:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            asked.append(asyncio.create_task(ask_once(at)))
            at += drawn.expovariate(rate)
        await asyncio.gather(*asked)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, begin: float) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                writer.write(next(self._requests))
                head = await reader.readuntil(HEAD_END)
                size = int(re.findall(rb"(?i)\r\ncontent-length: (\d+)", head)[0])
                body = await reader.readexactly(size)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.statuses[type(error).__name__] += 1
            return
        self.latencies_s.append(time.perf_counter() - begin)
        self.statuses[head[9:12].decode()] += 1
        self.versions |= set(VERSION.findall(body[:200]))


def read_requests(path: Path) -> list[bytes]:
    """The requests of a file."""
    data, requests, at = path.read_bytes(), [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        requests.append(data[at + 8 : at + 8 + size])
        at += 8 + size
    return requests


def main() -> None:
    """Ask, then print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("port", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float)
    args = parser.parse_args()
    load = Load(args.port, read_requests(args.file))
    begin = time.perf_counter()
    asked = (
        load.open(rate=args.rate, seconds=args.seconds)
        if args.rate
        else load.closed(connections=args.connections, seconds=args.seconds)
    )
    asyncio.run(asked)
    elapsed_s = time.perf_counter() - begin
    p50, p99 = np.percentile(np.array(load.latencies_s or [np.nan]) * 1000, (50, 99)).tolist()
    print(
        json.dumps(
            {
                "rps": load.statuses["200"] / elapsed_s,
                "answered": load.statuses["200"],
                "failed": sum(load.statuses.values()) - load.statuses["200"],
                "statuses": dict(load.statuses),
                "p50_ms": p50,
                "p99_ms": p99,
                "versions": len(load.versions),
                "cpu_s": time.process_time(),
            }
        )
    )


if __name__ == "__main__":
    main()
