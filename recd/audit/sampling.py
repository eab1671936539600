"""The audit's own rule of which impressions without a true label are left out, and what the others weigh."""

from __future__ import annotations

MASK = 2**64 - 1


def negative_weight(partition: int, offset: int, *, share: float) -> float:
    """What a sample of this record weighs that found no engagement; 0 where it is left out.

    Its id is the finaliser of splitmix64 over (partition << 48 | offset); the upper half of it, as a fraction of 2^32,
    is compared with the share.
    """
    chances = 2**32
    kept = max(round(share * chances), 1)
    x = partition << 48 | offset
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    x ^= x >> 31
    return chances / kept if x // chances < kept else 0.0
