"""Records of every kind: events, events with one thing wrong, JSON of other shapes, bytes that are no JSON."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

NOW_MS = 1_700_000_000_000
BODY: dict[str, Any] = {
    "event_id": "e1",
    "user_id": "u1",
    "event_time_ms": NOW_MS,
    "type": "impression",
    "item_id": 12,
    "country": "DE",
}


def raw(**changes: Any) -> bytes:
    return json.dumps({name: value for name, value in (BODY | changes).items() if value is not ...}).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*BODY, "price", "x"]), inner),
    max_leaves=6,
)
NAMES = [*BODY, "price", "count", "color", "vector", "history", "impression_id", "p", "other"]
SPLICE = st.tuples(st.integers(0, 150), st.integers(0, 20), st.binary(max_size=8) | st.sampled_from([b"}", b"]", b'"']))
BYTES = (
    st.none()
    | st.binary(max_size=40)
    | JSON.map(lambda tree: json.dumps(tree).encode())
    | st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3).map(lambda changes: raw(**changes))
    | st.builds(lambda name, value: raw(**{name: value}), st.sampled_from(["p", "number", "recent"]), st.floats(-2, 3))
    | SPLICE.map(lambda cut: raw()[: cut[0]] + cut[2] + raw()[cut[0] + cut[1] :])
    | st.integers(480, 1100).map(lambda depth: raw(x=1).replace(b": 1,", b": 1, ")[:-1] + b',"y":' + b"[" * depth)
    | st.integers(480, 1100).map(lambda depth: raw()[:-1] + b',"y":' + b"[" * depth + b"]" * depth + b"}")
)
