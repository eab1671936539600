"""Records that say a name more than once: a reader that takes the last value must not overlook the others."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from recd.audit.fields import SCHEMA, Field, Reasons

_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"(\s*:)?', re.DOTALL)


class _Members(list[tuple[str, Any]]):
    """An object as it is written: (name, value), repeats included."""


@dataclass(slots=True)
class _Node:
    """A part of a path: an object with children, or a value with the demands on it."""

    children: dict[str, _Node] = field(default_factory=dict)
    demands: list[Field] = field(default_factory=list)
    is_required: bool = False
    reasons: set[str] = field(default_factory=set)
    """What it means if the value is required, but missing or null."""


class Repeats:
    """Judges every occurrence of the configured paths."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._root = _Node()
        for one in fields:
            node = self._root
            for name in one.path.split("."):
                node = node.children.setdefault(name, _Node())
                node.is_required |= one.is_required
                node.reasons |= one.reasons
            node.demands.append(one)
        self._names = sorted({f'"{name}"'.encode() for one in fields for name in one.path.split(".")})
        self._decode = json.JSONDecoder(
            object_pairs_hook=_Members, parse_int=_number, parse_float=_number, strict=False
        ).decode

    def may_be_in(self, value: bytes) -> bool:
        """Whether a configured name may stand in the record twice: at a glance, and never a wrong no."""
        count = value.count
        if any(count(name) > 1 for name in self._names):
            return True
        return b"\\" in value and any(found[1] and b"\\" in found[0] for found in _STRINGS.finditer(value))

    def broken_rules(self, value: bytes) -> Reasons:
        """What is wrong with any occurrence, in a record that is JSON; every object must be whole by itself."""
        found = self._decode(value.decode(errors="surrogateescape"))
        return frozenset(_broken(found, self._root))


def _broken(found: Any, node: _Node) -> set[str]:
    """Reasons against one occurrence of a value."""
    if found is None:
        return set(node.reasons) if node.is_required else set()
    if not node.children:
        return set().union(*(one.reasons for one in node.demands if not one.fits(found)))
    if not isinstance(found, _Members):
        return set(SCHEMA)
    reasons: set[str] = set()
    for name, value in found:
        if name in node.children:
            reasons |= _broken(value, node.children[name])
    missing = node.children.keys() - {name for name, _ in found}
    for name in missing:
        reasons |= _broken(None, node.children[name])
    return reasons


def _number(text: str) -> int | float | None:
    """A number as the fast reader sees it; None where it is out of its range, which only unread fields may be."""
    try:
        number: int | float = msgspec.json.decode(text)
    except msgspec.ValidationError:
        return None
    return number
