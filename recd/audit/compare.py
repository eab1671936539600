"""What must be, partition by partition, against what stands in the topics and in the cut."""

from __future__ import annotations

import math
from collections import Counter

from recd.audit.partition import PartitionView
from recd.audit.report import Offences
from recd.audit.sessions import Due
from recd.audit.topics import Cut, Problem, Rejects, Sample, Samples
from stream.config import TopicsConfig


class Comparison:
    """Compares partition after partition; takes out of `samples` and the rejects what it has found a reason for."""

    def __init__(self, topics: TopicsConfig, *, samples: Samples, late: Rejects, quarantine: Rejects) -> None:
        self._topics = topics
        self._samples, self._late, self._quarantine = samples, late, quarantine
        self.offences = Offences()
        self.counts: Counter[str] = Counter()
        """Verdicts of records and fates of samples."""
        self.late: Counter[str] = Counter()
        self.quarantined: Counter[str] = Counter()

    def take(self, partition: int, view: PartitionView) -> None:
        """Judge every record of one partition of `interactions`."""
        self._judge_samples(partition, view)
        for offset, late in view.expected.late.items():
            is_firm = late.decided_at < view.firm_offset if late.close_ms is None else late.close_ms <= view.firm_ms
            self._judge_reject(partition, offset, frozenset({late.reason}), rejects=self._late, is_firm=is_firm)
            self.late[late.reason] += 1
        for offset, reasons in view.quarantined.items():
            is_firm = offset < view.firm_offset
            given = self._judge_reject(partition, offset, reasons, rejects=self._quarantine, is_firm=is_firm)
            self.quarantined[given] += 1
        for name in ("records", "impressions", "engagements", "unread", "expired"):
            self.counts[name] += getattr(view, name)
        for name in ("joined", "duplicates", "open_impressions", "open_engagements"):
            self.counts[name] += getattr(view.expected, name)
        self.counts["sampled_out"] += len(view.expected.sampled_out)

    def finish(self, views: dict[int, PartitionView]) -> None:
        """What is left over belongs nowhere, unless it is older than what can be judged."""
        for partition, rows in self._samples.by_source.items():
            offset, sample = rows[0]
            detail = f"in {self._place(sample)}, but there is no such partition"
            self._offend("unfounded", partition, offset, detail, count=len(rows))
        for rejects in (self._late, self._quarantine):
            for (partition, offset), found in rejects.by_place.items():
                if partition not in views or views[partition].can_judge(offset):
                    for _, problem in found:
                        self.offences.add(problem)

    def _judge_samples(self, partition: int, view: PartitionView) -> None:
        """Every due impression must be a sample once, rightly labelled, in its place."""
        order = self._samples.by_source.pop(partition, [])
        found: dict[int, list[Sample]] = {}
        for offset, sample in order:
            found.setdefault(offset, []).append(sample)
        expected = sorted(view.expected.due)
        gone = self._gone(partition, expected, found)
        self._judge_order(partition, expected, [offset for offset, _ in order])
        for number, due in enumerate(expected):
            rows = found.pop(due.offset, [])
            if rows:
                self._judge_rows(partition, due, rows)
            elif number < gone:
                self.counts["expired"] += 1
            elif self._is_too_large(partition, due):
                self.quarantined["too_large"] += 1
            elif due.close_ms > view.firm_ms:
                self.counts["unsettled"] += 1
            else:
                self.counts["never"] += 1
                self._offend("never_in_batches", partition, due.offset, "its session has closed")
        for offset, rows in found.items():
            if view.can_judge(offset):
                detail = f"in {self._place(rows[0])}, but {_instead(view, offset)}"
                self._offend("unfounded", partition, offset, detail, count=len(rows))

    def _gone(self, partition: int, expected: list[Due], found: dict[int, list[Sample]]) -> int:
        """How many of the first samples may be missing, because the beginning of their batches was deleted."""
        if not self._samples.begin.get(partition % max(1, len(self._samples.begin)), 0):
            return 0
        return next((i for i, due in enumerate(expected) if due.offset in found), len(expected))

    def _judge_rows(self, partition: int, due: Due, rows: list[Sample]) -> None:
        if len(rows) == 1:
            self.counts["once"] += 1
        else:
            self.counts["twice"] += 1
            places = ", ".join(map(self._place, rows[:3]))
            self._offend("twice_in_batches", partition, due.offset, f"in {places}", count=len(rows) - 1)
        for row in rows:
            if row.labels != due.labels:
                detail = f"labels {list(row.labels)} in {self._place(row)}, its session says {list(due.labels)}"
                self._offend("wrong_label", partition, due.offset, detail)
            if not math.isclose(row.weight, due.weight, rel_tol=1e-6):
                detail = f"weight {row.weight} in {self._place(row)}, expected {due.weight}"
                self._offend("wrong_weight", partition, due.offset, detail)
            if row.time_ms != due.time_ms:
                detail = f"time {row.time_ms} in {self._place(row)}, the event says {due.time_ms}"
                self._offend("wrong_time", partition, due.offset, detail)

    def _judge_order(self, partition: int, expected: list[Due], order: list[int]) -> None:
        """Sessions as they close, inside one by time: each sample behind those before it."""
        rank = {due.offset: i for i, due in enumerate(expected)}
        last = -1
        for offset in dict.fromkeys(order):
            number = rank.get(offset, last)
            if number < last:
                detail = f"stands behind the sample of offset {expected[last].offset}, which comes after it"
                self._offend("wrong_order", partition, offset, detail)
            last = max(last, number)

    def _is_too_large(self, partition: int, due: Due) -> bool:
        """A sample that fits no batch goes to quarantine when it is built; its size is not known here."""
        rejects = self._quarantine.by_place.get((partition, due.offset), [])
        if [reason for reason, _ in rejects] != ["too_large"]:
            return False
        del self._quarantine.by_place[partition, due.offset]
        return True

    def _judge_reject(
        self, partition: int, offset: int, reasons: frozenset[str], *, rejects: Rejects, is_firm: bool
    ) -> str:
        """Whether a record is where it must be, once and for a right reason; returns the reason."""
        wanted = ", ".join(sorted(reasons))
        found = rejects.by_place.pop((partition, offset), [])
        if not found:
            if is_firm and not rejects.is_cut:
                self._offend(rejects.missing, partition, offset, wanted)
            return min(reasons)
        if len(found) > 1:
            places = ", ".join(f"{p.topic}[{p.partition}]@{p.offset}" for _, p in found[:3])
            self._offend("twice_rejected", partition, offset, f"in {places}", count=len(found) - 1)
        given, problem = found[0]
        if given not in reasons:
            self._offend("wrong_reason", partition, offset, f"'{given}' in {problem.topic}, expected {wanted}")
            return min(reasons)
        return given

    def _offend(self, kind: str, partition: int, offset: int, detail: str, *, count: int = 1) -> None:
        self.offences.add(Problem(kind, self._topics.interactions, partition, offset, detail), count=count)

    def _place(self, sample: Sample) -> str:
        return f"{self._topics.batches}[{sample.batches_partition}]@{sample.batch_offset}"


