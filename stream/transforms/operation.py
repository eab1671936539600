"""What an operation is: parameters from the config, a check of its inputs' kinds, and a run on whole columns.

Letters in shapes: U rows, N ids, D dense columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import UnionType
from typing import Any, ClassVar, TypeAlias

import msgspec

from dedup_cache import Jagged
from dedup_cache.arrays import Float32

Column: TypeAlias = Jagged | Float32
"""Id lists of U rows, or numbers float32[U, D]."""


class KindError(Exception):
    """An operation cannot take these inputs; the message says what it takes."""


@dataclass(frozen=True, slots=True)
class Ids:
    """Lists of at most `max_length` ids; all of them in [0, bound) where `bound` is known."""

    max_length: int
    bound: int | None = None

    def __str__(self) -> str:
        """For people."""
        return "a list of ids"


@dataclass(frozen=True, slots=True)
class Numbers:
    """`width` dense columns."""

    width: int

    def __str__(self) -> str:
        """For people."""
        return f"{self.width} dense columns" if self.width > 1 else "a number"


Kind: TypeAlias = Ids | Numbers
NAMES: dict[type | UnionType, str] = {Ids: "ids", Numbers: "numbers", Ids | Numbers: "ids or numbers"}


class Operation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step from one or more columns of the same rows to one column; a pure function of each row.

    `takes` says which kinds of column it reads. Parameters that do not fit each other raise ValueError when they are
    read, which becomes a config error with a path.
    """

    takes: ClassVar[tuple[type | UnionType, ...]] = (Ids,)
    merges: ClassVar[bool] = True
    """Whether it is made to give one result for many inputs; a rare collision of hashes does not count."""

    def inputs(self) -> tuple[type | UnionType, ...]:
        """Kinds of column it reads, in order."""
        return self.takes

    def check(self, kinds: tuple[Kind, ...]) -> Kind:
        """The kind of its result. Raises KindError where it cannot take these columns."""
        wanted = self.inputs()
        if len(kinds) != len(wanted) or not all(map(isinstance, kinds, wanted)):
            names = ", ".join(NAMES[kind] for kind in wanted)
            raise KindError(f"takes {names}; got {', '.join(map(str, kinds))}")
        return self.kind(*kinds)

    def kind(self, *kinds: Any, **_: Any) -> Kind:
        """The kind of its result, for inputs of the kinds that it takes; may raise KindError."""
        raise NotImplementedError

    def run(self, *columns: Any, **_: Any) -> Column:
        """The result for columns of U rows each; never changes them."""
        raise NotImplementedError
