"""What deduplication saves, counted by hand."""

import numpy as np

from dedup_cache import Jagged, Rows, batch_stats, deduplicate, expand
from dedup_cache.batch import batch_arrays
from dedup_cache.schema import BatchSchema, GroupSchema
from tests.dedup_cache.rows_strategies import SALT, batch_of


def test_sixteen_repeats_of_a_sliding_history() -> None:
    schema = BatchSchema((GroupSchema("user", ("age",), ("history",)),), ("click",), "v1")
    starts = np.repeat(np.arange(4, dtype=np.int32), 16)
    column = Jagged(np.arange(53), starts, np.full(64, 50, np.int32))
    rows = Rows(np.repeat(np.arange(4, dtype=np.float32), 16)[:, None], {"history": column})
    group = deduplicate(rows, salt=SALT).group
    stats = batch_stats(batch_of({"user": group}, size=64, schema=schema))
    assert stats.groups["user"] == stats.groups["user"].__class__(64, 4, 64 * 50, 53)
    assert (stats.rows_in, stats.rows_distinct, stats.ids_in, stats.ids_stored) == (64, 4, 3200, 53)
    per_sample = 4 + 4 + 4 + 8 + 8 + 8
    plain_values, plain_lengths = expand(group).lists["history"].compact()
    assert stats.bytes_plain == 64 * per_sample + plain_values.nbytes + plain_lengths.nbytes + 64 * 4
    assert stats.bytes_dedup == 64 * per_sample + 64 * 4 + 53 * 8 + 4 * (4 + 4 + 4)
    assert batch_arrays(batch_of({"user": group}, size=64, schema=schema))["group/user/inverse"].nbytes == 256
