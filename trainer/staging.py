"""Copies of all state on the host, taken between two steps: what a cut is written from while training goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata
from torch.distributed._shard.sharded_tensor.shard import Shard

from trainer.ranks import Ranks

Tensors = Mapping[str, torch.Tensor | ShardedTensor]
"""Tensors and ShardedTensors by name."""


class Staging:
    """Buffers of the size of the state, made once and reused: pinned where the state is on a GPU."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._copies: dict[str, torch.Tensor | ShardedTensor] = {}

    def copy(self, tensors: Tensors) -> Tensors:
        """This rank's state as it is now, until the next call. Not a collective."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                copy = self._copies.get(name)
                if copy is None or copy.shape != tensor.shape:
                    copy = self._copies[name] = self._buffer(tensor)
                for target, source in zip(_parts(copy), _parts(tensor), strict=True):
                    target.copy_(source, non_blocking=True)
        for name in self._copies.keys() - tensors.keys():
            del self._copies[name]
        if self._ranks.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return dict(self._copies)

    def _buffer(self, tensor: torch.Tensor | ShardedTensor) -> torch.Tensor | ShardedTensor:
        if not isinstance(tensor, ShardedTensor):
            return _host(tensor)
        given = tensor.metadata()
        on_host = [_on_host(shard) for shard in given.shards_metadata]
        places = {tuple(shard.shard_offsets): shard for shard in on_host}
        shards = [
            Shard(_host(shard.tensor), places[tuple(shard.metadata.shard_offsets)]) for shard in tensor.local_shards()
        ]
        return ShardedTensor._init_from_local_shards_and_global_metadata(  # noqa: SLF001 - the public one communicates
            shards,
            ShardedTensorMetadata(on_host, given.size, given.tensor_properties),
            process_group=self._ranks.control,
        )


def _host(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")


def _on_host(shard: ShardMetadata) -> ShardMetadata:
    rank = shard.placement.rank() if shard.placement is not None else 0
    return ShardMetadata(list(shard.shard_offsets), list(shard.shard_sizes), placement=f"rank:{rank}/cpu")


def _parts(tensor: torch.Tensor | ShardedTensor) -> Iterator[torch.Tensor]:
    """What of it lies on this rank."""
    if isinstance(tensor, ShardedTensor):
        yield from (shard.tensor for shard in tensor.local_shards())
    else:
        yield tensor.detach()
