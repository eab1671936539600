"""Which features a batch holds, in which groups and in which order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import msgspec
import xxhash

from dedup_cache.errors import SchemaError

NAME_PATTERN = re.compile(r"[^/\x00-\x1f\x7f\ud800-\udfff]+")


class Slicing(Enum):
    """Whether a writer stores a list feature as overlapping slices; a reader takes either form."""

    AUTO = "auto"
    """Where that saves at least half an id per row."""
    ALWAYS = "always"
    """Where that saves anything."""
    NEVER = "never"
    """One row behind the other, also where the rows came as slices."""


@dataclass(frozen=True)
class GroupSchema:
    """Features that change together and share one inverse.

    `dense` names the columns of the dense matrix, `lists` the list features; both orders are part of the contract.
    `slicing` has one entry per list feature (none: AUTO for all) and is none of the reader's business.
    Raises SchemaError for a name that is empty, doubled, or holds a slash or a control character.
    """

    name: str
    dense: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    slicing: tuple[Slicing, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        _check_names("group", (self.name,))
        _check_names(f"feature of group '{self.name}'", (*self.dense, *self.lists))
        if not self.slicing:
            object.__setattr__(self, "slicing", (Slicing.AUTO,) * len(self.lists))
        if len(self.slicing) != len(self.lists):
            raise SchemaError(f"group '{self.name}': slicing of {len(self.slicing)} lists, it has {len(self.lists)}")

    @cached_property
    def digest_32(self) -> int:
        """32 bits that change with any name or its place."""
        return xxhash.xxh32_intdigest(msgspec.json.encode(_group_form(self)))


@dataclass(frozen=True)
class BatchSchema:
    """Groups and labels of a batch; `salt` is the version of the transforms that made the values."""

    groups: tuple[GroupSchema, ...]
    labels: tuple[str, ...]
    salt: str = ""

    def __post_init__(self) -> None:
        _check_names("group", [group.name for group in self.groups])
        _check_names("label", self.labels)

    @cached_property
    def _digest(self) -> str:
        form = [[_group_form(group) for group in self.groups], self.labels, self.salt]
        return xxhash.xxh3_128_hexdigest(msgspec.json.encode(form))

    def group_salt(self, group: GroupSchema) -> bytes:
        """What the fingerprints of a group's rows begin with: other transforms or features give others."""
        return f"{self.salt}/{group.digest_32:08x}".encode()

    def digest(self) -> str:
        """Return a hex hash of names, orders and salt, the same in every process and version."""
        return self._digest


def _group_form(group: GroupSchema) -> list[object]:
    return [group.name, group.dense, group.lists]


def _check_names(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not NAME_PATTERN.fullmatch(name):
            raise SchemaError(f"{what} name {name!r}: must be a text without slash or control characters")
        if name in seen:
            raise SchemaError(f"{what} name {name!r} stands there twice")
        seen.add(name)
