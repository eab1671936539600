"""What can go wrong in this package: one root, few names."""

from __future__ import annotations


class DedupCacheError(Exception):
    """Root of every error that this package raises."""


class SchemaError(DedupCacheError):
    """A schema contradicts itself: an empty, doubled or unusable name."""


class RowError(DedupCacheError):
    """Rows, or the bytes of a row, are damaged or do not fit their group; the message names the part."""


class BatchError(DedupCacheError):
    """A batch, or its bytes, cannot be understood; `field` names the part that is wrong."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"batch field '{field}': {reason}")
        self.field = field
        self.reason = reason


class ReferenceMismatch(DedupCacheError):
    """A reference (generation, group, id, check) leads to another value than the one it was made for."""


class StoreUnavailable(DedupCacheError):
    """The index store gave no answer in time; the caller goes on with values inline."""


class EvictionPolicyError(StoreUnavailable):
    """The Redis server may evict keys, which would lose assignments: it is not used until that is changed."""
