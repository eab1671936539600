"""From the embeddings of a list to one vector: pooling with parameters, on rows that need not be samples (RecD, O7).

Nothing here pads what is not padded by nature: projections, norms and feed-forward layers run on the N embeddings that
exist; only the products inside self-attention need a rectangle.

Letters in shapes: R lists, N embeddings in all of them, T the longest list, D dim, H heads.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from stream.config import ConfigError, SequenceConfig
from trainer.lookup import Sequences, segment_sum, segments


class AttentionPooling(nn.Module):
    """A weighted mean whose weights a learned query gives, whatever is scored beside it (target-independent).

    The additive attention of Yang et al., "Hierarchical Attention Networks" (NAACL 2016), section 2.2.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim)
        self.query = nn.Linear(dim, 1, bias=False)

    def forward(self, lists: Sequences) -> torch.Tensor:
        """[R, D]; an empty list gives zeros."""
        values, num_rows = lists.values, len(lists.lengths)
        place = segments(lists.lengths, num_values=len(values))
        scores = self.query(torch.tanh(self.hidden(values)))[:, 0]
        highest = scores.new_zeros(num_rows).scatter_reduce(0, place, scores.detach(), "amax", include_self=False)
        raised = torch.exp(scores - highest[place])
        total = scores.new_zeros(num_rows).index_add(0, place, raised)
        weights = raised / total[place]
        return segment_sum(Sequences(values * weights[:, None], lists.lengths))


class TransformerPooling(nn.Module):
    """Self-attention blocks over each list, then the mean of its positions.

    Blocks are pre-norm (Xiong et al., arXiv 2002.04745), without dropout: a stream is seen once. Positions count from
    the end of the list, where the newest item stands; those beyond `max_length` share the last one.
    """

    def __init__(self, dim: int, *, max_length: int, config: SequenceConfig, feature: str) -> None:
        super().__init__()
        if dim % config.heads:
            raise ConfigError(
                f"{config.heads} heads do not divide {dim} columns of '{feature}' - at $.trainer.model.sequence"
            )
        self.positions = nn.Parameter(torch.randn(max_length, dim) * dim**-0.5)
        self.blocks = nn.ModuleList(_Block(dim, config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, lists: Sequences) -> torch.Tensor:
        """[R, D]; an empty list gives zeros."""
        place = segments(lists.lengths, num_values=len(lists.values))
        offsets = torch.nn.functional.pad(lists.lengths.to(torch.int64).cumsum(0), (1, 0))
        from_end = offsets[place + 1] - 1 - torch.arange(len(place), device=place.device)
        x = lists.values + self.positions[from_end.clamp(max=len(self.positions) - 1)]
        # Never left out, not even where every list is empty: other ranks wait for the gradient of each parameter.
        longest = max(int(lists.lengths.max()), 1)
        mask = torch.arange(longest, device=place.device) < lists.lengths.clamp(min=1)[:, None]
        for block in self.blocks:
            x = block(x, offsets=offsets, mask=mask)
        return segment_sum(Sequences(self.norm(x), lists.lengths), mean=True)


class _Block(nn.Module):
    def __init__(self, dim: int, config: SequenceConfig) -> None:
        super().__init__()
        self._heads = config.heads
        self.attention_norm, self.hidden_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.mix = nn.Linear(dim, dim)
        self.hidden, self.out = nn.Linear(dim, config.feed_forward * dim), nn.Linear(config.feed_forward * dim, dim)

    def forward(self, x: torch.Tensor, *, offsets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x [N, D], offsets int64[R + 1], mask bool[R, T] of positions that exist."""
        x = x + self.mix(self._attend(self.queries_keys_values(self.attention_norm(x)), offsets=offsets, mask=mask))
        change: torch.Tensor = self.out(torch.relu(self.hidden(self.hidden_norm(x))))
        return x + change

    def _attend(self, packed: torch.Tensor, *, offsets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        num_rows, longest = mask.shape
        padded = to_padded(packed, offsets=offsets, longest=longest)
        q, k, v = padded.view(num_rows, longest, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        attended_RHTD = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return to_jagged(attended_RHTD.transpose(1, 2).flatten(2), offsets=offsets, num_values=len(packed))


def select_jagged(lists: Sequences, rows: torch.Tensor) -> Sequences:
    """The lists at int64 `rows`, without padding (RecD, O6)."""
    values, lengths = torch.ops.fbgemm.jagged_index_select(lists.values, lists.lengths.to(torch.int64), rows)
    return Sequences(values, lengths)


def select_padded(lists: Sequences, rows: torch.Tensor) -> Sequences:
    """The same by way of a rectangle: what O6 is measured against."""
    lengths = lists.lengths.to(torch.int64)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    padded = to_padded(lists.values, offsets=offsets, longest=max(int(lengths.max()), 1)).index_select(0, rows)
    chosen = lengths[rows]
    ends = torch.nn.functional.pad(chosen.cumsum(0), (1, 0))
    return Sequences(to_jagged(padded, offsets=ends, num_values=int(ends[-1])), chosen)


def to_padded(values: torch.Tensor, *, offsets: torch.Tensor, longest: int) -> torch.Tensor:
    """[N, D] to [R, T, D] with zeros."""
    padded: torch.Tensor = torch.ops.fbgemm.jagged_to_padded_dense(values, [offsets], [longest], 0.0)
    return padded


def to_jagged(padded: torch.Tensor, *, offsets: torch.Tensor, num_values: int) -> torch.Tensor:
    """[R, T, D] to [N, D]."""
    values: torch.Tensor = torch.ops.fbgemm.dense_to_jagged(padded, [offsets], num_values)[0]
    return values
