"""The tensors of a cut, by torch.distributed.checkpoint: sharded as they lie, read by any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from trainer.cut_files import CutError
from trainer.ranks import Ranks
from trainer.takeover import NEW, Move

Tensors = Mapping[str, Any]
"""Tensors and ShardedTensors by name."""


def save_tensors(tensors: Tensors, folder: Path, *, ranks: Ranks) -> None:
    """Each rank writes its part, and waits for the disk. A collective; CutError."""
    try:
        writer = FileSystemWriter(folder, single_file_per_rank=True, sync_files=True)
        save(dict(tensors), storage_writer=writer, process_group=ranks.control)
    except (CheckpointException, OSError, RuntimeError) as failure:
        raise CutError(f"{folder.parent}: the cut could not be written (tensors): {_reason(failure)}") from None


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """By name. Call it after the digests were verified: what it reads is pickled."""
    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {key: tuple(getattr(entry, "size", ())) for key, entry in entries.items()}


def shapes_of_all(tensors: Tensors, *, ranks: Ranks) -> dict[str, tuple[int, ...]]:
    """Of the tensors of all ranks: some have state of the tables that they hold only. A collective."""
    own = {key: tuple(value.shape) for key, value in tensors.items()}
    return {key: shape for part in ranks.gather(own) for key, shape in part.items()}


def load_tensors(tensors: Tensors, folder: Path, *, moves: Sequence[Move], ranks: Ranks) -> None:
    """Fill the tensors that `moves` name. A collective; CutError.

    What changes its shape is read whole by every rank, as it stands in the cut: that once, a table has to fit twice.
    """
    reader = FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    wanted: dict[str, Any] = {}
    for move in moves:
        if move.source is not None:
            entry = cast(TensorStorageMetadata, entries[move.saved])
            wanted[move.saved] = torch.empty(entry.size, dtype=entry.properties.dtype)
        elif move.own in tensors:
            wanted[move.saved] = tensors[move.own]
    try:
        load(wanted, storage_reader=reader, process_group=ranks.control)
    except (CheckpointException, OSError, RuntimeError) as failure:
        raise CutError(f"{folder.name}: tensors cannot be read: {_reason(failure)}") from None
    for move in moves:
        if move.source is not None and move.own in tensors:
            _fill(tensors[move.own], wanted[move.saved], move, move.source)


def _fill(tensor: torch.Tensor | ShardedTensor, saved: torch.Tensor, move: Move, source: np.ndarray) -> None:
    """Along the axis, each place from its source; where there is none the tensor keeps its value."""
    if move.shards > 1:
        saved = saved.view(move.shards, -1, *saved.shape[1:]).mean(dim=0)
    with torch.no_grad():
        for part, offsets in _parts(tensor):
            begin = offsets[move.axis]
            places = source[begin : begin + part.shape[move.axis]]
            (taken,) = np.nonzero(places != NEW)
            values = saved.index_select(move.axis, torch.from_numpy(places[taken]))
            for axis, offset in enumerate(offsets):
                if axis != move.axis:
                    values = values.narrow(axis, offset, part.shape[axis])
            part.index_copy_(move.axis, torch.from_numpy(taken).to(part.device), values.to(part.device))


def _parts(tensor: torch.Tensor | ShardedTensor) -> list[tuple[torch.Tensor, Sequence[int]]]:
    """What of it lies on this rank, and where that begins."""
    if isinstance(tensor, ShardedTensor):
        return [(shard.tensor, shard.metadata.shard_offsets) for shard in tensor.local_shards()]
    return [(tensor.detach(), [0] * tensor.dim())]


def _reason(failure: BaseException) -> str:
    """The cause in one line; a CheckpointException holds one per rank."""
    if isinstance(failure, CheckpointException):
        causes = [f"rank {rank}: {error}" for rank, (error, _) in failure.failures.items()]
        return "; ".join(cause.splitlines()[0] for cause in causes)
    return str(failure).splitlines()[0]
