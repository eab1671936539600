"""What a device is given and cannot do: precision, memory, optimizers."""

import pytest
import torch

from stream.config import DeviceConfig, OptimizerConfig
from tests.trainer.made_batches import VARIANTS, World, make_config
from tests.trainer.reference import new_model, tensors, weighted_loss
from tests.trainer.test_keeper import pytestmark, ranks
from trainer.planning import ShardingError, halve_tables
from trainer.ranks import Ranks
from trainer.sharding import ShardedModel, tables_of

__all__ = ["pytestmark", "ranks"]

CONFIG = make_config(model=VARIANTS["transformer"])


def sharded(ranks: Ranks, *, sparse: str = "rowwise_adagrad", **device: object) -> ShardedModel:
    model = new_model(CONFIG, device="meta")
    optimizer = OptimizerConfig(sparse=sparse)
    made = ShardedModel(
        model, config=CONFIG.trainer.model, optimizer=optimizer, ranks=ranks, device=DeviceConfig(**device)
    )
    made.fill_tables(seed=0)
    return made


@pytest.mark.parametrize(
    ("sparse", "device", "error"),
    [
        ("adam", {}, r"adam for tables needs a GPU.* at \$\.trainer\.optimizer\.sparse"),
        ("sgd", {"tables": "fp16"}, r"tables in fp16 need a GPU.* at \$\.trainer\.device\.tables"),
        ("sgd", {"memory_bytes": 1_000}, r"no sharding plan for 1 ranks on cpu"),
    ],
)
def test_what_a_cpu_cannot_do_is_named(ranks: Ranks, sparse: str, device: dict[str, object], error: str):
    with pytest.raises(ShardingError, match=error):
        sharded(ranks, sparse=sparse, **device)


def test_dense_layers_in_bf16_learn_nearly_the_same(ranks: Ranks):
    single, mixed = sharded(ranks), sharded(ranks, dense="bf16", memory_bytes=1 << 30)
    losses: dict[str, list[float]] = {"single": [], "mixed": []}
    for made in World(CONFIG).batches(30):
        batch = tensors(made, config=CONFIG)
        for name, model in (("single", single), ("mixed", mixed)):
            logits = model(batch)
            assert logits.dtype == torch.float32
            loss = weighted_loss(logits, batch) / batch.num_samples
            model.update(loss)
            losses[name].append(float(loss.detach()))
    assert losses["single"] != losses["mixed"]
    assert losses["mixed"] == pytest.approx(losses["single"], rel=0.02)
    assert {tensor.dtype for tensor in mixed.tensors().values() if torch.is_tensor(tensor)} == {torch.float32}


def test_tables_in_fp16_are_made_so():
    model = new_model(CONFIG, device="meta")
    halve_tables(model.embeddings)
    assert {tensor.dtype for tensor in tables_of(model.state_dict()).values()} == {torch.float16}
    kinds = {type(module) for module in model.embeddings.modules()}
    configs = [
        table
        for module in model.embeddings.modules()
        for name in ("embedding_bag_configs", "embedding_configs")
        for table in (getattr(module, name)() if hasattr(module, name) else ())
    ]
    assert len(configs) == len(model.tables), kinds
    assert {table.data_type.value for table in configs} == {"FP16"}
