"""`recd transactions`: those that never end in the topics of a job, and their end."""

from __future__ import annotations

from dataclasses import dataclass

from stream.config import Config
from stream.kafka import KafkaError, TopicMissing
from stream.kafka.hanging import Hanging, end_hanging, find_hanging, offsets_place, unread
from stream.kafka.transaction_log import Decision
from stream.stuck import own_topics

__all__ = ["Found", "look_for_hanging"]


@dataclass(frozen=True, slots=True)
class Found:
    """What hung, what was done about it, and what hangs still."""

    lines: tuple[str, ...]
    left: int


def look_for_hanging(config: Config, *, end: bool, abort_unknown: bool = False) -> Found:
    """Look at every topic of the configuration; with `end`, end what hangs as its coordinator decided.

    What may have been committed, for all that is known, is left alone unless `abort_unknown`. Raises KafkaError.
    """
    hanging, refused = _hanging(config)
    if not hanging:
        return Found((*refused, "no transaction hangs"), 0)
    if not end:
        return Found((*refused, *(one.message(config.kafka.bootstrap) for one in hanging)), len(hanging))
    end_hanging(config.kafka, [one for one in hanging if abort_unknown or not one.undecided])
    left = {_name(one) for one in _hanging(config)[0]}
    lines = tuple(_line(one, ended=_name(one) not in left, bootstrap=config.kafka.bootstrap) for one in hanging)
    return Found((*refused, *lines), len(left))


def _hanging(config: Config) -> tuple[list[Hanging], list[str]]:
    """What hangs, and why not everything could be looked at."""
    kafka, refused = config.kafka, []
    places = [one.place for one in unread(kafka, own_topics(config))]
    try:
        offsets = offsets_place(kafka, config.stream.group_id)
        places += [one.place for one in unread(kafka, [offsets[0]]) if one.place == offsets]
    except TopicMissing:
        pass  # no group ever committed anything
    except KafkaError as error:
        refused.append(f"not looked at: the offsets of group '{config.stream.group_id}': {error}")
    return find_hanging(kafka, places), refused


def _name(one: Hanging) -> str:
    at = one.opened
    return f"{at.topic}[{at.partition}]: the transaction of producer {at.producer_id} from offset {at.start_offset} on"


def _line(one: Hanging, *, ended: bool, bootstrap: str) -> str:
    if not ended:
        return f"not ended: {one.message(bootstrap)}"
    outcome = "committed" if one.decision is Decision.COMMIT else "aborted"
    known = "as its coordinator had decided"
    if one.decision is Decision.UNKNOWN:
        known = "how it had ended was not known" if one.undecided else "nobody knew it"
    return f"{_name(one)} is {outcome} now, {known}"
