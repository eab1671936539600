"""Records for the `late` and `quarantine` topics: the source's own bytes, and why they are there."""

from __future__ import annotations

from dataclasses import dataclass

import xxhash

from stream.records import Rejected

HEADERS_BYTES = 4096
DETAIL_CHARS = 1000


@dataclass(frozen=True, slots=True)
class OutgoingRecord:
    """One record as it is produced."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


def reject_record(rejected: Rejected, *, topic: str, partition: int, max_bytes: int) -> OutgoingRecord:
    """The record for `late` or `quarantine`, at most `max_bytes` long.

    Bytes that do not fit are replaced by an empty value (a key, by no key) and their size and digest in headers.
    """
    headers = [
        ("recd.reason", rejected.reason.encode()),
        ("recd.detail", rejected.detail[:DETAIL_CHARS].encode(errors="replace")),
        ("recd.source", f"{topic}/{partition}/{rejected.offset}".encode()),
        ("recd.timestamp", str(rejected.append_time_ms).encode()),
    ]
    key, value = rejected.key, rejected.value
    if len(key or b"") + len(value or b"") + HEADERS_BYTES > max_bytes:
        body = value or b""
        headers.append(("recd.size", str(len(body)).encode()))
        headers.append(("recd.xxh3_128", xxhash.xxh3_128_hexdigest(body).encode()))
        value = b""
        key = key if len(key or b"") + HEADERS_BYTES <= max_bytes else None
    return OutgoingRecord(key, value, tuple(headers))
