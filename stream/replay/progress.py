"""How far a replay came: committed with its output, so that it can be killed at any moment and started again."""

from __future__ import annotations

import msgspec

from stream.kafka import Committed
from stream.replay.errors import OtherReplay

FORMAT_VERSION = 1


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Of one source partition; what is committed beside the offset."""

    v: int = FORMAT_VERSION
    begin: str
    """The bound at which the replay was asked to begin."""
    commit: int
    """Number of the live run's commit up to which everything was written; 0 of archived samples."""
    resume: int
    """Every record before this offset was replayed; of archived samples, behind the last of their impressions."""
    seq: int
    """Samples of the partition up to here, as the live run counts them."""
    live: int | None = None
    """Behind the replay, with --follow: the offset of the live batches from which on they are to be copied."""
    file: tuple[int, int] | None = None
    """Of archived samples: partition and offset of the live batches at which the file of the last of them begins."""


def encode_progress(progress: Progress) -> Committed:
    """As it is committed."""
    return Committed(progress.resume, msgspec.json.encode(progress).decode())


def decode_progress(committed: Committed, *, place: str) -> Progress:
    """Raises OtherReplay, naming `place`."""
    try:
        progress = msgspec.json.decode(committed.metadata, type=Progress)
    except msgspec.MsgspecError as error:
        raise OtherReplay(f"{place}: its progress was not written by a replay: {error}; choose another topic") from None
    if progress.v != FORMAT_VERSION:
        raise OtherReplay(f"{place}: progress of format {progress.v}, this replay knows {FORMAT_VERSION}")
    return progress
