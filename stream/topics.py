"""The topics of the configuration: created with the settings that they need, checked where they exist."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream.config import Config
from stream.kafka import TopicExists, create_topic, partition_count, topic_settings

MIB = 1 << 20
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
RECORD_OVERHEAD_BYTES = 64 * 1024
"""Headers, framing and the safetensors head on top of a payload."""


class TopicError(Exception):
    """A topic exists, but not as the stream needs it; the message says which setting, and what to do."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """How one topic is made."""

    name: str
    partitions: int
    settings: dict[str, str] = field(default_factory=dict)


def interactions_bytes(config: Config) -> int:
    """Largest record that `interactions` takes: what `events.max_bytes` refuses must still arrive to be quarantined."""
    return 4 * config.events.max_bytes + RECORD_OVERHEAD_BYTES


def topic_specs(config: Config) -> tuple[TopicSpec, ...]:
    """Every topic of the configuration.

    `interactions` is stamped by the broker: records stamped by their own time would be deleted at once when they are
    old. `journal` is never deleted. `values` is compacted by key and outlives every batch that may name a value. What
    carries a source record besides its reason is allowed to be larger than the source.
    """
    topics, wanted = config.topics, config.topics.partitions
    retention = str(topics.retention_ms or -1)
    forever = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    source_bytes = interactions_bytes(config)
    batch_bytes = config.batch.max_bytes + MIB
    reject = {"cleanup.policy": "delete", "retention.ms": retention, "max.message.bytes": str(source_bytes + MIB)}
    snapshots = TopicSpec(
        topics.snapshots,
        wanted,
        {
            "cleanup.policy": "delete",
            "retention.ms": str(_snapshot_retention_ms(config)),
            "max.message.bytes": str(2 * MIB),
        },
    )
    return (
        TopicSpec(
            topics.interactions,
            wanted,
            {
                "cleanup.policy": "delete",
                "retention.ms": retention,
                "message.timestamp.type": "LogAppendTime",
                "max.message.bytes": str(source_bytes),
            },
        ),
        TopicSpec(
            topics.batches,
            wanted,
            {
                "cleanup.policy": "delete",
                "retention.ms": retention,
                "segment.ms": str(_segment_ms(config)),
                "max.message.bytes": str(batch_bytes),
            },
        ),
        TopicSpec(
            topics.values,
            wanted,
            {
                "cleanup.policy": "compact,delete",
                "retention.ms": str(_values_retention_ms(config, topics.retention_ms, _segment_ms(config))),
                "segment.ms": str(_segment_ms(config)),
                "message.timestamp.type": "LogAppendTime",
                "max.message.bytes": str(max(batch_bytes, source_bytes + MIB)),
            },
        ),
        TopicSpec(topics.late, wanted, reject),
        TopicSpec(topics.quarantine, wanted, reject),
        TopicSpec(topics.journal, wanted, forever),
        *((snapshots,) if config.stream.snapshot_every_events else ()),
        TopicSpec(topics.control, 1, {"cleanup.policy": "delete", "retention.ms": "86400000"}),
        TopicSpec(topics.versions, 1, {"cleanup.policy": "compact", "segment.ms": "3600000"}),
    )


def create_topics(config: Config) -> list[str]:
    """Create what is missing and check what is there; returns one line per topic for people.

    Raises TopicError for an existing topic that does not fit, BrokerUnavailable, KafkaError.
    """
    lines = []
    for spec in topic_specs(config):
        try:
            create_topic(
                config.kafka,
                spec.name,
                partitions=spec.partitions,
                replication=config.topics.replication,
                settings=spec.settings,
            )
            lines.append(f"{spec.name}: created, {spec.partitions} partitions")
        except TopicExists:
            lines.append(f"{spec.name}: exists, {partition_count(config.kafka, spec.name)} partitions")
    lines.extend(f"warning: {warning}" for warning in check_topics(config))
    return lines


def check_topics(config: Config) -> list[str]:
    """Return warnings about the topics of stream workers. Raises TopicError where data would be lost, TopicMissing."""
    names = [spec.name for spec in topic_specs(config) if spec.name != config.topics.versions]
    settings = {name: topic_settings(config.kafka, name) for name in names}
    _refuse(config, settings)
    warnings = []
    source = settings[config.topics.interactions]
    if source.get("message.timestamp.type") != "LogAppendTime":
        warnings.append(
            f"{config.topics.interactions} has message.timestamp.type={source.get('message.timestamp.type')}: records "
            "dated in the past are deleted at once by retention; set it to LogAppendTime"
        )
    if 0 < (kept := _retention_ms(source)) < (needed := _needed_retention_ms(config)):
        warnings.append(
            f"{config.topics.interactions} has retention.ms={kept}, but open sessions may need {needed} ms: a longer "
            "outage would lose events; raise it"
        )
    if settings[config.topics.values].get("cleanup.policy") == "compact":
        warnings.append(
            f"{config.topics.values} has cleanup.policy=compact and grows for ever; set it to compact,delete with "
            f"retention.ms={_needed_values_retention_ms(config, settings[config.topics.batches])}"
        )
    warnings.extend(
        f"{name} takes smaller records than {config.topics.interactions} (max.message.bytes): the bytes of the largest "
        "will be replaced by their size and digest"
        for name in (config.topics.late, config.topics.quarantine)
        if int(settings[name].get("max.message.bytes", 0)) < int(source.get("max.message.bytes", 0))
    )
    return warnings


def _refuse(config: Config, settings: dict[str, dict[str, str]]) -> None:
    topics = config.topics
    for name in (topics.interactions, topics.batches, topics.journal):
        if "compact" in settings[name].get("cleanup.policy", ""):
            raise TopicError(
                f"topic '{name}' has cleanup.policy=compact, which drops records that are needed: "
                "set cleanup.policy=delete"
            )
    for name in ("retention.ms", "retention.bytes"):
        if (kept := int(settings[topics.journal].get(name, -1))) >= 0:
            raise TopicError(
                f"topic '{topics.journal}' has {name}={kept}, but the journal must outlive the log: set {name}=-1"
            )
    least = config.batch.max_bytes
    limit = int(settings[topics.batches].get("max.message.bytes", least))
    if limit < least + RECORD_OVERHEAD_BYTES:
        raise TopicError(
            f"topic '{topics.batches}' takes at most {limit} bytes (max.message.bytes), batch.max_bytes is {least}: "
            f"raise the one to {least + RECORD_OVERHEAD_BYTES} or lower the other"
        )
    _refuse_short_values(config, settings)


def _refuse_short_values(config: Config, settings: dict[str, dict[str, str]]) -> None:
    topics = config.topics
    values = settings[topics.values]
    if "delete" not in values.get("cleanup.policy", "delete"):
        return
    needed = _needed_values_retention_ms(config, settings[topics.batches])
    kept = _retention_ms(values)
    if kept >= 0 and (needed < 0 or kept < needed):
        raise TopicError(
            f"topic '{topics.values}' has retention.ms={kept}: values that batches in '{topics.batches}' name would be "
            f"deleted; set it to {needed} (retention.ms and segment.ms of those, dedup.generation_ms and an hour)"
        )
    if int(values.get("retention.bytes", -1)) >= 0:
        raise TopicError(
            f"topic '{topics.values}' has retention.bytes={values['retention.bytes']}: values that batches name would "
            "be deleted; set retention.bytes=-1"
        )


def _needed_values_retention_ms(config: Config, batches: dict[str, str]) -> int:
    """For the topic of the batches as it is; -1: for ever."""
    return _values_retention_ms(config, max(0, _retention_ms(batches)), int(batches.get("segment.ms", 7 * DAY_MS)))


def _values_retention_ms(config: Config, batches_retention_ms: int, segment_ms: int) -> int:
    """A value is shipped in its generation, named until that ends, and read as long as the last batch stands.

    A batch stands until the whole segment that it is in is old enough. -1: for ever; retention 0 means that of batches.
    """
    if not batches_retention_ms:
        return -1
    return batches_retention_ms + segment_ms + config.dedup.generation_ms + HOUR_MS


def _segment_ms(config: Config) -> int:
    """Of `batches` and `values`: what is over may stand so much longer."""
    return min(DAY_MS, max(HOUR_MS, config.topics.retention_ms or DAY_MS))


def _retention_ms(settings: dict[str, str]) -> int:
    return int(settings.get("retention.ms", -1))


def _snapshot_retention_ms(config: Config) -> int:
    """Events are kept in a snapshot as long as their session is open, and then for an outage."""
    return max(DAY_MS, 2 * _needed_retention_ms(config))


def _needed_retention_ms(config: Config) -> int:
    session = config.session
    return session.max_duration_ms + session.gap_ms + session.out_of_orderness_ms
