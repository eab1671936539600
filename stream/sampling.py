"""Sampling of negatives: which samples are kept, and the weights that make up for the others.

Most impressions find no engagement, and say little each. Keeping a share of them and giving each kept one the weight
1 / share leaves the expectation of every weighted sum as it was, so of the loss, its gradient and the calibration:
scores need no correction of their log-odds afterwards (Horvitz and Thompson, 1952, in place of King and Zeng, 2001).
DPP samples in the same place (arXiv 2108.09373).

Letters in shapes: S samples, L labels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dedup_cache.arrays import Bool, Float32, UInt64

SCALE = 1 << 32


class Sampled(NamedTuple):
    """`kept` bool[S]; `weights` float32[S], of kept samples and others alike."""

    kept: Bool
    weights: Float32


def sample_negatives(sample_ids: UInt64, *, labels: Float32, share: float) -> Sampled:
    """Keep every sample with a true label, with weight 1, and about `share`, in (0, 1], of the others.

    A negative is kept where the upper 32 bits of its id, uint64[S], are below t = round(share * 2^32), at least 1, and
    weighs 2^32 / t: a function of its place in the log, so a replay or another worker decides alike.
    """
    threshold = max(1, round(share * SCALE))
    positive = np.asarray(labels.any(axis=1), np.bool_)
    kept = positive | ((sample_ids >> np.uint64(32)) < threshold)
    return Sampled(kept, np.where(positive, 1.0, SCALE / threshold).astype(np.float32))
