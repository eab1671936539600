"""How one user and K candidates are tensors of the Open Inference Protocol, and what a model says of them.

One input a feature, by its name in the config. Its rows are the first dimension: one row is shared by all candidates,
K rows are one a candidate, and all inputs must agree on K. An input that is left away is missing for all.

- `int`, `string`: INT64 or BYTES [R].
- `float`, numbers of the session: FP32 [R]; `list[float]`: FP32 [R, length], or [length] for one row. A row of NaN is
  missing.
- `list[int]`, `list[string]`, items of the session: INT64 or BYTES [R, L] where all rows are equally long, [N] for one
  row of N, or, ragged, [N] with all rows one behind the other and the input `<feature>/lengths`, INT32 [R].
- `<feature>/lengths` goes with `int` and `string` too: 0 where the value is missing, else 1.

INT32 and FP64 are taken in the place of INT64 and FP32. Letters in shapes: K candidates, R rows (1 or K), N ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dedup_cache import Jagged
from dedup_cache.arrays import AnyArray, Float32, Int64
from serving.errors import RequestError
from serving.requests import MAX_CANDIDATES, Column, ItemType, ScoreRequest, as_read
from serving.tensors import Tensor
from stream.config import FeatureConfig
from stream.event_schema import FLOAT32_MAX
from stream.hashing import StringHashes

LENGTHS = "/lengths"
"""Behind a feature's name, which has no slash."""
INTEGERS, NUMBERS = ("INT64", "INT32"), ("FP32", "FP64")


class TensorSchema:
    """Reads tensors for one set of features. Safe to use from several threads."""

    def __init__(self, features: Sequence[FeatureConfig], *, items: ItemType) -> None:
        self._features = [as_read(feature, items=items) for feature in features]
        self._either = {f.name for f in features if f.source is not None and not f.is_dense and items == "id"}
        with_lengths = {f.name + LENGTHS for f in self._features if not f.is_dense}
        self._names = {feature.name for feature in self._features} | with_lengths
        self._hashes = StringHashes()

    def inputs(self) -> list[dict[str, Any]]:
        """What the model's metadata says of its inputs; of those with ids the lengths too."""
        described = []
        for feature in self._features:
            shape = [-1, feature.length] if feature.type == "list[float]" else [-1]
            parameters: dict[str, Any] = {"required": feature.required, "group": feature.group}
            if feature.type in ("list[int]", "list[string]"):
                parameters["max_length"] = feature.max_length
            datatype = "FP32" if feature.is_dense else self._datatypes(feature)[0]
            described.append({"name": feature.name, "datatype": datatype, "shape": shape, "parameters": parameters})
            if not feature.is_dense:
                lengths = {"name": feature.name + LENGTHS, "datatype": "INT32", "shape": [-1]}
                described.append(lengths | {"parameters": {"required": False}})
        return described

    def request(self, tensors: Mapping[str, Tensor]) -> ScoreRequest:
        """The request that the tensors are; RequestError names the input that does not fit."""
        for name in tensors:
            if name not in self._names:
                raise RequestError(f"the model has no input {name}")
        columns = {feature.name: self._column(feature, tensors) for feature in self._features}
        sizes = {name: _rows(column) for name, column in columns.items() if name in tensors}
        many = {size: name for name, size in reversed(sizes.items()) if size != 1}
        if len(many) > 1:
            told = " and ".join(f"{size} ({name})" for size, name in sorted(many.items())[:2])
            raise RequestError(f"inputs disagree on the number of candidates: {told}; one row is shared by all")
        count = next(iter(many), 1)
        if count > MAX_CANDIDATES:
            raise RequestError(f"{count} candidates, more than {MAX_CANDIDATES}")
        return ScoreRequest(count, columns if count else {})

    def _column(self, feature: FeatureConfig, tensors: Mapping[str, Tensor]) -> Column:
        tensor = tensors.get(feature.name)
        if tensor is None:
            if feature.required:
                raise RequestError(f"the input {feature.name} is required, but missing")
            if feature.name + LENGTHS in tensors:
                raise RequestError(f"{feature.name}{LENGTHS} is given without {feature.name}")
            return _nothing(feature)
        if feature.is_dense:
            return _numbers(tensor, feature)
        return self._ids(tensor, feature, tensors.get(feature.name + LENGTHS))

    def _ids(self, tensor: Tensor, feature: FeatureConfig, given: Tensor | None) -> Jagged:
        _check_type(tensor, self._datatypes(feature))
        is_list = feature.type.startswith("list")
        if given is not None:
            lengths = _lengths(given, tensor)
        elif len(tensor.shape) == 2:
            lengths = np.full(tensor.shape[0], tensor.shape[1], np.int64)
        elif len(tensor.shape) == 1:
            lengths = np.array([tensor.shape[0]]) if is_list else np.ones(tensor.shape[0], np.int64)
        else:
            raise RequestError(f"the input {tensor.name} has {len(tensor.shape)} dimensions, expected 1 or 2")
        longest = int(lengths.max(initial=0))
        if not is_list and longest > 1:
            raise RequestError(f"the input {tensor.name} has rows of {longest} values, expected one")
        if feature.required and int(lengths.min(initial=1)) == 0 and not is_list:
            raise RequestError(f"the input {tensor.name} is required, but missing in row {int(lengths.argmin())}")
        ids = self._identified(tensor.values)
        column = Jagged.from_lengths(ids, lengths.astype(np.int32))
        most = feature.max_length if is_list else 1
        if longest <= most:
            return column
        kept = np.minimum(column.lengths, np.int32(most))
        return Jagged(column.values, column.starts + (column.lengths - kept), kept)

    def _identified(self, values: AnyArray | list[str]) -> Int64:
        if isinstance(values, list):
            return self._hashes.of(values, count=len(values))
        return values.astype(np.int64)

    def _datatypes(self, feature: FeatureConfig) -> tuple[str, ...]:
        if feature.name in self._either:
            return (*INTEGERS, "BYTES")
        return ("BYTES",) if feature.type.endswith(("string", "string]")) else INTEGERS


