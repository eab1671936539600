"""The slow obvious trainer: an unsharded model, torch's optimizers, every rank's batch one after the other."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from stream.config import Config
from trainer.ikjt import TrainBatch, group_specs, to_train_batch
from trainer.model import GroupedDLRM
from trainer.optimizers import ADAGRAD_EPS
from trainer.sharding import fill_unsharded


def new_model(config: Config, *, device: str = "cpu") -> GroupedDLRM:
    torch.manual_seed(config.trainer.seed)
    return GroupedDLRM(
        config.features,
        labels=config.labels,
        config=config.trainer.model,
        derived=config.derived,
        distinct=config.trainer.distinct,
        device=torch.device(device),
    )


def tensors(batch, *, config: Config, dedup: bool = True) -> TrainBatch:
    expand_ids = config.trainer.distinct.lookups == "off"
    specs = group_specs(config.features, config.trainer.model, derived=config.derived)
    return to_train_batch(batch, specs=specs, dedup=dedup, expand_ids=expand_ids)


class Reference:
    """Trains on lists of batches, one per rank; a step's loss is the sum over all of them by their samples."""

    def __init__(self, config: Config) -> None:
        # The dense layers are drawn as in the trainer, whose tables draw nothing.
        self.model = new_model(config)
        drawn = new_model(config, device="meta").state_dict()
        dense_state = {key: value for key, value in drawn.items() if not value.is_meta}
        self.model.load_state_dict(dense_state, strict=False)
        fill_unsharded(self.model, seed=config.trainer.seed)
        tables = [p for name, p in self.model.named_parameters() if name.startswith("embeddings.")]
        dense = [p for name, p in self.model.named_parameters() if not name.startswith("embeddings.")]
        rates = config.trainer.optimizer
        sparse = (
            RowWiseAdagrad(tables, lr=rates.sparse_learning_rate, eps=ADAGRAD_EPS)
            if rates.sparse == "rowwise_adagrad"
            else torch.optim.SGD(tables, lr=rates.sparse_learning_rate)
        )
        self._optimizers = [sparse, torch.optim.Adam(dense, lr=rates.dense_learning_rate)]

    def step(self, batches: Sequence[TrainBatch], *, full_batch: int | None = None) -> float:
        total = full_batch or sum(batch.num_samples for batch in batches)
        loss = sum(weighted_loss(self.model(batch), batch) for batch in batches) / total
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self._optimizers:
            optimizer.step()
        return float(loss.detach())

    def weights(self) -> dict[str, np.ndarray]:
        return {key: value.detach().numpy().copy() for key, value in self.model.state_dict().items()}


def weighted_loss(logits: torch.Tensor, batch: TrainBatch) -> torch.Tensor:
    """Summed over samples and labels."""
    return (binary_cross_entropy_with_logits(logits, batch.labels, reduction="none") * batch.weights[:, None]).sum()
