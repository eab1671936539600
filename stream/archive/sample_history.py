"""An archive of samples as a replay reads it: the samples of each partition of the batches topic, file by file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from stream.archive.errors import ArchiveError
from stream.archive.history import by_partition
from stream.archive.manifest import FileRecord, files_at, newest_log, read_manifest
from stream.archive.sample_reader import ArchivedBlock, decode_samples
from stream.archive.store import ArchiveStore
from stream.columns import batch_schema
from stream.config import Config


class ArchivedSamples:
    """The samples that the archive at a URL has of the batches topic, as far as the manifest lists them."""

    def __init__(self, config: Config, url: str) -> None:
        """Raises ArchiveError where the manifest lists no samples of this archive."""
        self._store = ArchiveStore(url)
        self._schema = batch_schema(config)
        listed = files_at(read_manifest(config.kafka, config.topics.archive), self._store.url)
        of_batches = [f for f in listed if f.kind == "samples" and f.topic == config.topics.batches]
        self._files = by_partition(newest_log(of_batches))
        if not self._files:
            raise ArchiveError(
                f"{url}: the archive has no samples of '{config.topics.batches}': `recd archive --what samples` writes "
                "them; without --what samples a replay makes them again of the archived events"
            )

    @property
    def url(self) -> str:
        """Where it lies."""
        return self._store.url

    @property
    def topic_id(self) -> str:
        """Of the batches topic whose samples these are."""
        return next(iter(self._files.values()))[-1].topic_id

    @property
    def files(self) -> Mapping[int, Sequence[FileRecord]]:
        """By partition of the batches topic, in order, without a gap between them."""
        return self._files

    def read(self, file: FileRecord) -> Iterator[ArchivedBlock]:
        """Its samples. Raises FileDamaged, OtherSchema."""
        return decode_samples(self._store.read(file), self._schema, place=f"{self._store.url}/{file.path}")
