"""Every operation a second time, slow and obvious: Python integers and floats, one row at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import product
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import xxhash

from stream.transforms import Transform

U64 = 2**64
GAMMA = 0x9E3779B97F4A7C15
FLOAT32_MAX = float(np.finfo(np.float32).max)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def signed(x: int) -> int:
    return (x + 2**63) % U64 - 2**63


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % U64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % U64
    return x ^ (x >> 31)


def combine(state: int, value: int) -> int:
    return mix(((state + GAMMA) * GAMMA + value) % U64)


def seed(salt: int) -> int:
    return mix((salt + GAMMA) % U64)


def hashed(salt: int, ids: Sequence[int]) -> int:
    state = seed(salt)
    for value in ids:
        state = combine(state, value)
    return signed(state)


def float32(x: float) -> float:
    return float(np.float32(min(max(x, -FLOAT32_MAX), FLOAT32_MAX)))


def sigrid_hash(op: Any, ids: list[int]) -> list[int]:
    return [(hashed(op.salt, [value]) % U64) * op.buckets // U64 for value in ids]


def positive_modulus(op: Any, ids: list[int]) -> list[int]:
    return [value % op.modulus for value in ids]


def first_x(op: Any, ids: list[int]) -> list[int]:
    return ids[: op.x]


def clamp(op: Any, values: list[Any]) -> list[Any]:
    if values and isinstance(values[0], float):
        low, high = float32(op.low), float32(op.high)
        return [x if math.isnan(x) else min(max(x, low), high) for x in values]
    return [min(max(value, op.low), op.high) for value in values]


def map_id(op: Any, ids: list[int]) -> list[int]:
    table = {
        key if isinstance(key, int) else signed(xxhash.xxh3_64_intdigest(key.encode())): new for key, new in op.table
    }
    found = [table.get(value, op.default) for value in ids]
    return [new for new in found if new is not None]


def ngram(op: Any, ids: list[int]) -> list[int]:
    return [hashed(op.n, ids[i : i + op.n]) for i in range(len(ids) - op.n + 1)]


def enumerate_(op: Any, ids: list[int]) -> list[int]:
    if op.of == "place":
        return list(range(len(ids)))
    return [hashed(place, [value]) for place, value in enumerate(ids)]


def get_local_hour(op: Any, ids: list[int]) -> list[int]:
    hours = []
    for value in ids:
        second = value // 1000 if op.unit == "ms" else value
        hours.append((EPOCH + timedelta(seconds=second)).astimezone(ZoneInfo(op.timezone)).hour)
    return hours


def bucketize(op: Any, numbers: list[float]) -> list[int]:
    borders = [float32(border) for border in op.borders]
    buckets = []
    for x in numbers:
        if math.isnan(x):
            continue
        below = len([border for border in borders if border < x])
        buckets.append(below + (borders.count(x) == 2))
    return buckets


def logit(op: Any, numbers: list[float]) -> list[float]:
    limited = [x if math.isnan(x) else min(max(x, op.eps), 1 - op.eps) for x in numbers]
    return [float32(math.log(x / (1 - x))) for x in limited]


def box_cox(op: Any, numbers: list[float]) -> list[float]:
    results = []
    for x in numbers:
        y = max(x + op.shift, 1e-6) if not math.isnan(x) else x
        if op.lambda_ == 0:
            results.append(float32(math.log(y)))
        else:
            try:
                results.append(float32((math.pow(y, op.lambda_) - 1) / op.lambda_))
            except OverflowError:
                results.append(math.copysign(FLOAT32_MAX, op.lambda_))
    return results


def onehot(op: Any, ids: list[int]) -> list[float]:
    return [float(column in ids) for column in range(op.size)]


def cartesian(op: Any, first: list[int], second: list[int]) -> list[int]:
    return [hashed(2, pair) for pair in product(first, second)][: op.max_pairs]


def id_list_transform(op: Any, first: list[int], second: list[int]) -> list[int]:
    ids = {
        "union": first + second,
        "intersection": [x for x in first if x in second],
        "difference": [x for x in first if x not in second],
    }[op.operation]
    return list(dict.fromkeys(ids))


def compute_score(op: Any, *columns: list[Any]) -> list[float]:
    if op.kind_ == "weighted_cosine":
        first, first_scores, second, second_scores = columns
        return [_cosine(_sums(first, first_scores), _sums(second, second_scores))]
    first, second = columns[:2]
    n, m = Counter(first), Counter(second)
    overlap = (n & m).total()
    common = [score for x, score in zip(second, columns[2], strict=False) if x in n] if len(columns) > 2 else []
    common = [0.0 if math.isnan(score) else score for score in common]
    results: dict[str, Callable[[], float]] = {
        "has_overlap": lambda: float(overlap > 0),
        "overlap_count": lambda: float(overlap),
        "max_count": lambda: float(sum(max(n[x], m[x]) for x in n if x in m)),
        "jaccard": lambda: overlap / (len(first) + len(second) - overlap) if first or second else 0.0,
        "cosine": lambda: _cosine(n, m),
        "score_sum": lambda: float(sum(map(Fraction, common))),
        "score_min": lambda: min(common, default=0.0),
        "score_max": lambda: max(common, default=0.0),
    }
    return [float32(results[op.kind_]())]


def _sums(ids: list[int], scores: list[float]) -> dict[int, float]:
    sums: dict[int, float] = {}
    for value, score in zip(ids, scores, strict=False):
        sums[value] = sums.get(value, 0.0) + (0.0 if math.isnan(score) else score)
    return sums


def _cosine(a: Any, b: Any) -> float:
    norms = math.sqrt(sum(x * x for x in a.values())) * math.sqrt(sum(x * x for x in b.values()))
    return sum(a[key] * b[key] for key in a if key in b) / norms if norms else 0.0


def run_slowly(transform: Transform, columns: Sequence[list[Any]]) -> list[list[Any]]:
    """The operation row by row; a column is one list of ids or numbers a row."""
    name = transform.name if transform.name != "enumerate" else "enumerate_"
    return [globals()[name](transform.operation, *row) for row in zip(*columns, strict=True)]
