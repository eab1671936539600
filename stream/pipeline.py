"""One source partition from records to samples: a function of its records, advances and starting point.

No I/O and no clock. `feed` may be given the records in blocks cut anywhere; what comes out, put together, is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dedup_cache import sample_id
from dedup_cache.arrays import Int64
from stream.columns import GroupAssembler, ImpressionColumns
from stream.compiled import warm
from stream.config import Config, EventsConfig, FeatureConfig, LabelConfig, SessionConfig
from stream.events import IMPRESSION, Decoder, EventBlock
from stream.labels import ClosedEvents, label_kinds, label_matrix, match
from stream.open_events import ListedEvents, OpenEvents, column_events
from stream.records import CommitPoint, PipelineCounts, PipelineOutput, RecordBlock, Rejected, SampleBlock
from stream.sampling import sample_negatives
from stream.session_features import SessionFeatures
from stream.sessions import DUPLICATE, FULL, LATE, OpenSessions, Placement, RestoreError

DROP_REASONS = {
    LATE: ("late", "older than the watermark less the session gap"),
    FULL: ("full", "its session holds session.max_events already"),
}
UNMATCHED = ("unmatched", "no impression of its session fits")


class BlockOrderError(ValueError):
    """A block of another partition, or one whose offsets do not ascend from the pipeline's position."""


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """The sections that decide what comes out of a partition."""

    events: EventsConfig
    features: tuple[FeatureConfig, ...]
    labels: tuple[LabelConfig, ...]
    session: SessionConfig

    @staticmethod
    def of(config: Config) -> PipelineConfig:
        """The slice of the whole configuration."""
        return PipelineConfig(config.events, config.features, config.labels, config.session)


@dataclass(frozen=True, slots=True, eq=False)
class PipelineState:
    """All that a pipeline remembers but the events that it holds."""

    position: int
    watermark_ms: int
    max_event_time_ms: int
    sessions: OpenSessions


