"""`recd advise`: read a stretch of the interactions without a group, observe it, show what it says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table

from recd.times import TimeError, parse_time_ms
from stream.advice import Advice, Observer, advise, with_session_start
from stream.builder import concat_samples
from stream.compiled import warm
from stream.config import Config, ConfigError
from stream.events import Decoder
from stream.kafka import Message, Reader, begin_offsets, end_offsets, offsets_at
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import CommitPoint, PipelineOutput, RecordBlock

DEFAULT_RECORDS = 50_000
POLL_RECORDS = 5_000
LEGEND = (
    "side: whose value it is, by what it follows; what is the user's and what is the item's never share a group. "
    "same in session: p, how often the value of a sample is that of the sample before it in its session. across: how "
    "often a user's session begins with the value with which the last one ended. expected: S / (1 + (S-1)(1-p)). "
    "measured: samples per distinct value in batches of batch.max_samples. slices: times fewer ids as slices."
)
POLL_MS = 100
EMPTY_POLLS = 100
"""After so many without a record the broker has no more to give: what it gave is looked at."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Offsets [first, end) of a partition."""

    first: int
    end: int


def run_advise(config: Config, *, records: int | None, first_time: str | None, last_time: str | None) -> Advice:
    """Advice on the last `records` of the topic, or on what arrived in [first_time, last_time).

    Reads committed records at explicit positions, without a group, and writes nothing. Raises ConfigError where there
    are no features or no samples; KafkaError; TimeError.
    """
    warm.start()
    if not config.features:
        raise ConfigError("advise looks at the features of the configuration, and it has none - at $.features")
    stretches = _stretches(config, records=records, first_time=first_time, last_time=last_time)
    wider = with_session_start(config)
    observer = Observer(config)
    for partition, stretch in stretches.items():
        _observe(wider, observer, partition, stretch)
    observed = observer.observed()
    if not observed.samples:
        raise ConfigError(
            f"no samples in {sum(s.end - s.first for s in stretches.values())} records of "
            f"'{config.topics.interactions}': is it the right stretch, and do events and features fit its records?"
        )
    return advise(config, observed)


def _stretches(
    config: Config, *, records: int | None, first_time: str | None, last_time: str | None
) -> dict[int, Stretch]:
    topic = config.topics.interactions
    begins, ends = begin_offsets(config.kafka, topic), end_offsets(config.kafka, topic)
    try:
        if last_time is not None:
            found = offsets_at(config.kafka, topic, time_ms=parse_time_ms(last_time))
            ends = {p: min(ends[p], found[p]) for p in ends}
        if first_time is not None:
            begins = offsets_at(config.kafka, topic, time_ms=parse_time_ms(first_time))
    except TimeError as error:
        raise ConfigError(f"--from, --to: {error}") from None
    if records is None and first_time is None and last_time is None:
        records = DEFAULT_RECORDS
    if records is not None:
        share = -(-records // len(ends))
        begins = {p: max(begins[p], ends[p] - share) for p in ends}
    return {p: Stretch(begins[p], ends[p]) for p in sorted(ends) if begins[p] < ends[p]}


def _observe(config: Config, observer: Observer, partition: int, stretch: Stretch) -> None:
    """One partition: through the pipeline, every session closed at the end."""
    decoder = Decoder(config.events, features=(), labels=(), max_ahead_ms=config.session.max_ahead_ms)
    items: dict[int, int] = {}
    pipeline = PartitionPipeline(PipelineConfig.of(config), partition=partition, start=CommitPoint(stretch.first))
    outputs: list[PipelineOutput] = []
    keys: dict[int, bytes | None] = {}
    with Reader(config.kafka, topic=config.topics.interactions, positions={partition: stretch.first}) as reader:
        empty_polls = 0
        while reader.positions()[partition] < stretch.end and empty_polls < EMPTY_POLLS:
            found = reader.poll(max_messages=POLL_RECORDS, timeout_ms=POLL_MS)
            empty_polls = 0 if found else empty_polls + 1
            messages = [message for message in found if message.offset < stretch.end]
            keys.update({message.offset: message.key for message in messages})
            block = _block(partition, messages)
            items.update(_items(decoder, block))
            outputs.append(pipeline.feed(block))
    outputs.append(pipeline.advance(pipeline.close_all_watermark_ms()))
    blocks = [output.samples for output in outputs if output.samples is not None]
    if blocks:
        samples = concat_samples(blocks)
        offsets = samples.offsets.tolist()
        numbers = {item: number for number, item in enumerate(dict.fromkeys(items.values()))}
        shown = [numbers[items[offset]] if offset in items else -1 for offset in offsets]
        observer.add(samples, [keys[offset] for offset in offsets], np.array(shown, np.int64))


def _items(decoder: Decoder, block: RecordBlock) -> dict[int, int]:
    """By offset, the identity of the item of an event that has one."""
    rows = decoder.decode(block).events.rows
    rows = rows[rows["has_item"]]
    return dict(zip(rows["offset"].tolist(), rows["item"].tolist(), strict=True))


def _block(partition: int, messages: list[Message]) -> RecordBlock:
    return RecordBlock(
        partition,
        np.array([message.offset for message in messages], np.int64),
        np.array([message.timestamp_ms for message in messages], np.int64),
        [message.key for message in messages],
        [message.value for message in messages],
    )


def advice_dict(advice: Advice) -> dict[str, Any]:
    """For --json."""
    return asdict(advice)


def show(advice: Advice, console: Console) -> None:
    """Print it for people."""
    console.print(
        f"\n{advice.samples:,} samples in {advice.sessions:,} sessions: "
        f"S = {advice.samples_per_session:.2f} samples a session\n"
        f"Bytes a sample before compression: {advice.bytes_plain:,.0f} plain, {advice.bytes_now:,.0f} as batches hold "
        f"them now ({_times(advice, advice.bytes_now)}), {advice.bytes_advised:,.0f} in groups as they should be "
        f"({_times(advice, advice.bytes_advised)})\n"
    )
    console.print(Group(*_tables(advice)))
    console.print(f"[dim]{LEGEND}[/]\n")
    console.print(
        "To paste into recd.yaml. Other groups are another schema: the trainer then wants a new checkpoint_url.\n"
    )
    console.print(advice.yaml, markup=False, highlight=False, soft_wrap=True)


def _times(advice: Advice, bytes_: float) -> str:
    return f"{advice.bytes_plain / max(1e-9, bytes_):.2f}x"


def _tables(advice: Advice) -> list[RenderableType]:
    features = Table("feature", "group", "side", title="features", title_justify="left")
    for head in ("bytes", "same in session", "across", "expected", "measured", "slices"):
        features.add_column(head, justify="right")
    features.add_column("advice")
    for f in advice.features:
        moves = [] if f.better_group == f.group else [f"group: {f.better_group}"]
        moves += [] if f.slice_factor is None else [f"slices: {f.slices}"]
        features.add_row(
            f.name,
            f.group,
            f.side,
            f"{f.bytes_per_sample:,.0f}",
            f"{f.repeats:.1%}",
            "-" if f.repeats_across is None else f"{f.repeats_across:.0%}",
            f"{f.expected:.2f}x",
            f"{f.measured:.2f}x",
            "-" if f.slice_factor is None else f"{f.slice_factor:.2f}x",
            ", ".join(moves),
        )
    groups = Table("group", "features", title="groups as they should be", title_justify="left")
    for head in ("same in session", "expected"):
        groups.add_column(head, justify="right")
    for g in advice.groups:
        groups.add_row(g.name, ", ".join(g.features), f"{g.repeats:.1%}", f"{g.expected:.2f}x")
    return [features, groups]
