"""The audit from beginning to end."""

from __future__ import annotations

import json

from recd.audit.compare import Comparison, compare_training
from recd.audit.partition import PartitionAudit, PartitionView
from recd.audit.report import AuditReport, Offences, Offender
from recd.audit.topics import (
    Cut,
    Problem,
    Samples,
    Step,
    read_cut,
    read_journal,
    read_rejects,
    read_samples,
    read_topic,
)
from stream.config import Config
from stream.kafka import begin_offsets, end_offsets


def audit(config: Config) -> AuditReport:
    """Read everything and compare. Services may go on meanwhile: what they write during the audit is not judged.

    In this order, so that each reading holds what the one before promised:

    1. the journal says how far each partition was processed, the cut how far it was trained;
    2. batches, late and quarantine hold at least that;
    3. the journal says again, what they hold at most;
    4. interactions hold all of it.

    Raises KafkaError (no broker, a topic is missing), ConfigError (the checkpoint's folder cannot be read).
    """
    topics = config.topics
    before, _ = read_journal(config)
    cut = read_cut(config)
    samples = read_samples(config)
    late = read_rejects(config, topics.late, missing="missing_late")
    quarantine = read_rejects(config, topics.quarantine, missing="missing_quarantine")
    after, problems = read_journal(config)
    views = _views(config, before=before, after=after)
    comparison = Comparison(topics, samples=samples, late=late, quarantine=quarantine)
    for problem in (*problems, *cut.problems, *samples.problems, *late.problems, *quarantine.problems):
        comparison.offences.add(problem)
    for partition, view in views.items():
        comparison.take(partition, view)
    comparison.finish(views)
    comparison.counts += compare_training(cut, samples, topic=topics.batches, offences=comparison.offences)
    return _report(config, comparison, cut=cut, samples=samples)


def _views(config: Config, *, before: dict[int, list[Step]], after: dict[int, list[Step]]) -> dict[int, PartitionView]:
    topic = config.topics.interactions
    begin, ends = begin_offsets(config.kafka, topic), end_offsets(config.kafka, topic)
    audits = {
        p: PartitionAudit(config, partition=p, begin=begin[p], before=before.get(p, []), after=after.get(p, []))
        for p in begin
    }
    for message in read_topic(config, topic, starts=begin, ends=ends):
        audits[message.partition].add(message)
    return {p: one.finish() for p, one in sorted(audits.items())}


def _report(config: Config, comparison: Comparison, *, cut: Cut, samples: Samples) -> AuditReport:
    counts, offences = comparison.counts, comparison.offences
    verdicts = ("once", "twice", "never", "joined", "open_impressions", "open_engagements", "duplicates", "unread")
    accounted = sum(counts[name] for name in (*verdicts, "sampled_out", "unsettled", "expired"))
    accounted += comparison.late.total() + comparison.quarantined.total()
    if accounted != counts["records"]:
        detail = f"{counts['records']} records, {accounted} verdicts"
        missing = abs(counts["records"] - accounted)
        offences.add(Problem("unaccounted", config.topics.interactions, -1, -1, detail), count=missing)
    return AuditReport(
        events=counts["records"],
        impressions=counts["impressions"],
        engagements=counts["engagements"],
        due=counts["once"] + counts["twice"] + counts["never"],
        samples=samples.count,
        in_batches_once=counts["once"],
        in_batches_twice=counts["twice"],
        in_batches_never=counts["never"],
        sampled_out=counts["sampled_out"],
        joined=counts["joined"],
        open_impressions=counts["open_impressions"],
        open_engagements=counts["open_engagements"],
        late=dict(sorted(comparison.late.items())),
        quarantined=dict(sorted(comparison.quarantined.items())),
        duplicates=counts["duplicates"],
        unread=counts["unread"],
        unsettled=counts["unsettled"],
        expired=counts["expired"],
        cut=cut.name,
        trained_once=counts["trained_once"],
        trained_twice=counts["trained_twice"],
        trained_never=counts["trained_never"],
        waiting=counts["waiting"],
        unverifiable=counts["unverifiable"],
        offences=dict(sorted(offences.counts.items())),
        offenders=_offenders(config, offences),
    )


def _offenders(config: Config, offences: Offences) -> dict[str, list[Offender]]:
    """The first of each kind, with the ids of their events."""
    return {
        kind: [Offender(f"{p.topic}[{p.partition}]@{p.offset}", _event_id(config, p), p.detail) for p in problems]
        for kind, problems in sorted(offences.first.items())
    }


def _event_id(config: Config, problem: Problem) -> str | None:
    """The event id that stands in the record of `interactions`; None where there is no such record or id."""
    topic, path = config.topics.interactions, config.events.fields.event_id
    partition, offset = problem.partition, problem.offset
    if problem.topic != topic or path is None:
        return None
    inside = begin_offsets(config.kafka, topic).get(partition, 0) <= offset
    if not inside or offset >= end_offsets(config.kafka, topic).get(partition, 0):
        return None
    messages = read_topic(config, topic, starts={partition: offset}, ends={partition: offset + 1})
    try:
        found = json.loads(next((m.value or b"" for m in messages), b""))
        for name in path.split("."):
            found = found[name]
    except (ValueError, KeyError, TypeError):
        return None
    return str(found)
