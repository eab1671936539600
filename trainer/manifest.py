"""What a version says about itself, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import xxhash

MANIFEST = "manifest.json"
DENSE = "dense.safetensors"
END = b'"}'
DIGEST_CHARS = 32

FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_\-][A-Za-z0-9_.\-]*$", max_length=250)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class VersionError(Exception):
    """A version cannot be written, read or used; the message names version, file and what is wrong with it."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON object; unknown keys are refused."""


class FileEntry(Record, frozen=True):
    """What a file must be: its length and the xxh3-128 digest of its bytes, in hex."""

    bytes: Count
    xxh3_128: str


class ShardEntry(Record, frozen=True, kw_only=True):
    """Where a part of a table lies, and the row and column of the table at which it begins.

    In a delta it holds the rows that `ids` lists (int64, ascending, rows of the whole table), else all of its rows.
    """

    file: FileName
    tensor: str
    row: Count
    col: Count
    ids: str = ""


class TableEntry(Record, frozen=True):
    """A table of `rows` by `dim`, which its shards cover exactly once; in a delta, its touched rows."""

    name: str
    rows: Count
    dim: Count
    shards: tuple[ShardEntry, ...]


class Manifest(Record, frozen=True, kw_only=True):
    """All that a version says about itself.

    Versions of one `lineage` come from one run of a trainer, without a resume or other weights in between. A delta
    changes the weights of version `base` of the same lineage into its own. Format 1 knew neither.
    """

    format: Literal[1, 2]
    version: Count
    kind: Literal["full", "delta"]
    lineage: str = ""
    base: Count = 0
    """0 in a full version."""
    step: int
    samples: int
    stream_time_ms: int
    weights_ms: int
    published_ms: int
    config: dict[str, Any]
    files: dict[FileName, FileEntry]
    tables: tuple[TableEntry, ...]
    digest: str
    """xxh3-128 of the manifest's own bytes before this value, which ends it."""

    def __post_init__(self) -> None:
        """A delta has an older version to build on, and nothing else has one."""
        if (self.kind == "delta") != (0 < self.base < self.version):
            raise ValueError(f"a {self.kind} version {self.version} cannot build on {self.base}")

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(entry.bytes for entry in self.files.values())

    def is_same(self, other: Manifest) -> bool:
        """Whether both stand for the same weights, be one a delta and the other full."""
        return (self.lineage, self.version) == (other.lineage, other.version)


@dataclass(frozen=True)
class TableShard:
    """A rectangle of one embedding table, as one rank holds it."""

    table: str
    rows: int
    """Of the full table."""
    dim: int
    """Of the full table."""
    row: int
    """Where the rectangle begins in the full table."""
    col: int
    weights: np.ndarray
    """float32[shard rows, shard columns]; in a delta, of the rows `ids` alone."""
    ids: np.ndarray | None = None
    """int64, ascending, rows of the full table; None for all rows of the rectangle."""


@dataclass(frozen=True)
class Snapshot:
    """The weights of one moment, on the host, and what they stand for."""

    step: int
    samples: int
    """Trained since the beginning."""
    stream_time_ms: int
    """Greatest event time among them."""
    weights_ms: int
    """Wall clock when the weights were taken."""
    dense: dict[str, np.ndarray]
    """By the module's state_dict name."""
    shards: list[TableShard]
    config: dict[str, Any]
    """What a server builds the model from, as plain JSON values: features, derived, labels, model."""
    lineage: str = ""
    base: int = 0
    """The version that this is a delta to; 0 where it is full."""

    @property
    def kind(self) -> Literal["full", "delta"]:
        """What it makes."""
        return "delta" if self.base else "full"


def check_digest(data: bytes, *, what: str) -> None:
    """VersionError unless a manifest's bytes are those that were written."""
    body = data[: -DIGEST_CHARS - len(END)]
    if data != body + xxhash.xxh3_128_hexdigest(body).encode() + END:
        raise VersionError(f"{what}: its bytes do not match their digest")


def with_digest(data: bytes) -> bytes:
    """A manifest's bytes with its digest put in."""
    body = data.removesuffix(END)
    return body + xxhash.xxh3_128_hexdigest(body).encode() + END


def manifest_of(data: bytes) -> Manifest:
    """A manifest's bytes, just written, as a manifest."""
    return msgspec.json.decode(data, type=Manifest)
