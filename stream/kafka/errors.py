"""Named errors of the Kafka edge. A message says what was wrong, where, and what to do."""

from __future__ import annotations

import confluent_kafka as ck

from stream.config import KafkaConfig


class KafkaError(Exception):
    """Root of everything that the Kafka edge raises."""


class BrokerUnavailable(KafkaError):
    """No broker answered in time. Trying again may help."""


class LeaderUnsettled(BrokerUnavailable):
    """The broker answers, but leads no partitions yet, or none any more: it has just started or is about to stop."""


class OptionRefused(KafkaError):
    """kafka.options names an option that librdkafka does not know, or gives it a value that it does not take."""


class TopicMissing(KafkaError):
    """A topic, or a partition of it, does not exist."""


class TopicExists(KafkaError):
    """The topic to be created is there already."""


class OffsetOutOfRange(KafkaError):
    """A position lies outside the log: what it named was deleted, or never written."""


class Fenced(KafkaError):
    """Another producer took over this one's transactional id, or the coordinator gave up on it: start anew."""


class IdentityTaken(KafkaError):
    """Another member of the group has this static member's name, or had it a moment ago."""


class TransactionAborted(KafkaError):
    """The open transaction cannot commit; it must be aborted, and all that went into it done again."""


class DeliveryFailed(KafkaError):
    """Records that were handed over did not reach the topic."""


_UNAVAILABLE = {
    ck.KafkaError._TRANSPORT,
    ck.KafkaError._ALL_BROKERS_DOWN,
    ck.KafkaError._TIMED_OUT,
    ck.KafkaError._TIMED_OUT_QUEUE,
    ck.KafkaError._RESOLVE,
    ck.KafkaError._WAIT_COORD,
    ck.KafkaError._WAIT_CACHE,
    ck.KafkaError.REQUEST_TIMED_OUT,
    ck.KafkaError.COORDINATOR_NOT_AVAILABLE,
    ck.KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    ck.KafkaError.NOT_COORDINATOR,
    ck.KafkaError.BROKER_NOT_AVAILABLE,
    ck.KafkaError.UNSTABLE_OFFSET_COMMIT,
}
_UNSETTLED = {
    ck.KafkaError.LEADER_NOT_AVAILABLE,
    ck.KafkaError.FENCED_LEADER_EPOCH,
    ck.KafkaError.UNKNOWN_LEADER_EPOCH,
    ck.KafkaError.NOT_LEADER_FOR_PARTITION,
    ck.KafkaError._NOENT,  # an admin client that has not heard yet who leads a partition
}
_MISSING = {
    ck.KafkaError.UNKNOWN_TOPIC_OR_PART,
    ck.KafkaError._UNKNOWN_TOPIC,
    ck.KafkaError._UNKNOWN_PARTITION,
    ck.KafkaError.UNKNOWN_TOPIC_ID,
}
_OUT_OF_RANGE = {ck.KafkaError.OFFSET_OUT_OF_RANGE, ck.KafkaError._AUTO_OFFSET_RESET}
_FENCED = {
    ck.KafkaError._FENCED,
    ck.KafkaError.PRODUCER_FENCED,
    ck.KafkaError.INVALID_PRODUCER_EPOCH,
    ck.KafkaError.TRANSACTION_COORDINATOR_FENCED,
}
_SAME_INSTANCE = {ck.KafkaError.FENCED_INSTANCE_ID, ck.KafkaError.UNRELEASED_INSTANCE_ID}
_NAMED: tuple[tuple[set[int], type[KafkaError], str], ...] = (
    (_MISSING, TopicMissing, "make it with `recd topics create`, or set topics.* to the right name"),
    ({ck.KafkaError.TOPIC_ALREADY_EXISTS}, TopicExists, "nothing to do, or choose another name under topics.*"),
    (_OUT_OF_RANGE, OffsetOutOfRange, "the position is not in the log, look at the topic's retention"),
    (_FENCED, Fenced, "another process uses the same stream.worker_id, or the transaction timed out"),
    (
        _SAME_INSTANCE,
        IdentityTaken,
        "another process uses the same stream.worker_id, or one that was killed still counts until its session is over",
    ),
)


def named(error: ck.KafkaError | ck.KafkaException, *, doing: str, kafka: KafkaConfig) -> KafkaError:
    """The project's error for a foreign one; `doing` says what was tried and where."""
    cause = error.args[0] if isinstance(error, ck.KafkaException) else error
    code = cause.code()
    text = f"{doing}: {cause.str()}"
    for codes, kind, remedy in _NAMED:
        if code in codes or _is_fatal_for(cause, codes):
            return kind(f"{text}; {remedy}")
    if code in _UNSETTLED:
        return LeaderUnsettled(f"the broker at {kafka.bootstrap} is starting or stopping; try again ({text})")
    if code in _UNAVAILABLE:
        return BrokerUnavailable(f"no broker answers at {kafka.bootstrap}; start one or set kafka.bootstrap ({text})")
    if cause.txn_requires_abort():
        return TransactionAborted(text)
    return KafkaError(f"{text} ({cause.name()})")


def _is_fatal_for(error: ck.KafkaError, codes: set[int]) -> bool:
    """Whether the client is dead for one of these reasons: afterwards every call says `_FATAL`, the reason is text."""
    return error.code() == ck.KafkaError._FATAL and any(ck.KafkaError(code).str() in error.str() for code in codes)


def is_unavailable(error: ck.KafkaError) -> bool:
    """Whether the error passes by itself when the broker is back."""
    return error.code() in _UNAVAILABLE | _UNSETTLED or (error.retriable() and not error.fatal())


def is_missing(error: ck.KafkaError) -> bool:
    """Whether the error says that a topic or partition is not there."""
    return error.code() in _MISSING


def is_out_of_range(error: ck.KafkaError) -> bool:
    """Whether the error says that a position lies outside the log."""
    return error.code() in _OUT_OF_RANGE
