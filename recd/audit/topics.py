"""What stands in the topics and the checkpoint, read as it is and trusted in nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import fsspec

from dedup_cache import BatchError, sample_position, wire
from recd.audit.sessions import Rules
from stream.config import Config, ConfigError
from stream.kafka import BrokerUnavailable, Message, Reader, begin_offsets, end_offsets, topic_id

READ_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that should not be, with the place of the record that shows it."""

    kind: str
    topic: str
    partition: int
    offset: int
    detail: str


class Step(NamedTuple):
    """What one transaction said of one source partition."""

    offset: int
    watermark_ms: int
    resume: int
    advances: tuple[tuple[int, int], ...]
    rules: Rules


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a batch."""

    batches_partition: int
    batch_offset: int
    time_ms: int
    labels: tuple[float, ...]
    weight: float


@dataclass(slots=True)
class Samples:
    """The rows of all batches, by source partition in the order in which they stand."""

    by_source: dict[int, list[tuple[int, Sample]]] = field(default_factory=dict)
    """(offset of the impression, sample)"""
    totals: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    """By partition of `batches`: (offset of the batch, number of samples, sum of their ids)."""
    begin: dict[int, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    count: int = 0


def read_topic(config: Config, topic: str, *, starts: Mapping[int, int], ends: Mapping[int, int]) -> Iterator[Message]:
    """Every committed record from `starts` up to `ends`, in offset order per partition.

    Raises BrokerUnavailable when nothing comes for a minute, KafkaError.
    """
    wanted = {p: start for p, start in starts.items() if start < ends[p]}
    if not wanted:
        return
    last_s = time.monotonic()
    with Reader(config.kafka, topic=topic, positions=wanted) as reader:
        while any(position < ends[p] for p, position in reader.positions().items()):
            before = reader.positions()
            yield from (m for m in reader.poll(max_messages=10_000, timeout_ms=50) if m.offset < ends[m.partition])
            if reader.positions() != before:
                last_s = time.monotonic()
            elif time.monotonic() - last_s > READ_TIMEOUT_S:
                raise BrokerUnavailable(
                    f"{topic}: nothing more came for {READ_TIMEOUT_S:.0f} s, at {before} of {dict(ends)}; try again"
                )


def read_journal(config: Config) -> tuple[dict[int, list[Step]], list[Problem]]:
    """By source partition, the steps of the topic as it is now, in order; records that say nothing are problems."""
    topic, source = config.topics.journal, config.topics.interactions
    now_id = topic_id(config.kafka, source)
    steps: dict[int, list[Step]] = {}
    problems = []
    for message in read_topic(
        config, topic, starts=begin_offsets(config.kafka, topic), ends=end_offsets(config.kafka, topic)
    ):
        try:
            found = json.loads(message.value or b"")
            if found["topic"] != source or found["topic_id"] != now_id:
                continue
            rules = Rules.of(found["parameters"]["session"])
            advances = tuple((int(position), int(watermark)) for position, watermark in found["advances"])
            step = Step(int(found["offset"]), int(found["watermark_ms"]), int(found["resume"]), advances, rules)
            steps.setdefault(int(found["partition"]), []).append(step)
        except (ValueError, KeyError, TypeError) as error:
            problems.append(Problem("unreadable_journal", topic, message.partition, message.offset, repr(error)))
    return steps, problems


def read_samples(config: Config) -> Samples:
    """Every sample of `batches`; a batch that cannot be read is a problem."""
    topic = config.topics.batches
    samples = Samples(begin=begin_offsets(config.kafka, topic))
    ends = end_offsets(config.kafka, topic)
    for message in read_topic(config, topic, starts=samples.begin, ends=ends):
        try:
            _take_batch(samples, message, config=config, num_partitions=len(ends))
        except BatchError as error:
            problem = Problem("unreadable_batch", topic, message.partition, message.offset, str(error))
            samples.problems.append(problem)
    return samples


def _take_batch(samples: Samples, message: Message, *, config: Config, num_partitions: int) -> None:
    found = wire.read(message.value or b"")
    try:
        ids, labels, weights = (found.arrays[name] for name in ("sample_ids", "labels", "weights"))
        times_ms = found.arrays["event_times_ms"].tolist()
        source = found.metadata["source_topic"]
    except KeyError as error:
        raise BatchError(str(error.args[0]), "missing") from None
    place = (message.topic, message.partition, message.offset)
    samples.totals.setdefault(message.partition, []).append((message.offset, len(ids), sum(ids.tolist()) % 2**64))
    samples.count += len(ids)
    if source != config.topics.interactions:
        samples.problems.append(Problem("unfounded", *place, f"{len(ids)} samples of topic '{source}'"))
        return
    positions = sample_position(ids)
    if set((positions.partition % num_partitions).tolist()) - {message.partition}:
        samples.problems.append(Problem("wrong_partition", *place, "holds samples of another partition's source"))
    places = (positions.partition.tolist(), positions.offset.tolist())
    for partition, offset, time_ms, row, weight in zip(
        *places, times_ms, labels.tolist(), weights.tolist(), strict=True
    ):
        sample = Sample(message.partition, message.offset, time_ms, tuple(row), weight)
        samples.by_source.setdefault(partition, []).append((offset, sample))


@dataclass(slots=True)
class Rejects:
    """What stands in `late` or `quarantine`."""

    by_place: dict[tuple[int, int], list[tuple[str, Problem]]] = field(default_factory=dict)
    """By (partition, offset) of the source: (reason, the place where it stands)."""
    is_cut: bool = False
    """Whether the topic's beginning was deleted."""
    missing: str = ""
    """The kind of offence where a record is not here."""
    problems: list[Problem] = field(default_factory=list)