def _rows(column: Column) -> int:
    return column.num_rows if isinstance(column, Jagged) else column.shape[0]


def _nothing(feature: FeatureConfig) -> Column:
    """One row in which the feature is missing."""
    if feature.is_dense:
        return np.full((1, len(feature.dense_columns)), feature.default, np.float32)
    return Jagged.from_lengths(np.empty(0, np.int64), np.zeros(1, np.int32))


def _numbers(tensor: Tensor, feature: FeatureConfig) -> Float32:
    _check_type(tensor, NUMBERS)
    width = len(feature.dense_columns)
    fits = tensor.shape[-1:] == (width,) or (width == 1 and len(tensor.shape) == 1)
    if not fits or len(tensor.shape) > 2:
        expected = f"[rows, {width}]" if feature.type == "list[float]" else "[rows]"
        raise RequestError(f"the input {tensor.name} has shape {list(tensor.shape)}, expected {expected}")
    given = np.asarray(tensor.values, np.float64).reshape(-1, width)
    missing = np.isnan(given)
    beyond = ~missing & ~(np.abs(given) <= FLOAT32_MAX)
    if bool(beyond.any()) or bool((missing.any(axis=1) & ~missing.all(axis=1)).any()):
        what = "a number beyond float32" if bool(beyond.any()) else "a row that is NaN in part"
        raise RequestError(f"the input {tensor.name} has {what}")
    if feature.required and bool(missing.any()):
        raise RequestError(f"the input {tensor.name} is required, but missing in row {int(missing[:, 0].argmax())}")
    numbers: Float32 = np.where(missing, feature.default, given).astype(np.float32)
    return numbers


def _lengths(given: Tensor, tensor: Tensor) -> Int64:
    _check_type(given, ("INT32", "INT64"))
    lengths: Int64 = np.asarray(given.values, np.int64)
    if len(given.shape) != 1 or len(tensor.shape) != 1:
        raise RequestError(f"the inputs {tensor.name} and {given.name} must both have one dimension")
    # Each by itself first: a sum could run over.
    if int(lengths.min(initial=0)) < 0 or int(lengths.max(initial=0)) > tensor.shape[0]:
        raise RequestError(f"the input {given.name} has a length that is no part of {tensor.name}")
    if int(lengths.sum()) != tensor.shape[0]:
        raise RequestError(
            f"the input {given.name} adds up to {int(lengths.sum())}, but {tensor.name} has {tensor.shape[0]} values"
        )
    return lengths


def _check_type(tensor: Tensor, allowed: Sequence[str]) -> None:
    if tensor.datatype not in allowed:
        raise RequestError(f"the input {tensor.name} is {tensor.datatype}, expected {' or '.join(allowed)}")
