"""What the audit found: numbers, a verdict, and the first offenders of each kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from recd.audit.topics import Problem

LOST = ("never_in_batches", "missing_late", "missing_quarantine", "trained_never")
"""Kinds of offence by which something is lost."""
DOUBLED = ("twice_in_batches", "twice_rejected", "trained_twice")
"""Kinds by which something is there more than once."""
MEANING = {
    "never_in_batches": "impressions that are due but in no batch",
    "missing_late": "late records that are not in the topic for them",
    "missing_quarantine": "records that fit no schema and are not in quarantine",
    "trained_never": "samples fewer in the cut than in the batches before its positions",
    "twice_in_batches": "samples that stand in the batches more than once",
    "twice_rejected": "records that stand in late or quarantine more than once",
    "trained_twice": "samples more in the cut than in the batches before its positions",
    "wrong_label": "samples whose labels are not what their session says",
    "wrong_weight": "samples whose weight does not make up for the negatives that were left out",
    "wrong_time": "samples with another event time than their impression",
    "wrong_order": "samples that stand before an earlier one of their partition",
    "wrong_partition": "batches in the wrong partition",
    "wrong_reason": "late or quarantined records under another reason",
    "wrong_sum": "partitions whose sum of trained sample ids is not that of the batches",
    "unfounded": "samples for which there is no due impression",
    "unfounded_reject": "records in late or quarantine that do not belong there",
    "unreadable_batch": "batches that cannot be read",
    "unreadable_journal": "journal records that cannot be read",
    "unreadable_cut": "a cut that cannot be read",
    "unaccounted": "records without a verdict: a fault of the audit itself",
}
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Offender:
    """The record that shows an offence."""

    place: str
    event_id: str | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """Every record of `interactions` under one verdict, every sample under one fate. All are numbers of records.

    events = in_batches_once + in_batches_twice + in_batches_never + sampled_out + joined + open_impressions
    + open_engagements + late + quarantined + duplicates + unread + unsettled + expired.
    """

    events: int
    """Records of `interactions`, whatever they hold."""
    impressions: int
    """Of those that were read and fit the schema."""
    engagements: int
    due: int
    """Impressions that must be samples by now."""
    samples: int
    """Rows of all batches."""
    in_batches_once: int
    in_batches_twice: int
    in_batches_never: int
    sampled_out: int
    """Impressions without a true label that `session.keep_negatives` leaves out."""
    joined: int
    """Engagements that found their impression."""
    open_impressions: int
    open_engagements: int
    late: dict[str, int]
    """By reason."""
    quarantined: dict[str, int]
    duplicates: int
    """Repeats of an event id within a session."""
    unread: int
    """Records that no transaction has covered yet."""
    unsettled: int
    """Impressions that came due while the audit was reading."""
    expired: int
    """Records whose session began before what is left of the log: nothing can be said about them."""
    cut: str | None
    """Name of the trainer's cut; None where there is none."""
    trained_once: int
    trained_twice: int
    trained_never: int
    waiting: int
    """Samples in batches behind the cut's positions."""
    unverifiable: int
    """Trained samples that the batches no longer hold, for their beginning was deleted."""
    offences: dict[str, int] = field(default_factory=dict)
    """By kind."""
    offenders: dict[str, list[Offender]] = field(default_factory=dict)
    """The first few of each kind."""

    @property
    def late_total(self) -> int:
        """Late for any reason."""
        return sum(self.late.values())

    @property
    def quarantined_total(self) -> int:
        """Quarantined for any reason."""
        return sum(self.quarantined.values())

    @property
    def lost(self) -> int:
        """Records and samples that are due somewhere and nowhere to be found."""
        return sum(self.offences.get(kind, 0) for kind in LOST)

    @property
    def duplicated(self) -> int:
        """Records and samples that are somewhere more than once."""
        return sum(self.offences.get(kind, 0) for kind in DOUBLED)

    @property
    def ok(self) -> bool:
        """Whether there is nothing to complain about, of any kind."""
        return not self.offences

    def to_dict(self) -> dict[str, Any]:
        """As JSON writes it."""
        verdict = {"ok": self.ok, "lost": self.lost, "duplicated": self.duplicated}
        totals = {"late_total": self.late_total, "quarantined_total": self.quarantined_total}
        return verdict | asdict(self) | totals


class Offences:
    """Counts offences by kind and keeps the first of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[Problem]] = {}

    def add(self, problem: Problem, *, count: int = 1) -> None:
        """Note one problem that stands for `count` records."""
        self.counts[problem.kind] += count
        kept = self.first.setdefault(problem.kind, [])
        if len(kept) < SHOWN:
            kept.append(problem)


def format_report(report: AuditReport) -> str:
    """For people: what became of every record, of every sample, and what is wrong."""
    r = report
    kinds = f"{r.impressions:,} impressions, {r.engagements:,} engagements, {r.quarantined_total:,} quarantined"
    fates = f"{r.in_batches_once:,} in batches once, {r.in_batches_twice:,} twice, {r.in_batches_never:,} never"
    left_out = f"{r.sampled_out:,} negatives left out; " if r.sampled_out else ""
    lines = [
        "audit",
        f"  events         {r.events:,}: {kinds}, {r.unread:,} not read yet",
        f"  impressions    {r.due:,} due: {fates}; {left_out}{r.open_impressions:,} still open",
        f"  engagements    {r.joined:,} joined, {r.open_engagements:,} still open",
        f"  late           {r.late_total:,}{_by_reason(r.late)}",
        f"  quarantined    {r.quarantined_total:,}{_by_reason(r.quarantined)}",
        f"  duplicates     {r.duplicates:,} repeats of an event id, counted once",
        f"  trained        {_trained(r)}",
    ]
    if r.unsettled or r.expired or r.unverifiable:
        lines.append(
            f"  not judged     {r.unsettled:,} came due meanwhile, {r.expired:,} events and {r.unverifiable:,} trained "
            "samples older than what the topics still hold"
        )
    for kind, count in sorted(r.offences.items()):
        lines.append(f"  {kind}: {count:,} {MEANING[kind]}")
        for offender in r.offenders.get(kind, []):
            event = f" event {offender.event_id}" if offender.event_id is not None else ""
            lines.append(f"    {offender.place}{event}: {offender.detail}")
    verdict = "clean" if r.ok else "NOT CLEAN"
    lines.append(f"  verdict        {verdict}: {r.lost:,} lost, {r.duplicated:,} duplicated")
    return "\n".join(lines)


def _by_reason(counts: dict[str, int]) -> str:
    return f" ({', '.join(f'{reason} {count:,}' for reason, count in counts.items())})" if counts else ""


def _trained(r: AuditReport) -> str:
    if r.cut is None:
        return f"no cut: {r.waiting:,} samples wait"
    fates = f"{r.trained_once:,} once, {r.trained_twice:,} twice, {r.trained_never:,} never"
    return f"{fates}, {r.waiting:,} waiting ({r.cut})"
