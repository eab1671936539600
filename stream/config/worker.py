"""A stream worker: sessions, batches, the dedup cache, the process; and the archive of what it reads."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from stream.config.section import Name, NonNegative, Positive, Section

MIN_BATCH_BYTES = 64 * 1024
"""Below this, samples of ordinary size would be quarantined one by one."""


class SessionConfig(Section, frozen=True):
    """Event-time sessions. Changing any of these needs a journalled close-all (`recd control stream close`)."""

    gap_ms: Positive = 1_800_000
    out_of_orderness_ms: NonNegative = 5_000
    max_duration_ms: Positive = 14_400_000
    max_events: Positive = 10_000
    max_ahead_ms: Positive = 60_000
    """An event dated later than its record's own timestamp by more than this is quarantined."""
    keep_negatives: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Share of the samples without a true label that are kept, each with the weight 1 / share, which the trainer uses;
    the others are counted and left out. A sample's id decides, so a replay keeps the same ones."""
    idle_after_ms: Positive = 1_000
    """How long the end of a partition must last before the watermark grows by the time elapsed."""


class BatchConfig(Section, frozen=True):
    """Where a batch ends."""

    max_samples: Positive = 512
    max_wait_ms: Positive = 500
    """Longest time between two commits; a commit flushes what is there."""
    max_bytes: Positive = 8_388_608
    """A larger encoded batch is split; one larger sample goes to quarantine. At least 64 KiB."""
    compression: Literal["none", "zstd", "lz4"] = "zstd"


class DedupConfig(Section, frozen=True):
    """The dedup cache: value -> index."""

    inline_bytes: NonNegative = 1024
    """Encoded rows above this are shipped once, by global id, on the `values` topic."""
    near_cache_entries: Positive = 1_000_000
    generation_ms: Positive = 86_400_000
    """Ids are counted from 0 again and values shipped again after so long, so that `values` and Redis stay bounded:
    `values` keeps what it got for so long and as long as `batches` keeps batches."""
    generation_ids: Positive = 10_000_000
    """The same after so many ids: Redis holds at most those of two generations."""
    salt: str = "1"
    """Version of the feature transforms; part of every fingerprint."""


class StreamConfig(Section, frozen=True):
    """One stream worker."""

    group_id: Name = "recd-stream"
    group_protocol: Literal["consumer", "classic"] = "consumer"
    worker_id: Name | None = None
    """Unique name of this process; host name and process id by default."""
    static_member: bool = False
    """Join the group as its member `worker_id`, which must be set: a short restart moves no partition."""
    max_poll_records: Positive = 5_000
    transaction_timeout_ms: Positive = 10_000
    snapshot_every_events: NonNegative = 100_000
    """Open sessions are written to the topic `snapshots` when a restart would have to read more of the log than this
    (or an eighth of the events that they hold), so that it need not start at the oldest one; 0: never."""
    host: str = "127.0.0.1"
    port: NonNegative = 6066
    """HTTP port of /health, /ready, /status, /metrics; 0 picks a free one (it stands in the log)."""
    data_dir: str = "var/stream"


class ArchiveConfig(Section, frozen=True):
    """Files of a history that outlives the topics."""

    url: str = "var/archive"
    """A folder, or an object store that fsspec knows (s3://, gs://, ...)."""
    max_rows: Positive = 500_000
    """Records after which a file is closed."""
    max_bytes: Positive = 134_217_728
    """Bytes of records that wait in memory, of all partitions together, before the largest becomes a file."""
    max_wait_ms: Positive = 600_000
    """A file is closed so long after its first record came."""
