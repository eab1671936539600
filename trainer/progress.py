"""What has been trained: steps, and per partition of `batches` the position, the count and the sum of sample ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trainer.cut_files import Progress
from trainer.feed import FedBatch

MODULUS = 1 << 64


@dataclass
class TrainingState:
    """One rank's part; steps are counted alike on all ranks."""

    step: int = 0
    partitions: dict[int, Progress] = field(default_factory=dict)
    next_partition: int = 0
    stream_time_ms: int = 0
    """Greatest event time that was trained."""

    def record(self, fed: FedBatch, *, learned: bool = True) -> None:
        """The batch was trained, or (not `learned`) passed over for good."""
        samples = fed.num_samples + fed.skipped
        before = self.partitions.get(fed.partition, Progress(position=0, samples=0, id_sum="0"))
        self.partitions[fed.partition] = Progress(
            position=fed.offset + 1,
            samples=before.samples + samples,
            skipped=before.skipped + (0 if learned else samples),
            id_sum=str((int(before.id_sum) + fed.id_sum) % MODULUS),
        )
        self.next_partition = fed.next_partition
        if fed.num_samples:
            self.stream_time_ms = max(self.stream_time_ms, int(fed.event_times_ms.max()))

    def positions(self, begins: Mapping[int, int], *, own: Iterable[int]) -> dict[int, int]:
        """The next offset of each of the rank's `own` partitions; the log's beginning where nothing was trained."""
        return {p: self.partitions[p].position if p in self.partitions else begins[p] for p in own}

    @property
    def samples(self) -> int:
        """Trained from this rank's partitions."""
        return sum(progress.samples for progress in self.partitions.values())


def merge_partitions(parts: Iterable[Mapping[int, Progress]]) -> dict[int, Progress]:
    """All ranks' partitions; of one that changed hands, the part that is ahead."""
    merged: dict[int, Progress] = {}
    for part in parts:
        for partition, progress in part.items():
            if partition not in merged or merged[partition].position < progress.position:
                merged[partition] = progress
    return merged
