"""One partition of `interactions` from its first record to the last: what must have become of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from recd.audit.events import EventReader
from recd.audit.fields import Reasons
from recd.audit.sessions import NO_WATERMARK, Expected, PartitionSessions, Rules
from recd.audit.topics import Step
from stream.config import Config
from stream.kafka import Message


@dataclass(slots=True)
class PartitionView:
    """What is known of a partition after all of its records."""

    expected: Expected
    quarantined: dict[int, Reasons] = field(default_factory=dict)
    records: int = 0
    impressions: int = 0
    engagements: int = 0
    unread: int = 0
    expired: int = 0
    """Records before the first that can be judged."""
    firm_ms: int = NO_WATERMARK
    """Sessions that closed by this watermark had closed before the outputs were read."""
    firm_offset: int = 0
    """Records before this offset had been processed before the outputs were read."""
    judged_from: int = 0

    def can_judge(self, offset: int) -> bool:
        """Whether it is known what must have become of this record."""
        return offset >= self.judged_from and offset not in self.expected.expired_offsets


class PartitionAudit:
    """Follows a partition record by record, with the watermarks that the journal tells of.

    `before` are the journal's steps when the outputs had not been read yet, `after` those from afterwards: what falls
    between them may be found in the outputs or not. Processing ends where the journal's last step ends.
    """

    def __init__(
        self, config: Config, *, partition: int, begin: int, before: Sequence[Step], after: Sequence[Step]
    ) -> None:
        self._reader = EventReader(config)
        self._steps = list(after)
        self._rules = after[0].rules if after else Rules(*(getattr(config.session, name) for name in Rules._fields))
        self._resume = after[-1].resume if after else 0
        first = _first_step(begin, after)
        self.start = first.offset if first else begin
        """The first record that is needed."""
        watermark_ms = first.watermark_ms if first else NO_WATERMARK
        is_whole = watermark_ms == NO_WATERMARK
        self._judged_from = self.start if first is None or is_whole else first.resume
        self._is_judging = is_whole
        self._sessions = PartitionSessions(
            config.labels,
            partition=partition,
            rules=self._rules,
            watermark_ms=watermark_ms,
            is_judging=is_whole,
        )
        self._advances = _advances_from(self.start, after)
        self._settled = len(_advances_from(self.start, before))
        self._known = len(_advances_from(self.start, after[: after.index(first) + 1])) if first in after else 0
        self._applied = 0
        self.view = PartitionView(self._sessions.expected, judged_from=self._judged_from)
        self.view.firm_offset = before[-1].resume if before else 0
        self._is_firm = False
        self._step = 0

    def add(self, message: Message) -> None:
        """Take the next record."""
        view, offset = self.view, message.offset
        view.records += 1
        if offset >= self._resume:
            view.unread += 1
            return
        if offset < self.start:
            view.expired += 1
            return
        self._move_to(offset)
        latest_ms = message.timestamp_ms + self._rules.max_ahead_ms
        found = self._reader.read(message.value, offset=offset, latest_ms=latest_ms)
        judged = offset >= self._judged_from
        if isinstance(found, frozenset):
            if judged:
                view.quarantined[offset] = found
            else:
                view.expired += 1
            return
        view.impressions += found.is_impression
        view.engagements += not found.is_impression
        self._sessions.add(found)

    def finish(self) -> PartitionView:
        """After the last record."""
        self._move_to(max(self._resume, self.start))
        self._settle()
        self._apply_up_to(self._resume)
        self._sessions.finish()
        self.view.expired += self.view.expected.expired
        return self.view

    def _move_to(self, position: int) -> None:
        """Raise the watermark as the journal says, up to the record at `position`."""
        if not self._is_judging and position >= self._judged_from:
            self._apply_up_to(self._judged_from, most=self._known)
            self._is_judging = True
            self._sessions.begin_judging()
        if not self._is_firm and position >= self.view.firm_offset:
            self._settle()
        self._apply_up_to(position)
        self._use_rules_at(position)

    def _settle(self) -> None:
        """Every step of `before` has been followed: what is closed now was written before the outputs were read."""
        if self._is_firm:
            return
        self._apply_up_to(self.view.firm_offset, most=self._settled)
        self._is_firm = True
        self.view.firm_ms = self._sessions.watermark_ms

    def _apply_up_to(self, position: int, *, most: int | None = None) -> None:
        last = len(self._advances) if most is None else most
        while self._applied < last and self._advances[self._applied][0] <= position:
            self._sessions.advance(self._advances[self._applied][1])
            self._applied += 1

    def _use_rules_at(self, position: int) -> None:
        """Those of the transaction that covers the record at `position`; its predecessor's hold up to there."""
        while self._step < len(self._steps) - 1 and self._steps[self._step].resume <= position:
            self._step += 1
            self._rules = self._steps[self._step].rules
            self._sessions.use(self._rules)


def _advances_from(start: int, steps: Sequence[Step]) -> list[tuple[int, int]]:
    return [advance for step in steps for advance in step.advances if advance[0] >= start]


def _first_step(begin: int, steps: Sequence[Step]) -> Step | None:
    """The first step that needs nothing before the beginning of the log; None where nothing was ever taken.

    Where every step needs what was deleted, nothing up to the last one's end can be judged.
    """
    if not steps:
        return None
    found = next((step for step in steps if step.offset >= begin), None)
    return found or steps[-1]._replace(offset=max(begin, steps[-1].resume))
