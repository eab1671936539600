"""Going on from a cut: what must agree, what is taken over, and what people are told of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from trainer.cut_files import CutError, CutRecord
from trainer.durable import replace_file
from trainer.evaluation import Evaluation, merge_states, of_labels
from trainer.optimizers import TABLES
from trainer.ranks import Ranks
from trainer.sharding import ShardedModel
from trainer.takeover import TakenOver

logger = logging.getLogger("trainer.resume")

METRICS, RANDOM = "metrics/", "random/torch"
REPORT = "takeover.json"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Origin:
    """What a cut must agree with to be used."""

    topic: str
    topic_id: str
    partitions: int
    schema: str


@dataclass(frozen=True)
class Conditions:
    """What losses to the bit depend on, besides the cut and the batches."""

    threads: int
    world_size: int
    column_shards: dict[str, int]


def check_origin(name: str, record: CutRecord, origin: Origin) -> None:
    """CutError unless the cut's positions mean something in this topic, and its model can be compared with ours."""
    start_anew = "set trainer.checkpoint_url to an empty folder to start anew"
    if (record.topic, record.topic_id) != (origin.topic, origin.topic_id):
        raise CutError(
            f"{name} was trained from topic '{record.topic}' ({record.topic_id}), but topics.batches is "
            f"'{origin.topic}' ({origin.topic_id}): its positions mean nothing there; {start_anew}"
        )
    if any(int(p) >= origin.partitions for p in record.partitions):
        raise CutError(f"{name} names partitions that '{origin.topic}' does not have; {start_anew}")
    if record.schema != origin.schema and record.model is None:
        raise CutError(
            f"{name} was trained with other features, labels or dedup.salt, or another order of them, and does not say "
            f"which: the batch schema was {record.schema} and is {origin.schema} now; "
            f"go back to the former config, or {start_anew}"
        )


def warn_of_other_losses(record: CutRecord, now: Conditions) -> None:
    """Where the losses will not be those of the run that the cut is of."""
    was = Conditions(record.threads, record.world_size, record.column_shards)
    changed = {
        name: [getattr(was, name), getattr(now, name)]
        for name in ("threads", "world_size", "column_shards")
        if getattr(was, name) != getattr(now, name)
    }
    if changed:
        text = "losses will not be bit for bit those of the former run"
        logger.warning(text, extra={"was_and_is": changed})


def restore_metrics(
    evaluation: Evaluation, arrays: Sequence[Arrays], *, record: CutRecord, now: Sequence[str], ranks: Ranks
) -> None:
    """Each rank's own where there were as many ranks, else all on rank 0, and the items on all; labels, `now`, by name.

    Metrics of another form (an older cut's) begin anew, loudly: they are no reason to stop.
    """
    was = record.model.labels if record.model else now
    states = [{k.removeprefix(METRICS): v for k, v in a.items() if k.startswith(METRICS)} for a in arrays]
    same = len(states) == ranks.world_size
    try:
        state = states[ranks.rank] if same else merge_states(states)
        if same or ranks.rank == 0:
            evaluation.restore(of_labels(state, was=was, now=now))
        else:
            evaluation.restore_items(state)
    except (ValueError, KeyError) as error:
        text = "the cut's metrics are not taken over, they begin anew"
        logger.warning(text, extra={"reason": repr(error)})


def restore_random(arrays: Sequence[Arrays], *, ranks: Ranks) -> None:
    """Torch's random state; another number of ranks draws other numbers."""
    if len(arrays) == ranks.world_size:
        torch.set_rng_state(torch.from_numpy(arrays[ranks.rank][RANDOM].copy()))


def tell(taken_over: TakenOver, root: Path) -> None:
    """What became of the model, in the log and beside the cuts."""
    if taken_over.is_changed:
        facts = msgspec.to_builtins(taken_over)
        logger.warning("the model was changed, and took over what it still has", extra=facts)
    try:
        replace_file(root / REPORT, msgspec.json.format(msgspec.json.encode(taken_over), indent=1))
    except OSError as error:
        logger.warning("no report beside the cuts", extra={"path": str(root / REPORT), "reason": str(error)})


def column_shards(model: ShardedModel) -> dict[str, int]:
    """By table."""
    shards: dict[str, int] = {}
    for key, tensor in model.module.state_dict().items():
        if key.startswith(TABLES):
            metadata = tensor.metadata().shards_metadata if isinstance(tensor, ShardedTensor) else []
            shards[key.split(".")[-2]] = len({shard.shard_offsets[1] for shard in metadata}) or 1
    return shards
