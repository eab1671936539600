"""Tensors of the Open Inference Protocol, version 2, in JSON or in its binary tensor data extension.

A body is a JSON object; with the header `Inference-Header-Content-Length` that object ends after so many bytes, and the
data of the tensors with a `binary_data_size` follow, little-endian, in the order of the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import msgspec
import numpy as np

from dedup_cache.arrays import AnyArray, Float32
from serving.errors import RequestError
from stream.event_schema import Float32Number, Int64Number

NUMPY = {"INT32": "<i4", "INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}
IN_JSON: dict[str, Any] = {
    "INT32": int,
    "INT64": Int64Number,
    "FP32": Float32Number,
    "FP64": Float32Number,
    "BYTES": str,
}
LENGTH_BYTES = 4
MOST_DIMENSIONS = 8


class InputParameters(msgspec.Struct):
    """Of an input; those that nobody here knows are skipped, as the protocol asks."""

    binary_data_size: int | None = None


class OutputParameters(msgspec.Struct):
    """Of an output that is asked for."""

    binary_data: bool | None = None


class RequestParameters(msgspec.Struct):
    """Of a request."""

    binary_data_output: bool = False
    timeout: int | None = None
    """Microseconds until the client gives up."""


class Input(msgspec.Struct):
    """A tensor as the body's JSON describes it."""

    name: str
    datatype: str
    shape: list[int]
    data: msgspec.Raw = msgspec.Raw(b"")
    parameters: InputParameters = msgspec.field(default_factory=InputParameters)


class WantedOutput(msgspec.Struct):
    """An output that is asked for."""

    name: str
    parameters: OutputParameters = msgspec.field(default_factory=OutputParameters)


class InferBody(msgspec.Struct):
    """The JSON object of a request."""

    inputs: list[Input]
    id: str | None = None
    outputs: list[WantedOutput] = []
    parameters: RequestParameters = msgspec.field(default_factory=RequestParameters)


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One input: numbers of its datatype and shape, or the texts of BYTES, row by row."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: AnyArray | list[str]


@dataclass(frozen=True, slots=True)
class Inference:
    """A request's tensors by name, and how it is to be answered."""

    tensors: Mapping[str, Tensor]
    outputs: Sequence[WantedOutput]
    """Empty for all."""
    id: str | None
    binary_output: bool
    timeout_s: float | None


def read_inference(body: bytes, *, json_size: int | None) -> Inference:
    """Read a body, whose JSON has `json_size` bytes where the header says so; RequestError names what does not fit."""
    size = len(body) if json_size is None else json_size
    if not 0 < size <= len(body):
        raise RequestError(f"Inference-Header-Content-Length is {size}, but the body has {len(body)} bytes")
    view = memoryview(body)
    try:
        asked = msgspec.json.decode(view[:size], type=InferBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(str(error).replace("`", "")) from None
    tensors: dict[str, Tensor] = {}
    at = size
    for i, given in enumerate(asked.inputs):
        here = f"$.inputs[{i}] ({given.name})"
        if given.name in tensors:
            raise RequestError(f"the input is given twice - at {here}")
        binary_size = given.parameters.binary_data_size
        if binary_size is not None and not 0 <= binary_size <= len(body) - at:
            raise RequestError(
                f"binary_data_size is {binary_size}, but {len(body) - at} bytes are left - at {here}.parameters"
            )
        tensors[given.name] = _tensor(given, None if binary_size is None else view[at : at + binary_size], here)
        at += binary_size or 0
    if at != len(body):
        raise RequestError(f"{len(body) - at} bytes follow the last tensor")
    timeout = asked.parameters.timeout
    if timeout is not None and timeout < 0:
        raise RequestError(f"a timeout below 0: {timeout} - at $.parameters.timeout")
    seconds = timeout / 1e6 if timeout else None
    return Inference(tensors, asked.outputs, asked.id, asked.parameters.binary_data_output, seconds)


def write_inference(
    head: dict[str, Any], outputs: Mapping[str, Float32], *, binary: frozenset[str]
) -> tuple[bytes, int | None]:
    """The body of an answer, `head` and FP32 outputs [K], and the size of its JSON where binary data follows."""
    described, data = [], []
    for name, values in outputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if name in binary:
            data.append(values.astype("<f4").tobytes())
            tensor["parameters"] = {"binary_data_size": len(data[-1])}
        else:
            tensor["data"] = values.tolist()
        described.append(tensor)
    written = msgspec.json.encode(head | {"outputs": described})
    return b"".join([written, *data]), len(written) if data else None


def _tensor(given: Input, data: memoryview | None, here: str) -> Tensor:
    if given.datatype not in IN_JSON:
        raise RequestError(f"datatype {given.datatype} is none of {', '.join(IN_JSON)} - at {here}.datatype")
    if len(given.shape) > MOST_DIMENSIONS:
        raise RequestError(f"{len(given.shape)} dimensions, at most {MOST_DIMENSIONS} - at {here}.shape")
    if any(size < 0 for size in given.shape):
        raise RequestError(f"a size below 0 in {given.shape} - at {here}.shape")
    if data is not None and bytes(given.data):
        raise RequestError(f"data stands in the JSON and behind it - at {here}")
    values = _from_json(given, here) if data is None else _from_binary(given.datatype, data, here)
    if len(values) != prod(given.shape):
        raise RequestError(f"shape {given.shape} has {prod(given.shape)} elements, got {len(values)} - at {here}.data")
    return Tensor(given.name, given.datatype, tuple(given.shape), values)


def _from_json(given: Input, here: str) -> AnyArray | list[str]:
    """Flat, or nested as deep as the shape says."""
    raw = bytes(given.data)
    if not raw:
        raise RequestError(f"neither data nor binary_data_size - at {here}")
    nested = raw.lstrip()[1:].lstrip()[:1] == b"["
    depth = len(given.shape) if nested else 1
    kind: Any = IN_JSON[given.datatype]
    for _ in range(depth):
        kind = list[kind]
    try:
        values = msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what, _, path = str(error).replace("`", "").partition(" - at $")
        raise RequestError(f"{what} - at {here}.data{path}") from None
    if nested:
        _check_nesting(values, given.shape, here)
        for _ in range(depth - 1):
            values = [value for row in values for value in row]
    if given.datatype == "BYTES":
        texts: list[str] = values
        return texts
    try:
        return np.array(values, NUMPY[given.datatype])
    except OverflowError:
        raise RequestError(f"a number that is no {given.datatype} - at {here}.data") from None


def _check_nesting(values: Any, shape: Sequence[int], here: str) -> None:
    rows = [values]
    for size in shape:
        if any(len(row) != size for row in rows):
            raise RequestError(f"data is not nested as {list(shape)} says - at {here}.data")
        rows = [inner for row in rows for inner in row]


def _from_binary(datatype: str, data: memoryview, here: str) -> AnyArray | list[str]:
    if datatype == "BYTES":
        return _texts(bytes(data), here)
    kind = np.dtype(NUMPY[datatype])
    if len(data) % kind.itemsize:
        raise RequestError(f"{len(data)} bytes are no whole number of {datatype} - at {here}")
    return np.frombuffer(data, kind)


def _texts(data: bytes, here: str) -> list[str]:
    texts: list[str] = []
    at = 0
    while at < len(data):
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(data[at:begin], "little")
        if at > len(data) or begin > len(data):
            raise RequestError(f"the element {len(texts)} goes beyond the tensor's end - at {here}")
        try:
            texts.append(data[begin:at].decode())
        except UnicodeDecodeError:
            raise RequestError(f"the element {len(texts)} is not UTF-8 - at {here}") from None
    return texts
