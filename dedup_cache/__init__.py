"""Deduplicated training batches (IKJT, RecD arXiv 2211.05239) and the shared index of feature values.

Fingerprints of rows, index assignment in memory and in Redis, the batch and its bytes. `RedisStore` is imported on
first use, so that nothing else needs the redis client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dedup_cache.assign import Assignment, IndexStore, MemoryStore
from dedup_cache.batch import FORMAT_VERSION, Batch, BatchMeta, decode, encode, encode_sound
from dedup_cache.errors import (
    BatchError,
    DedupCacheError,
    EvictionPolicyError,
    ReferenceMismatch,
    RowError,
    SchemaError,
    StoreUnavailable,
)
from dedup_cache.fingerprint import check_bits, fingerprints
from dedup_cache.ikjt import Deduplicated, Group, deduplicate, distinct, expand, refer, resolve
from dedup_cache.jagged import Jagged, Rows
from dedup_cache.near_cache import NearCache
from dedup_cache.pool import Held, Picked, Pool
from dedup_cache.rows_codec import decode_rows, encode_rows
from dedup_cache.sample_ids import SamplePosition, sample_id, sample_position
from dedup_cache.schema import BatchSchema, GroupSchema, Slicing
from dedup_cache.slices import slice_group
from dedup_cache.stats import BatchStats, GroupStats, batch_stats
from dedup_cache.value_keys import ValueKey

if TYPE_CHECKING:
    from dedup_cache.redis_store import RedisStore

__all__ = [
    "FORMAT_VERSION",
    "Assignment",
    "Batch",
    "BatchError",
    "BatchMeta",
    "BatchSchema",
    "BatchStats",
    "DedupCacheError",
    "Deduplicated",
    "EvictionPolicyError",
    "Group",
    "GroupSchema",
    "GroupStats",
    "Held",
    "IndexStore",
    "Jagged",
    "MemoryStore",
    "NearCache",
    "Picked",
    "Pool",
    "RedisStore",
    "ReferenceMismatch",
    "RowError",
    "Rows",
    "SamplePosition",
    "SchemaError",
    "Slicing",
    "StoreUnavailable",
    "ValueKey",
    "batch_stats",
    "check_bits",
    "decode",
    "decode_rows",
    "deduplicate",
    "distinct",
    "encode",
    "encode_rows",
    "encode_sound",
    "expand",
    "fingerprints",
    "refer",
    "resolve",
    "sample_id",
    "sample_position",
    "slice_group",
]


def __getattr__(name: str) -> Any:
    if name == "RedisStore":
        from dedup_cache.redis_store import RedisStore

        return RedisStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