def compare_training(cut: Cut, samples: Samples, *, topic: str, offences: Offences) -> Counter[str]:
    """Count and sum of the ids trained from each partition, against the batches before the cut's positions."""
    counts: Counter[str] = Counter()
    for partition in sorted({*samples.totals, *cut.partitions}):
        batches = samples.totals.get(partition, [])
        trained = cut.partitions.get(partition)
        position = trained.position if trained else 0
        before = [(number, ids) for offset, number, ids in batches if offset < position]
        counts["waiting"] += sum(number for offset, number, _ in batches if offset >= position)
        if trained is None:
            continue
        number, id_sum = sum(n for n, _ in before), sum(ids for _, ids in before) % 2**64
        missing, surplus = max(0, number - trained.samples), max(0, trained.samples - number)
        counts["trained_once"] += min(number, trained.samples)
        if samples.begin.get(partition, 0):
            counts["unverifiable"] += surplus
            continue
        counts["trained_never"] += missing
        counts["trained_twice"] += surplus
        place = (topic, partition, position)
        detail = f"up to here the cut has {trained.samples} samples, the batches {number}"
        for kind, wrong in (("trained_never", missing), ("trained_twice", surplus)):
            if wrong:
                offences.add(Problem(kind, *place, detail), count=wrong)
        if number == trained.samples and id_sum != trained.id_sum:
            detail = f"up to here the cut's sum of sample ids is {trained.id_sum}, that of the batches {id_sum}"
            offences.add(Problem("wrong_sum", *place, detail))
    return counts


def _instead(view: PartitionView, offset: int) -> str:
    if late := view.expected.late.get(offset):
        return f"the event is late ({late.reason})"
    if offset in view.expected.sampled_out:
        return "it is a negative that is left out"
    if reasons := view.quarantined.get(offset):
        return f"the record is not an event ({', '.join(sorted(reasons))})"
    return "it is no impression that is due"
