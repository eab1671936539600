"""Named arrays to and from safetensors bytes, deterministic and checksummed.

The layout is that of safetensors (8 bytes header length, JSON header, tensors without holes), so any safetensors reader
opens it. Two things are added, because safetensors has neither: a fixed order of everything, so that equal arrays give
equal bytes, and a checksum. `checksum` is the first key of the metadata, at a fixed place: xxh3-128 in hex over all
bytes of the file but its own 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import xxhash

from dedup_cache.arrays import AnyArray
from dedup_cache.errors import BatchError

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "BOOL": np.dtype("?"),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
METADATA = "__metadata__"
PREFIX = b'{"__metadata__":{"checksum":"'
CHECKSUM_AT = 8 + len(PREFIX)
CHECKSUM_END = CHECKSUM_AT + 32
MAX_HEADER_BYTES = 1 << 24
MAX_DIMENSION = 2**31 - 1

Size = Annotated[int, msgspec.Meta(ge=0)]
Dimension = Annotated[int, msgspec.Meta(ge=0, le=MAX_DIMENSION)]


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[list[Dimension], msgspec.Meta(max_length=2)]
    data_offsets: tuple[Size, Size]


class Wire(NamedTuple):
    """What a file holds: texts by key (without the checksum) and arrays by name (read-only views)."""

    metadata: dict[str, str]
    arrays: dict[str, AnyArray]


def write(arrays: Mapping[str, AnyArray], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes. BatchError for an array type that the wire does not have, or a text that is not Unicode."""
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, object] = {METADATA: {"checksum": "0" * 32, **dict(sorted(metadata.items()))}}
    end = 0
    for name, array in ordered:
        code, first = CODES.get(array.dtype), end
        if code is None or array.ndim > 2:
            raise BatchError(name, f"arrays of {array.dtype} with {array.ndim} dimensions have no place on the wire")
        end += array.nbytes
        header[name] = _Tensor(code, list(array.shape), (first, end))
    try:
        text = msgspec.json.encode(header)
    except UnicodeEncodeError as error:
        raise BatchError(METADATA, f"a text that is not Unicode: {error}") from None
    text += b" " * (-len(text) % 8)
    body: list[Any] = [array if array.flags.c_contiguous else np.ascontiguousarray(array) for _, array in ordered]
    data = bytearray().join([len(text).to_bytes(8, "little"), text, *body])
    with memoryview(data) as view:
        data[CHECKSUM_AT:CHECKSUM_END] = _checksum(view[:CHECKSUM_AT], view[CHECKSUM_END:])
    return bytes(data)


def read(data: bytes) -> Wire:
    """Return what `write` was given, as views of `data`. BatchError for any byte that is not as it was written."""
    if len(data) < CHECKSUM_END or data[8:CHECKSUM_AT] != PREFIX:
        raise BatchError("header", f"not a batch, or cut off within it ({len(data)} bytes)")
    view = memoryview(data)
    if _checksum(view[:CHECKSUM_AT], view[CHECKSUM_END:]) != data[CHECKSUM_AT:CHECKSUM_END]:
        raise BatchError("checksum", f"the {len(data)} bytes are not those that were written: damaged or cut off")
    body_at = 8 + int.from_bytes(data[:8], "little")
    if body_at > min(len(data), MAX_HEADER_BYTES):
        raise BatchError("header", f"header of {body_at - 8} bytes in {len(data)} bytes")
    metadata, tensors = _parse(data[8:body_at])
    _check_places(tensors, len(data) - body_at)
    return Wire(metadata, {name: _view(data, body_at, name, tensor) for name, tensor in tensors.items()})


def _checksum(*parts: bytes | memoryview) -> bytes:
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.hexdigest().encode()


def _parse(text: bytes) -> tuple[dict[str, str], dict[str, _Tensor]]:
    try:
        raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(raw.pop(METADATA), type=dict[str, str])
        del metadata["checksum"]
    except (msgspec.MsgspecError, KeyError, ValueError, RecursionError) as error:
        raise BatchError("header", f"not a header of this format: {error}") from None
    tensors = {}
    for name, entry in raw.items():
        try:
            tensors[name] = msgspec.json.decode(entry, type=_Tensor)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BatchError(name, f"not a tensor of this format: {error}") from None
    return metadata, tensors


def _check_places(tensors: Mapping[str, _Tensor], body_bytes: int) -> None:
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        if tensor.dtype not in DTYPES:
            raise BatchError(name, f"type {tensor.dtype!r} is unknown")
        first, last = tensor.data_offsets
        num_bytes = int(np.prod(tensor.shape, dtype=object)) * DTYPES[tensor.dtype].itemsize
        if first != end or last != first + num_bytes:
            raise BatchError(
                name, f"bytes {first} to {last} for shape {tensor.shape}, expected {end} to {end + num_bytes}"
            )
        end = last
    if end != body_bytes:
        raise BatchError("header", f"tensors of {end} bytes in {body_bytes} bytes")


def _view(data: bytes, body_at: int, name: str, tensor: _Tensor) -> AnyArray:
    dtype = DTYPES[tensor.dtype]
    first, last = tensor.data_offsets
    if first == last:
        return np.empty(tuple(tensor.shape), dtype)
    if tensor.dtype == "BOOL" and int(np.frombuffer(data, np.uint8, last - first, body_at + first).max()) > 1:
        raise BatchError(name, "a boolean that is neither 0 nor 1")
    count = (last - first) // dtype.itemsize
    flat: AnyArray = np.frombuffer(data, dtype, count, body_at + first)
    return flat.reshape(tensor.shape)
