"""Requests to a server, of made-up users and candidates: as `/score` takes them, and as v2 tensors.

Every 200 candidates come out of a catalogue of 5,000 items, the popular ones more often.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from serving.tensor_schema import LENGTHS
from stream.config import Config, FeatureConfig

CATALOGUE = 5_000
HEAD = "POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n{more}\r\n"
DATATYPES = {"int": "INT64", "string": "BYTES", "list[int]": "INT64", "list[string]": "BYTES"}
Values = dict[str, Any]


def http_requests(config: Config, *, kind: str, count: int, candidates: int) -> list[bytes]:
    """So many whole HTTP requests of a kind: `score` or `v2`."""
    rng = np.random.default_rng(0)
    user_side = [feature for feature in config.features if feature.group != "item"]
    item_side = [feature for feature in config.features if feature.group == "item"]
    catalogue = [_values(item_side, rng) for _ in range(CATALOGUE)]
    made = []
    for _ in range(count):
        chosen = np.minimum(rng.zipf(1.3, 20 * candidates), CATALOGUE) - 1
        items = [catalogue[i] for i in _distinct(chosen, candidates, rng)]
        user = _values(user_side, rng)
        if kind == "score":
            made.append(_score(user, items))
        else:
            made.append(_v2(config, user=user, items=items))
    return made


def _distinct(chosen: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    found = list(dict.fromkeys(chosen.tolist()))[:count]
    rest = [i for i in rng.permutation(CATALOGUE).tolist() if i not in set(found)]
    return found + rest[: count - len(found)]


def _values(features: list[FeatureConfig], rng: np.random.Generator) -> Values:
    return {feature.name: _value(feature, rng) for feature in features}


def _value(feature: FeatureConfig, rng: np.random.Generator) -> Any:
    if feature.is_dense:
        numbers = rng.normal(0.0, 1.0, len(feature.dense_columns)).round(3).tolist()
        return numbers if feature.type == "list[float]" else numbers[0]
    if feature.source is None and not feature.type.startswith("list"):
        return int(rng.integers(1 << 36)) if feature.type == "int" else f"value-{rng.integers(100)}"
    least = feature.max_length // 3 if feature.group == "item" else feature.max_length
    ids = rng.integers(0, 1 << 36, rng.integers(least, feature.max_length + 1)).tolist()
    return [f"value-{i % 1000}" for i in ids] if feature.type == "list[string]" else ids


def _score(user: Values, items: list[Values]) -> bytes:
    body = msgspec.json.encode({"features": user, "candidates": items})
    return HEAD.format(path="/score", kind="application/json", size=len(body), more="").encode() + body


def _v2(config: Config, *, user: Values, items: list[Values]) -> bytes:
    inputs: list[Values] = []
    data: list[bytes] = []

    def add(name: str, datatype: str, shape: list[int], values: bytes) -> None:
        parameters = {"binary_data_size": len(values)}
        inputs.append({"name": name, "datatype": datatype, "shape": shape, "parameters": parameters})
        data.append(values)

    for feature in config.features:
        rows = [user[feature.name]] if feature.name in user else [item[feature.name] for item in items]
        if feature.is_dense:
            numbers = np.array(rows, "<f4")
            add(feature.name, "FP32", list(numbers.shape), numbers.tobytes())
            continue
        is_list = isinstance(rows[0], list)
        ids = [value for row in rows for value in row] if is_list else rows
        datatype = "INT64" if feature.source else DATATYPES[feature.type]
        add(feature.name, datatype, [len(ids)], _bytes(ids))
        if is_list:
            add(feature.name + LENGTHS, "INT32", [len(rows)], np.array([len(row) for row in rows], "<i4").tobytes())
    written = msgspec.json.encode({"inputs": inputs, "parameters": {"binary_data_output": True}})
    body = b"".join([written, *data])
    more = f"Inference-Header-Content-Length: {len(written)}\r\n"
    head = HEAD.format(path="/v2/models/recd/infer", kind="application/octet-stream", size=len(body), more=more)
    return head.encode() + body


def _bytes(ids: list[Any]) -> bytes:
    if ids and isinstance(ids[0], str):
        texts = [text.encode() for text in ids]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return np.array(ids, "<i8").tobytes()
