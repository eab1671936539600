"""List pooling and interactions against slow obvious ones."""

import pytest
import torch
from torch import nn

from stream.config import InteractionConfig, SequenceConfig
from trainer.interaction import CrossInteraction, DotInteraction
from trainer.lookup import Sequences, segment_sum
from trainer.sequences import AttentionPooling, TransformerPooling, select_jagged, select_padded

DIM = 8


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(3)


def make_lists(*lengths: int) -> Sequences:
    return Sequences(torch.randn(sum(lengths), DIM), torch.tensor(lengths, dtype=torch.int32))


def each(lists: Sequences) -> list[torch.Tensor]:
    return list(lists.values.split(lists.lengths.tolist()))


@pytest.mark.parametrize("mean", [False, True])
def test_sums_and_means_of_lists(mean: bool):
    lists = make_lists(3, 0, 1, 5, 0)
    expected = [part.mean(0) if mean and len(part) else part.sum(0) for part in each(lists)]
    torch.testing.assert_close(segment_sum(lists, mean=mean), torch.stack(expected))


def test_attention_is_a_softmax_within_each_list():
    pooling, lists = AttentionPooling(DIM), make_lists(3, 0, 1, 5)
    expected = []
    for part in each(lists):
        weights = torch.softmax(pooling.query(torch.tanh(pooling.hidden(part)))[:, 0], dim=0)
        expected.append((weights[:, None] * part).sum(0))
    torch.testing.assert_close(pooling(lists), torch.stack(expected))


def test_attention_survives_scores_beyond_the_range_of_exp():
    pooling, lists = AttentionPooling(DIM), make_lists(4)
    with torch.no_grad():
        pooling.query.weight.mul_(1e4)
    assert torch.isfinite(pooling(lists)).all()


def make_transformer(*, max_length: int = 10, layers: int = 2) -> TransformerPooling:
    config = SequenceConfig(layers=layers, heads=2, feed_forward=3)
    return TransformerPooling(DIM, max_length=max_length, config=config, feature="history")


def test_a_list_knows_nothing_of_its_neighbours():
    pooling, lists = make_transformer(), make_lists(3, 0, 1, 7)
    alone = [pooling(Sequences(part, torch.tensor([len(part)]))) for part in each(lists)]
    torch.testing.assert_close(pooling(lists), torch.cat(alone))
    assert (pooling(lists)[1] == 0).all()


def test_the_block_is_the_one_that_torch_has():
    pooling, lists = make_transformer(layers=1), make_lists(6)
    block = pooling.blocks[0]
    theirs = nn.TransformerEncoderLayer(DIM, 2, 3 * DIM, dropout=0.0, batch_first=True, norm_first=True)
    pairs = {
        "self_attn.in_proj_weight": block.queries_keys_values.weight,
        "self_attn.in_proj_bias": block.queries_keys_values.bias,
        "self_attn.out_proj.weight": block.mix.weight,
        "self_attn.out_proj.bias": block.mix.bias,
        "linear1.weight": block.hidden.weight,
        "linear1.bias": block.hidden.bias,
        "linear2.weight": block.out.weight,
        "linear2.bias": block.out.bias,
        "norm1.weight": block.attention_norm.weight,
        "norm1.bias": block.attention_norm.bias,
        "norm2.weight": block.hidden_norm.weight,
        "norm2.bias": block.hidden_norm.bias,
    }
    theirs.load_state_dict({name: value.detach() for name, value in pairs.items()})
    x = lists.values + pooling.positions[:6].flip(0)
    torch.testing.assert_close(pooling(lists), pooling.norm(theirs(x[None])[0]).mean(0)[None])


def test_positions_count_from_the_end():
    pooling, lists = make_transformer(max_length=2), make_lists(4)
    with torch.no_grad():
        changed = make_transformer(max_length=2)
        changed.load_state_dict(pooling.state_dict())
        changed.positions[1] += torch.randn(DIM)
    newest = Sequences(lists.values[-1:], torch.tensor([1]))
    torch.testing.assert_close(pooling(newest), changed(newest))
    assert (pooling(lists) - changed(lists)).abs().max() > 1e-3


def test_no_list_has_anything():
    empty = make_lists(0, 0)
    for pooling in (AttentionPooling(DIM), make_transformer()):
        pooled = pooling(empty)
        pooled.sum().backward()
        assert pooled.tolist() == [[0.0] * DIM] * 2
        assert all(parameter.grad is not None for parameter in pooling.parameters()), "other ranks would wait for it"


@pytest.mark.parametrize("select", [select_jagged, select_padded])
def test_selected_lists(select):
    lists = make_lists(3, 0, 1, 5)
    lists.values.requires_grad_()
    rows = torch.tensor([3, 1, 0, 3])
    chosen = select(lists, rows)
    torch.testing.assert_close(chosen.values, torch.cat([each(lists)[i] for i in rows]))
    assert chosen.lengths.tolist() == [5, 0, 3, 5]
    chosen.values.sum().backward()
    assert lists.values.grad is not None
    assert lists.values.grad[:, 0].tolist() == [1] * 3 + [0] + [2] * 5


def make_groups() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    rows = {"a": torch.randn(3, 2 * DIM), "b": torch.randn(4, 3 * DIM), "c": torch.randn(1, DIM)}
    inverse = {name: torch.randint(0, len(each), (9,)) for name, each in rows.items()}
    return rows, inverse


def test_dot_is_one_linear_over_vectors_and_pairs_of_every_sample():
    rows, inverse = make_groups()
    counts = {"a": 2, "b": 3, "c": 1}
    layer = DotInteraction(counts, dim=DIM, num_outputs=5)
    assert layer.between is not None
    group_of = [name for name, count in counts.items() for _ in range(count)]
    for sample, given in enumerate(layer(rows, inverse)):
        vectors = [v for name in counts for v in rows[name][inverse[name][sample]].view(-1, DIM)]
        expected = layer.bias.clone()
        for name in counts:
            own = [v for v, group in zip(vectors, group_of, strict=True) if group == name]
            pairs = [(own[i] * own[j]).sum() for i in range(len(own)) for j in range(i + 1, len(own))]
            expected += layer.own[name].weight @ torch.cat([*own, torch.tensor(pairs)])
        numbered = list(zip(vectors, group_of, strict=True))
        across = [(v * w).sum() for i, (v, g) in enumerate(numbered) for w, h in numbered[i + 1 :] if g != h]
        expected += layer.between.weight @ torch.tensor(across)
        torch.testing.assert_close(given, expected)


def test_cross_layers_see_every_sample():
    rows, inverse = make_groups()
    columns = {name: each.shape[1] for name, each in rows.items()}
    layer = CrossInteraction(columns, config=InteractionConfig(kind="cross", layers=2, rank=3), num_outputs=5)
    x0 = torch.cat([rows[name][inverse[name]] for name in columns], dim=1)
    x = x0
    for i in range(2):
        x = x0 * (x @ layer.cross.V_kernels[i].T @ layer.cross.W_kernels[i].T + layer.cross.bias[i]) + x
    torch.testing.assert_close(layer(rows, inverse), layer.out(x))