def read_rejects(config: Config, topic: str, *, missing: str) -> Rejects:
    """Every record of `late` or `quarantine` by the source that its headers name."""
    begin = begin_offsets(config.kafka, topic)
    found = Rejects(is_cut=any(begin.values()), missing=missing)
    for message in read_topic(config, topic, starts=begin, ends=end_offsets(config.kafka, topic)):
        headers = dict(message.headers)
        source = headers.get("recd.source", b"").decode(errors="replace")
        reason = headers.get("recd.reason", b"").decode(errors="replace")
        here = Problem("unfounded_reject", topic, message.partition, message.offset, f"{reason} {source}".strip())
        name, _, rest = source.rpartition("/")
        name, _, partition = name.rpartition("/")
        if name != config.topics.interactions or not (partition.isdecimal() and rest.isdecimal()):
            found.problems.append(here)
        else:
            found.by_place.setdefault((int(partition), int(rest)), []).append((reason, here))
    return found


@dataclass(frozen=True, slots=True)
class TrainedPartition:
    """What the trainer says it did with one partition of `batches`."""

    position: int
    samples: int
    id_sum: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The cut in force, or that there is none."""

    name: str | None = None
    step: int | None = None
    partitions: dict[int, TrainedPartition] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def read_cut(config: Config) -> Cut:
    """The cut that `current.json` names; without that file nothing has been trained for good.

    Raises ConfigError where the folder cannot be read at all.
    """
    url = config.trainer.checkpoint_url.rstrip("/")
    current = _read_json(f"{url}/current.json")
    if current is None:
        return Cut()
    try:
        name = str(current["cut"])
        found = _read_json(f"{url}/{name}/cut.json")
        if found is None:
            raise ValueError(f"{url}/{name}/cut.json does not exist")
        if found["topic"] != config.topics.batches:
            raise ValueError(f"it is of topic '{found['topic']}'")
        partitions = {
            int(p): TrainedPartition(int(t["position"]), int(t["samples"]), int(t["id_sum"]))
            for p, t in found["partitions"].items()
        }
        return Cut(name, int(found["step"]), partitions)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Cut(problems=(Problem("unreadable_cut", config.topics.batches, -1, -1, f"{url}: {error!r}"),))


def _read_json(url: str) -> Any:
    """The JSON at a path or URL; None where there is nothing, {} where there is something else."""
    try:
        with fsspec.open(url, "rb") as file:
            return json.loads(file.read())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    except OSError as error:
        raise ConfigError(f"{url}: cannot be read: {error} - at $.trainer.checkpoint_url") from None