class PartitionPipeline:
    """Sessions, labels and features of one partition, from a commit point on.

    A pipeline that starts at a commit point and is fed from its offset up to a position is there in the state of the
    one that never stopped: what either emits from then on is the same, field by field. What the rebuild emits up to
    that position is to be thrown away. Advances must be repeated at their positions.
    """

    def __init__(self, config: PipelineConfig, *, partition: int, start: CommitPoint) -> None:
        self._config = config
        self._partition = partition
        self._decoder = Decoder(
            config.events,
            features=config.features,
            labels=config.labels,
            max_ahead_ms=config.session.max_ahead_ms,
        )
        self._open: OpenEvents = self._make_open(start.watermark_ms)
        self._assembler = GroupAssembler(config.features)
        self._label_kinds = label_kinds(config.labels, engagements=config.events.engagements)
        self.position = start.offset
        """Offset of the next record to process."""

    @property
    def watermark_ms(self) -> int:
        """W: the greatest accepted event time less the allowed disorder, or a later advance."""
        return self._open.watermark_ms

    @property
    def open_sessions(self) -> int:
        """How many sessions are open."""
        return self._open.open_sessions

    @property
    def open_events(self) -> int:
        """How many events they hold."""
        return self._open.open_events

    @property
    def max_event_time_ms(self) -> int:
        """The greatest event time accepted since the start, NO_WATERMARK before the first."""
        return self._open.max_event_time_ms

    def feed(self, block: RecordBlock) -> PipelineOutput:
        """Process a block and close every session that the watermark then allows.

        Raises BlockOrderError, with nothing changed, where the block does not continue the partition.
        """
        if not block.offsets.size:
            return PipelineOutput()
        self._check(block)
        decoded = self._decoder.decode(block)
        events = decoded.events
        self._change_over()
        placement = self._open.place(events)
        self.position = int(block.offsets[-1]) + 1
        impressions = int(np.count_nonzero(events.rows["kind"] == IMPRESSION))
        counts = PipelineCounts(
            events=block.offsets.size,
            impressions=impressions,
            engagements=events.rows.shape[0] - impressions,
            quarantined=len(decoded.quarantined),
        )
        return self._emit(placement, quarantined=decoded.quarantined, counts=counts, fresh=events)

    def advance(self, watermark_ms: int) -> PipelineOutput:
        """Raise the watermark at the current position, where it is lower, and close what it allows."""
        return self._emit(self._open.advance(watermark_ms), quarantined=[], counts=PipelineCounts())

    def flush(self) -> PipelineOutput:
        """Close what the watermark allows; `feed` and `advance` leave nothing to close, so this is always empty."""
        return self.advance(self.watermark_ms)

    def commit_point(self) -> CommitPoint:
        """The oldest offset that an open session needs (the position without any), and the watermark before it."""
        return self._open.oldest() or CommitPoint(self.position, self.watermark_ms)

    def close_all_watermark_ms(self) -> int:
        """The smallest watermark at which every open session is closed; the present one without any."""
        return self._open.close_all_watermark_ms()

    def next_close_watermark_ms(self) -> int | None:
        """A watermark below which `advance` closes nothing; None without open sessions."""
        return self._open.next_close_ms()

    def state(self) -> PipelineState:
        """What it remembers besides the events at `held_offsets`."""
        return PipelineState(self.position, self.watermark_ms, self.max_event_time_ms, self._open.state())

    def no_impressions(self) -> ImpressionColumns:
        """Columns of no impressions, with the types and widths that all have."""
        return self._decoder.no_impressions()

    def held_offsets(self) -> Int64:
        """The offsets of the events that open sessions hold, ascending."""
        return self._open.held()

    def held_events(self, offsets: Int64) -> EventBlock:
        """Those at ascending `offsets`, as they were decoded; they never change while they are held.

        Records' own bytes are there of engagements; of impressions they may be None.
        """
        return self._open.block(offsets)

    @staticmethod
    def restore(
        config: PipelineConfig, *, partition: int, state: PipelineState, events: EventBlock
    ) -> PartitionPipeline:
        """The pipeline that gave `state`, from all the events that it held, in offset order.

        It emits from then on what that one would have. Raises RestoreError where these do not belong together.
        """
        start = CommitPoint(state.position, state.watermark_ms)
        pipeline = PartitionPipeline(config, partition=partition, start=start)
        rows = events.rows
        if not (np.diff(rows["offset"]) > 0).all() or (rows["offset"] >= state.position).any():
            raise RestoreError(f"events that are not in offset order before {state.position}")
        pipeline._open.restore(state.sessions, events, max_event_time_ms=state.max_event_time_ms)
        return pipeline

    def _make_open(self, watermark_ms: int) -> OpenEvents:
        """Tables where the kernels are at hand, objects until then."""
        config, like = self._config.session, self._decoder.no_impressions()
        if warm.ready():
            return column_events(config, watermark_ms=watermark_ms, like=like)
        return ListedEvents(config, watermark_ms=watermark_ms, like=like)

    def _change_over(self) -> None:
        """From objects to tables, once the kernels are at hand."""
        if isinstance(self._open, ListedEvents) and warm.ready():
            before = self._open
            self._open = self._make_open(before.watermark_ms)
            events, latest_ms = before.block(before.held()), before.max_event_time_ms
            self._open.restore(before.state(), events, max_event_time_ms=latest_ms)

    def _check(self, block: RecordBlock) -> None:
        ascending = bool((block.offsets[1:] > block.offsets[:-1]).all())
        if block.partition != self._partition or int(block.offsets[0]) < self.position or not ascending:
            raise BlockOrderError(
                f"partition {self._partition}@{self.position} was given offsets {block.offsets[0]} to "
                f"{block.offsets[-1]} of partition {block.partition}; they must ascend from the position"
            )

    def _emit(
        self,
        placement: Placement,
        *,
        quarantined: list[Rejected],
        counts: PipelineCounts,
        fresh: EventBlock | None = None,
    ) -> PipelineOutput:
        session = np.repeat(np.arange(placement.closed_lengths.shape[0]), placement.closed_lengths)
        rows = self._open.rows(placement.closed)
        closed = ClosedEvents.order(rows, handles=placement.closed, session=session)
        matched = match(closed)
        unmatched = np.flatnonzero((closed.rows["kind"] != IMPRESSION) & (matched < 0))
        late = self._late(
            placement, unmatched=closed.handles[unmatched], session=closed.session[unmatched], fresh=fresh
        )
        samples = self._samples(closed, matched=matched)
        num_samples = samples.num_samples if samples else 0
        self._open.release(np.concatenate([placement.closed, placement.dropped]))
        counts += PipelineCounts(
            duplicates=int(np.count_nonzero(placement.dropped_reasons == DUPLICATE)),
            sessions_closed=placement.closed_lengths.shape[0],
            samples=num_samples,
            sampled_out=int(np.count_nonzero(closed.rows["kind"] == IMPRESSION)) - num_samples,
            positives=_positives(samples),
            late=len(late),
        )
        return PipelineOutput(samples, late, quarantined, counts)

    def _late(
        self, placement: Placement, *, unmatched: Int64, session: Int64, fresh: EventBlock | None
    ) -> list[Rejected]:
        """Late and full events, and engagements without an impression, in the order in which they left.

        Bytes are those that were kept, or of the `fresh` events that have just come.
        """
        dropped = placement.dropped_reasons != DUPLICATE
        why = [DROP_REASONS[reason] for reason in placement.dropped_reasons[dropped].tolist()]
        why += [UNMATCHED] * unmatched.shape[0]
        if not why:
            return []
        turns = np.concatenate([placement.dropped_turns[dropped], placement.closed_turns[session]])
        order = np.argsort(turns, kind="stable")
        handles = np.concatenate([placement.dropped[dropped], unmatched])[order]
        rows = self._open.rows(handles)
        columns = (
            rows["offset"].tolist(),
            rows["append_ms"].tolist(),
            *zip(*(why[i] for i in order.tolist()), strict=True),
        )
        keys, values = self._open.records(handles)
        if fresh is not None:
            came, at = _places_in(fresh.rows["offset"], rows["offset"])
            keys[came], values[came] = fresh.record_keys[at], fresh.values[at]
        return [Rejected(*fields) for fields in zip(*columns, keys.tolist(), values.tolist(), strict=True)]

    def _samples(self, closed: ClosedEvents, *, matched: Int64) -> SampleBlock | None:
        rows, places = closed.rows, np.flatnonzero(closed.rows["kind"] == IMPRESSION)
        labels = label_matrix(closed, matched=matched, carries=self._label_kinds)[places]
        share = self._config.session.keep_negatives
        sampled = sample_negatives(sample_id(self._partition, rows["offset"][places]), labels=labels, share=share)
        if not sampled.kept.any():
            return None
        features, weights = SessionFeatures(closed, matched=matched), sampled.weights
        dense, lists = features.dense(self._config.features), features.lists(self._config.features)
        if not sampled.kept.all():
            kept = np.flatnonzero(sampled.kept)
            places, labels, weights = places[kept], labels[kept], weights[kept]
            dense = {name: column[kept] for name, column in dense.items()}
            lists = {name: column.select(kept) for name, column in lists.items()}
        columns = self._open.impressions(closed.handles[places])
        return SampleBlock(
            offsets=rows["offset"][places],
            event_times_ms=rows["time_ms"][places],
            append_times_ms=rows["append_ms"][places],
            labels=labels,
            weights=weights,
            scores=columns.scores,
            groups=self._assembler.assemble(columns, dense=dense, lists=lists),
        )


def _places_in(offsets: Int64, wanted: Int64) -> tuple[Int64, Int64]:
    """Which of the `wanted` stand among ascending `offsets`, and where."""
    places = np.minimum(np.searchsorted(offsets, wanted), max(0, offsets.shape[0] - 1))
    found = np.flatnonzero(offsets[places] == wanted) if offsets.shape[0] else np.empty(0, np.int64)
    return found, places[found]


def _positives(samples: SampleBlock | None) -> int:
    """Samples whose first label is true."""
    return int(np.count_nonzero(samples.labels[:, :1])) if samples else 0
