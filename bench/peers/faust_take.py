"""faust-streaming that counts in `take(5000)`, in an environment of its own: `faust_take.py BOOTSTRAP TOPIC EVENTS`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time

import faust  # type: ignore[import-not-found,unused-ignore]

TAKE = 5_000


async def main() -> None:
    """Print `{"events": n, "cpu_s": s}`, from the first batch on."""
    bootstrap, topic_name, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
    app = faust.App(
        f"bench-faust-{time.time_ns()}",
        broker=f"kafka://{bootstrap}",
        store="memory://",
        datadir=tempfile.mkdtemp(),
        web_enabled=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        autodiscover=False,
    )
    topic = app.topic(topic_name, value_type=bytes, value_serializer="raw")
    done = asyncio.Event()
    counted = {"events": 0, "first": 0, "began": 0.0}

    @app.agent(topic)
    async def count(stream: faust.Stream) -> None:
        async for batch in stream.take(TAKE, within=1.0):
            if not counted["began"]:
                counted["began"], counted["first"] = time.process_time(), len(batch)
            counted["events"] += len(batch)
            if counted["events"] >= wanted:
                done.set()

    await app.start()
    while not done.is_set():
        await asyncio.sleep(0.1)
        if app.crashed or app.consumer.crashed:
            os._exit(1)  # its log says why; it would wait for ever
    spent = time.process_time() - float(counted["began"])
    print(json.dumps({"events": counted["events"] - counted["first"], "cpu_s": spent}), flush=True)
    await app.stop()


if __name__ == "__main__":
    asyncio.run(main())
