"""What all ranks know of a step before they take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from trainer.ikjt import TrainBatch


class Agreed(NamedTuple):
    """What all ranks know before a step: sums over the ranks, or what rank 0 decided."""

    samples: int
    ranks_with_data: int
    stop: int
    failed: int
    checkpoint: int
    publish: int
    report: int
    reload: int
    rates: int
    paused: int
    release: int = 0
    held: int = 0
    """Ranks that have a reason not to publish."""
    alarms: int = 0
    """Raised, and not told yet."""


@dataclass(frozen=True)
class StepRules:
    """What a step is made of besides its batch."""

    dummy: TrainBatch
    """What a rank without data brings."""
    full_batch: int
    """Samples that the loss is divided by: every sample weighs the same, however the batches were cut."""
    label_weights: torch.Tensor
    """[L]: what each label counts in the loss."""
