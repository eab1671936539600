"""The struct that a record decodes into, made from the configured paths.

Every configured field that a record holds must have its type, whatever the kind of event; null means missing.
Fields that nobody configured are skipped unread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import numpy as np

from stream.config import ConfigError, EventsConfig, FeatureConfig, LabelConfig

MAX_TIME_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""
FLOAT32_MAX = float(np.finfo(np.float32).max)
Int64Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Float32Number = Annotated[float, msgspec.Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
TYPES: dict[str, Any] = {
    "id": Int64Number | str,
    "time[ms]": Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_MS)],
    "time[s]": Annotated[float, msgspec.Meta(ge=0.0, le=MAX_TIME_MS / 1000)],
    "string": str,
    "int": Int64Number,
    "float": Float32Number,
    "probability": Annotated[float, msgspec.Meta(ge=0.0, le=1.0)],
    "list[int]": list[Int64Number],
    "list[string]": list[str],
}
NARROWER = {
    frozenset({"id", "int"}): "int",
    frozenset({"id", "string"}): "string",
    frozenset({"int", "float"}): "int",
    frozenset({"float", "probability"}): "probability",
    frozenset({"int", "time[ms]"}): "time[ms]",
    frozenset({"float", "time[ms]"}): "time[ms]",
    frozenset({"float", "time[s]"}): "time[s]",
}
"""What a field must be that two users read as different types."""


@dataclass(frozen=True, slots=True)
class Step:
    """One descent: the attribute, and what stands for a missing object."""

    attribute: str
    empty: msgspec.Struct | None


@dataclass(slots=True)
class _Node:
    """A path component under construction: an object with children, or a leaf with a type."""

    children: dict[str, _Node] = field(default_factory=dict)
    type_name: str = ""
    required: bool = False


class EventSchema:
    """Decoder of one record, and access to its fields by the user's own paths.

    Raises ConfigError where a path is both a value and an object, or is read as two types that exclude each other.
    """

    def __init__(
        self, events: EventsConfig, *, features: Sequence[FeatureConfig], labels: Sequence[LabelConfig]
    ) -> None:
        self._root = _Node()
        fields = events.fields
        self._add(fields.key, "id", required=True)
        self._add(fields.time, f"time[{events.time_unit}]", required=True)
        self._add(fields.type, "string", required=True)
        self._add(fields.item, "id")
        if fields.event_id is not None:
            self._add(fields.event_id, "id", required=True)
        if fields.impression_id is not None:
            self._add(fields.impression_id, "id")
        for feature in features:
            if feature.source is None:
                self._add(feature_path(feature), _feature_type(feature))
        for label in labels:
            if label.score_field is not None:
                self._add(label.score_field, "probability")
        self._steps: dict[str, tuple[Step, ...]] = {}
        self.types: dict[str, str] = {}
        """What stands at each path, by the names of TYPES; `list[float,N]` has N numbers."""
        struct = self._build(self._root, prefix="", steps=())
        self.struct = struct
        """What a record of any format becomes."""
        self.decoder: msgspec.json.Decoder[msgspec.Struct] = msgspec.json.Decoder(struct)

    def column(self, events: Sequence[msgspec.Struct], path: str) -> list[Any]:
        """The field at `path` of every event; None where it is missing."""
        *parents, leaf = self._steps[path]
        column: Sequence[Any] = events
        for parent in parents:
            empty = parent.empty
            column = [empty if value is None else value for value in map(attrgetter(parent.attribute), column)]
        return list(map(attrgetter(leaf.attribute), column))

    def _add(self, path: str, type_name: str, *, required: bool = False) -> None:
        node = self._root
        for name in path.split("."):
            if not name or node.type_name:
                raise ConfigError(f"events: the path '{path}' has an empty part or leads through a value")
            node = node.children.setdefault(name, _Node())
            node.required |= required
        if node.children:
            raise ConfigError(f"events: the path '{path}' is read as a value and as an object")
        node.type_name = _intersect(path, node.type_name, type_name)

    def _build(self, node: _Node, *, prefix: str, steps: tuple[Step, ...]) -> type[msgspec.Struct]:
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        names = {f"f{i}": name for i, name in enumerate(node.children)}
        for attribute, name in names.items():
            child, path = node.children[name], f"{prefix}{name}"
            if child.children:
                here: Any = self._build(child, prefix=f"{path}.", steps=(*steps, Step(attribute, None)))
                empty = None if child.required else here()
                self._fill(f"{path}.", depth=len(steps), empty=empty)
            else:
                here = TYPES.get(child.type_name) or _float_list(child.type_name)
                self._steps[path] = (*steps, Step(attribute, None))
                self.types[path] = child.type_name
            fields.append((attribute, here) if child.required else (attribute, here | None, None))
        return msgspec.defstruct("Event", fields, rename=names, kw_only=True, gc=False)

    def _fill(self, prefix: str, *, depth: int, empty: msgspec.Struct | None) -> None:
        for path, steps in self._steps.items():
            if path.startswith(prefix):
                filled = Step(steps[depth].attribute, empty)
                self._steps[path] = (*steps[:depth], filled, *steps[depth + 1 :])


def feature_path(feature: FeatureConfig) -> str:
    """Where the feature stands in the event."""
    return feature.field if feature.field is not None else feature.name


def _feature_type(feature: FeatureConfig) -> str:
    return f"list[float,{feature.length}]" if feature.type == "list[float]" else feature.type


def _float_list(type_name: str) -> Any:
    length = int(type_name.removeprefix("list[float,").removesuffix("]"))
    return Annotated[list[Float32Number], msgspec.Meta(min_length=length, max_length=length)]


def _intersect(path: str, one: str, other: str) -> str:
    if one in ("", other):
        return other
    narrower = NARROWER.get(frozenset({one, other}))
    if narrower is None:
        raise ConfigError(f"events: the field '{path}' is read as {one} and as {other}; it can only be one")
    return narrower
