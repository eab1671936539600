"""What the configured fields of a record may hold, whatever the kind of event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from stream.config import Config, FeatureConfig

MAX_TIME_MS = 253_402_300_799_999
FLOAT32_MAX = 3.4028234663852886e38

Check = Callable[[Any], bool]
Reasons = frozenset[str]
"""Why a record belongs into quarantine; where several rules are broken, any of them may be named."""

SCHEMA: Reasons = frozenset({"schema"})
TIME: Reasons = frozenset({"time", "schema"})


class Field(NamedTuple):
    """What one reader of a path demands of it; null counts as missing."""

    path: str
    fits: Check
    is_required: bool = False
    """For an event of any kind."""
    reasons: Reasons = SCHEMA


def fields_of(config: Config) -> list[Field]:
    """Every demand of the configuration; several may be of one path."""
    events, names = config.events, config.events.fields
    found = [
        Field(names.key, _is_id, is_required=True),
        Field(names.time, _is_time_ms if events.time_unit == "ms" else _is_time_s, is_required=True, reasons=TIME),
        Field(names.type, _is_string, is_required=True),
        Field(names.item, _is_id),
    ]
    if names.event_id is not None:
        found.append(Field(names.event_id, _is_id, is_required=True))
    if names.impression_id is not None:
        found.append(Field(names.impression_id, _is_id))
    found += [Field(path_of(f), _check_of(f)) for f in config.features if f.source is None]
    found += [Field(label.score_field, _is_probability) for label in config.labels if label.score_field is not None]
    return found


def path_of(feature: FeatureConfig) -> str:
    """Where a feature stands in the record."""
    return feature.name if feature.field is None else feature.field


def _is_int(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_string(value: Any) -> bool:
    return type(value) is str


def _is_id(value: Any) -> bool:
    return type(value) is str or _is_int(value)


def _is_time_ms(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_TIME_MS


def _is_time_s(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= MAX_TIME_MS / 1000


def _is_float(value: Any) -> bool:
    return type(value) in (int, float) and -FLOAT32_MAX <= value <= FLOAT32_MAX


def _is_probability(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


_ELEMENTS: dict[str, Check] = {"int": _is_int, "string": _is_string, "float": _is_float}


def _check_of(feature: FeatureConfig) -> Check:
    if feature.type in _ELEMENTS:
        return _ELEMENTS[feature.type]
    fits = _ELEMENTS[feature.type[5:-1]]
    length = feature.length if feature.type == "list[float]" else None
    return lambda value: type(value) is list and length in (None, len(value)) and all(map(fits, value))
