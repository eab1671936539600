"""Kafka's classes, parsed and verified once and mapped into memory at every later start (Java's class data sharing).

    python -m recd.class_data

Set-up runs it. Without the archive, or with one of another Java, a broker starts all the same, at twice the cost.
"""

import subprocess
import tempfile
from pathlib import Path

from recd.embedded import EmbeddedError, EmbeddedKafka
from recd.java import class_archive

__all__ = ["make_class_archive"]


class _ListingKafka(EmbeddedKafka):
    """A broker that writes down the classes it loads."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self._classes = self.data_dir / "classes"
        self._options = [f"-XX:DumpLoadedClassList={self._classes}"]

    def _class_data(self) -> list[str]:
        return self._options

    def archive(self, path: Path) -> None:
        self._options = ["-Xshare:dump", f"-XX:SharedClassListFile={self._classes}", f"-XX:SharedArchiveFile={path}"]
        done = subprocess.run(self._java(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise EmbeddedError(f"Kafka's classes could not be archived: {(done.stdout + done.stderr)[-500:]}")


def make_class_archive() -> None:
    """Start a broker once and archive the classes that it needed (64 MB); EmbeddedError when that fails."""
    archive = class_archive()
    partial = archive.with_name(f"{archive.name}.partial")
    with tempfile.TemporaryDirectory(prefix="recd-classes-") as folder:
        broker = _ListingKafka(Path(folder))
        broker.start()
        broker.stop()
        broker.archive(partial)
    partial.replace(archive)


if __name__ == "__main__":
    try:
        make_class_archive()
    except (EmbeddedError, OSError) as error:
        raise SystemExit(f"setup: Kafka will start slower: {error}") from error
