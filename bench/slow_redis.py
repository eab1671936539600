"""What a slow Redis costs the stream: the whole worker with every answer late, with and without the bound on waiting.

    python -m bench.slow_redis [--seconds 8] [--delay-ms 120] [--poll-records 64]

Broker, Redis, traffic and worker of bench.dedup; `redis.timeout_ms` is 250. The index is asked once a poll: few records
a poll, as a live stream gives them, are many questions. Late: a proxy hands on every answer of the
real Redis after --delay-ms. Halting: Redis is stopped for --delay-ms and goes on for 50 ms, again and again (SIGSTOP).
Rates are of wall time, relative to the index in memory in the same run. The closing line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import rich
from rich.table import Table

from bench.dedup import HALVES, Job, for_job, publish, run_job
from bench.slow_proxy import SlowProxy
from dedup_cache import MemoryStore
from dedup_cache.breaker import Breaker, WaitBound
from dedup_cache.redis_store import RedisStore
from recd.embedded import EmbeddedKafka, EmbeddedRedis
from recd.presets import preset_path
from stream.compiled import warm
from stream.config import Config, RedisConfig, load

GOES_ON_S = 0.05
TIMEOUT_MS = RedisConfig().timeout_ms
SHARE = RedisConfig().max_wait_share


@contextmanager
def halting(server: EmbeddedRedis, *, ms: int) -> Iterator[None]:
    """Stop the server and let it go on, in turn."""
    ended = threading.Event()
    pid = server.pid

    def run() -> None:
        while not ended.is_set():
            os.kill(pid, signal.SIGSTOP)
            ended.wait(ms / 1000)
            os.kill(pid, signal.SIGCONT)
            time.sleep(GOES_ON_S)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run_all(base: Config, server: EmbeddedRedis, *, delay_ms: int) -> dict[str, Job]:
    """By name, what each worker did."""

    def run(name: str, url: str, bound: WaitBound | None) -> Job:
        store = RedisStore(url, namespace=name, timeout_ms=TIMEOUT_MS, breaker=Breaker(waits=bound))
        return run_job(for_job(base, half=HALVES[0], name=name), store, server=server)

    memory = for_job(base, half=HALVES[0], name="memory")
    jobs = {"in memory": run_job(memory, MemoryStore(), server=server)}
    jobs["Redis"] = run("fast", server.url, WaitBound(share=SHARE))
    for name, bound in (("bound", WaitBound(share=SHARE)), ("no bound", None)):
        with SlowProxy(server.port, delay_ms=delay_ms) as proxy:
            jobs[f"late, {name}"] = run(f"late-{name[:2]}", proxy.url, bound)
    for name, bound in (("bound", WaitBound(share=SHARE)), ("no bound", None)):
        with halting(server, ms=delay_ms):
            jobs[f"halting, {name}"] = run(f"halting-{name[:2]}", server.url, bound)
    return jobs


def main() -> None:
    """Print the table and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=8.0, help="event time in which sessions begin")
    parser.add_argument("--delay-ms", type=int, default=120)
    parser.add_argument("--poll-records", type=int, default=64)
    args = parser.parse_args()
    warm.compile_now()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        server = stack.enter_context(EmbeddedRedis(Path(name) / "redis"))
        kafka = stack.enter_context(EmbeddedKafka(Path(name) / "kafka", heap_mb=1024))
        sets = (f"kafka.bootstrap={kafka.bootstrap}", "topics.partitions=1", "events.max_bytes=1048576")
        base = load(
            preset_path("recd"),
            overrides=(*sets, "dedup.inline_bytes=512", f"stream.max_poll_records={args.poll_records}"),
        )
        publish(base, seconds=args.seconds)
        jobs = run_all(base, server, delay_ms=args.delay_ms)
    memory = jobs["in memory"]
    title = f"answers {args.delay_ms} ms late, redis.timeout_ms {TIMEOUT_MS}, redis.max_wait_share {SHARE}"
    table = Table("index", "of in memory", "waiting", "calls refused", "no answer", "values shipped", title=title)
    closing: dict[str, object] = {"bench": "slow_redis", "delay_ms": args.delay_ms}
    for name, job in jobs.items():
        ratio, share = memory.wall_s / job.wall_s, job.counters.redis_wait_ms / (1000 * job.wall_s)
        counts = (job.counters.redis_refused, job.counters.redis_errors, job.counters.values_shipped)
        table.add_row(name, f"{ratio:.2f}", f"{share:.0%}", *map(str, counts))
        key = name.replace(", ", "_").replace(" ", "_").lower()
        closing |= {f"ratio_{key}": round(ratio, 3), f"waiting_{key}": round(share, 3)}
    rich.print(table)
    print(json.dumps(closing))


if __name__ == "__main__":
    main()
