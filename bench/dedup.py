"""Index assignment in memory, in Redis and behind a near-cache, alone and inside the making of batches.

    python bench/dedup.py [--batches 40]

Sessions of 16.5 samples on average: a user's row (a history of 50 ids that slides now and then) and an item's row per
sample. Every row gets an id. The Redis is a real one, on this machine. All variants take turns within a round, and each
figure is the median of the rounds. The closing line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import redis

from dedup_cache import (
    Batch,
    BatchMeta,
    BatchSchema,
    GroupSchema,
    IndexStore,
    Jagged,
    MemoryStore,
    NearCache,
    Rows,
    batch_stats,
    check_bits,
    deduplicate,
    encode,
    refer,
    sample_id,
)
from dedup_cache.redis_store import RedisStore
from recd.embedded import EmbeddedRedis

BATCH = 4096
SESSION = 16.5
HISTORY = 50
ROUNDS = 5
SALT = b"bench"
SCHEMA = BatchSchema(
    (GroupSchema("user", ("age",), ("history",)), GroupSchema("item", ("price",), ("tags",))), ("click",)
)


def sample_rows(seed: int) -> dict[str, Rows]:
    """Rows of one batch, session after session; a user's history slides by one id at every fifth sample."""
    random = np.random.default_rng(seed)
    new_session = random.random(BATCH) < 1 / SESSION
    new_session[0] = True
    slides = random.random(BATCH) < 0.2
    starts = np.cumsum(np.where(new_session, HISTORY, slides)).astype(np.int32) - HISTORY
    history = Jagged(random.integers(0, 2**62, int(starts[-1]) + HISTORY), starts, np.full(BATCH, HISTORY, np.int32))
    age = np.cumsum(new_session).astype(np.float32)[:, None]
    items = random.zipf(1.3, BATCH) % 100_000
    tags = Jagged.from_lengths(np.repeat(items, 5) * 31 + np.tile(np.arange(5), BATCH), np.full(BATCH, 5))
    return {
        "user": Rows(age, {"history": history}),
        "item": Rows((items % 97).astype(np.float32)[:, None], {"tags": tags}),
    }


def make_batch(rows: dict[str, Rows], store: IndexStore) -> Batch:
    """Dedup, assign and assemble, all rows inline."""
    groups = {}
    generation = ""
    for name, group_rows in rows.items():
        made = deduplicate(group_rows, salt=SALT)
        answer = store.assign(name, made.fingerprints)
        generation = answer.generation
        inline = np.ones(answer.ids.size, np.bool_)
        groups[name] = refer(made.group, ids=answer.ids, checks=check_bits(made.fingerprints), inline=inline)
    offsets = np.arange(BATCH)
    return Batch(
        labels=np.zeros((BATCH, 1), np.float32),
        weights=np.ones(BATCH, np.float32),
        scores=np.full((BATCH, 1), np.nan, np.float32),
        sample_ids=sample_id(0, offsets),
        event_times_ms=offsets,
        append_times_ms=offsets,
        groups=groups,
        meta=BatchMeta(1, SCHEMA.digest(), generation, "interactions", 0, 0, BATCH - 1, 0, 0, BATCH - 1, 0),
    )


def assign_all(prints: list[dict[str, np.ndarray]], store: IndexStore) -> int:
    """Assign the distinct rows of every batch; return how many there were."""
    return sum(store.assign(name, part).ids.size for batch in prints for name, part in batch.items())


def make_all(rows: list[dict[str, Rows]], store: IndexStore) -> int:
    """Make and encode every batch; return the number of samples."""
    for batch_rows in rows:
        encode(make_batch(batch_rows, store), SCHEMA)
    return BATCH * len(rows)


def per_second(work: Callable[[], int]) -> float:
    """Run once; return units of work per second of wall time."""
    began = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - began)


def measure(url: str, num_batches: int) -> Iterator[dict[str, float]]:
    """Yield the figures of each round, over fresh values in fresh namespaces."""
    for round_number in range(ROUNDS):
        rows = [sample_rows(1000 * round_number + at) for at in range(num_batches)]
        prints = [{name: deduplicate(part, salt=SALT).fingerprints for name, part in batch.items()} for batch in rows]
        figures: dict[str, float] = {}
        for kind in ("alone", "job"):
            name = f"{kind}-{round_number}"
            stores: dict[str, IndexStore] = {
                "memory": MemoryStore(),
                "redis": RedisStore(url, namespace=f"{name}-bare", timeout_ms=10_000),
                "near": NearCache(RedisStore(url, namespace=f"{name}-near", timeout_ms=10_000)),
                "second worker": NearCache(RedisStore(url, namespace=f"{name}-near", timeout_ms=10_000)),
            }
            for label, store in stores.items():
                for times in ("new", "again"):
                    work = partial(assign_all, prints, store) if kind == "alone" else partial(make_all, rows, store)
                    figures[f"{kind} {label} {times}"] = per_second(work)
        yield figures


def main() -> None:
    """Print the table and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder)) as server:
        with redis.Redis.from_url(server.url) as client:
            version = client.info("server")["redis_version"]
        rounds = list(measure(server.url, arguments.batches))
    figures = {name: median(figures[name] for figures in rounds) for name in rounds[0]}
    saved = batch_stats(make_batch(sample_rows(0), MemoryStore()))
    print(f"python bench/dedup.py --batches {arguments.batches}   {platform.machine()}, {os.cpu_count()} cores")
    print(f"Python {platform.python_version()}, numpy {np.__version__}, Redis {version}, redis-py {redis.__version__}")
    print(
        f"a batch: {saved.rows_in} rows, {saved.rows_distinct} distinct; {saved.ids_in} ids, {saved.ids_stored} stored"
    )
    print(f"\n{'':34}{'values/s alone':>16}{'samples/s in batches':>22}")
    for label in ("memory", "redis", "near", "second worker"):
        for times in ("new", "again"):
            alone, job = figures[f"alone {label} {times}"], figures[f"job {label} {times}"]
            print(f"{label + ', values ' + times:34}{alone:>16,.0f}{job:>22,.0f}")
    ratios = {
        "ratio_redis_to_memory": figures["job near new"] / figures["job memory new"],
        "ratio_redis_to_memory_again": figures["job near again"] / figures["job memory again"],
        "ratio_second_worker_to_memory": figures["job second worker new"] / figures["job memory new"],
        "ratio_bare_redis_to_memory": figures["job redis new"] / figures["job memory new"],
        "ratio_alone_new": figures["alone near new"] / figures["alone memory new"],
        "ratio_alone_again": figures["alone near again"] / figures["alone memory again"],
    }
    print("\n" + json.dumps({"bench": "dedup"} | {name: round(ratio, 3) for name, ratio in ratios.items()}))


if __name__ == "__main__":
    main()
