"""What a changed model takes over from a cut, by name; pure: names and shapes in, moves out.

Rows of a table that has grown: where ids are hashed, `hash mod k*N` gives, mod N, what `hash mod N` gave, so a table
of k times as many rows takes each new row from the old one that the same ids had. Where ids are rows as they are, the
rows stay where they were. Anything else would give rows to other ids, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from trainer.cut_files import CutError
from trainer.model_record import ColumnsRecord, ModelRecord, Span, TableRecord

Shapes = Mapping[str, tuple[int, ...]]
NEW = -1
SHOWN = 3
ANEW = "or set trainer.checkpoint_url to an empty folder to start anew"


class TakeoverError(CutError):
    """The cut cannot be taken over by this model; the message says what differs and what to do."""


@dataclass(frozen=True, eq=False)
class Move:
    """Fill a tensor of the model from one of the cut, along one axis."""

    saved: str
    own: str
    axis: int = 0
    source: np.ndarray | None = None
    """By place along `axis`, the place in the cut; NEW where the tensor keeps what it has. None: all of it as it is."""
    shards: int = 1
    """Of a value per row and column shard: how many there are in the cut, to be averaged into one per row."""


class TakenOver(msgspec.Struct, frozen=True):
    """What a resume did to the model: tensors and columns by name, for people."""

    cut: str
    taken: int
    """Tensors of the model that come from the cut."""
    grown: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    """Initialised."""
    dropped: tuple[str, ...] = ()
    """In the cut, but not in the model."""
    changed: tuple[str, ...] = ()
    """Settings that are others now."""

    @property
    def is_changed(self) -> bool:
        """Whether anything is not as it was."""
        return bool(self.grown or self.new or self.dropped or self.changed)


@dataclass(frozen=True)
class Takeover:
    """Moves, and what they amount to."""

    moves: list[Move]
    taken_over: TakenOver


def plan_takeover(cut: str, *, saved: Shapes, own: Shapes, was: ModelRecord, now: ModelRecord) -> Takeover:
    """How the model `now` with the tensors `own` goes on from `saved`, the tensors of the model `was`.

    Raises TakeoverError, with all that does not fit.
    """
    return _Planner(saved, own, was, now).plan(cut)


def plan_exactly(cut: str, *, saved: Shapes, own: Shapes) -> Takeover:
    """Everything as it is, where neither side says what its tensors are. TakeoverError."""
    odd = [key for key in {**saved, **own} if saved.get(key) != own.get(key)]
    if odd:
        key = min(odd, key=lambda name: (not name.startswith("model/"), name))
        was, now = (str(list(part[key])) if key in part else "missing" for part in (saved, own))
        raise TakeoverError(
            f"{cut} does not fit the model: {len(odd)} tensors differ, the first: {key} is {was} in the cut and {now} "
            f"in the model; go back to the former config, {ANEW}"
        )
    moves = [Move(key, key) for key in own]
    return Takeover(moves, TakenOver(cut, taken=sum(key.startswith("model/") for key in own)))


class _Planner:
    def __init__(self, saved: Shapes, own: Shapes, was: ModelRecord, now: ModelRecord) -> None:
        self._saved, self._own, self._was, self._now = saved, own, was, now
        self._grown: set[str] = set()
        self._new: set[str] = set()
        self._dropped: set[str] = set()
        self._errors: list[str] = []

    def plan(self, cut: str) -> Takeover:
        self._check_meaning()
        there = {_canonical(key, self._was.labels): key for key in self._saved}
        here = {_canonical(key, self._now.labels): key for key in self._own}
        moves = [self._move(there[name], key) for name, key in here.items() if name in there]
        for name in here.keys() - there.keys():
            self._note_missing(name, there, noted=self._new, where="not in the cut")
        for name in there.keys() - here.keys():
            self._note_missing(name, here, noted=self._dropped, where="in the cut, and has no place in the model")
        if self._errors:
            shown, more = "; ".join(self._errors[:SHOWN]), len(self._errors) - SHOWN
            rest = f"; and {more} more" if more > 0 else ""
            raise TakeoverError(f"{cut} does not fit the model: {shown}{rest}; go back to the former config, {ANEW}")
        done = TakenOver(
            cut,
            taken=sum(name in there and _weight_of(name) == name for name in here),
            grown=tuple(sorted(self._grown)),
            new=tuple(sorted(self._new)),
            dropped=tuple(sorted(self._dropped)),
            changed=self._changed(),
        )
        return Takeover([move for move in moves if move], done)

    def _check_meaning(self) -> None:
        for name, kind in self._now.optimizers.items():
            if (former := self._was.optimizers.get(name)) != kind:
                self._errors.append(
                    f"the {name} optimizer was {former} and is {kind}, which cannot go on from its state: "
                    f"set trainer.optimizer.{name} back to {former}"
                )
        for feature, meaning in self._now.features.items():
            if self._was.features.get(feature, meaning) != meaning:
                self._errors.append(
                    f"feature '{feature}' comes from another source or other transforms, so that what was learned of "
                    "it means something else now: give it a name of its own"
                )
        for name, table in self._now.tables.items():
            if (former_table := self._was.tables.get(name)) is not None:
                self._errors += _misfit(name.removeprefix("t_"), was=former_table, now=table)

    def _note_missing(self, name: str, others: Mapping[str, str], *, noted: set[str], where: str) -> None:
        """A weight that only one of both has is new or dropped; state of a weight that both have is an error."""
        weight = _weight_of(name)
        if weight == name:
            noted.add(_for_people(name))
        elif weight in others:
            self._errors.append(f"optimizer state {name} is {where}: was it another optimizer or sharding?")

    def _move(self, saved_key: str, own_key: str) -> Move | None:
        saved, own = self._saved[saved_key], self._own[own_key]
        table = _table_of(own_key)
        if table is not None and saved and table in self._was.tables and table in self._now.tables:
            move = _move_rows(saved_key, own_key, saved, own, self._was.tables[table], self._now.tables[table])
            if move is not None:
                if move.source is not None:
                    self._grown.add(
                        f"{_for_people(own_key)}: {_grown(self._was.tables[table], self._now.tables[table])}"
                    )
                return move
        elif (name := _parameter(own_key)) in self._now.columns and len(saved) == len(own) and saved:
            before, after = self._was.columns.get(name), self._now.columns[name]
            if before is not None and before.axis == after.axis and _fits(saved, own, before, after):
                return self._move_columns(saved_key, own_key, before, after)
        if saved == own:
            return Move(saved_key, own_key)
        if not self._errors or table is None:
            self._errors.append(f"{own_key} is {list(saved)} in the cut and {list(own)} in the model")
        return None

    def _move_columns(self, saved: str, own: str, before: ColumnsRecord, after: ColumnsRecord) -> Move:
        if before.spans == after.spans:
            return Move(saved, own)
        places = _places(before.spans)
        source = np.concatenate([places.get(span, np.full(span[1], NEW)) for span in after.spans])
        if own.startswith("model/"):
            what = _for_people(own)
            self._new |= _inputs(what, set(after.spans) - set(before.spans))
            self._dropped |= _inputs(what, set(before.spans) - set(after.spans))
        return Move(saved, own, after.axis, source)

    def _changed(self) -> tuple[str, ...]:
        def changes(was: Mapping[str, object], now: Mapping[str, object], *, path: str) -> Iterator[str]:
            for name, value in now.items():
                if was.get(name, value) != value:
                    yield f"{path}{name}: {was[name]} -> {value}"

        was, now = self._was, self._now
        rates = changes(was.rates, now.rates, path="trainer.optimizer.")
        return (*rates, *changes(was.sources, now.sources, path=""))


def _misfit(owner: str, *, was: TableRecord, now: TableRecord) -> Iterator[str]:
    path = f"trainer.model.tables.{owner}"
    if was.dim != now.dim:
        yield (
            f"the table of '{owner}' has dimension {was.dim} in the cut and {now.dim} in the config: set {path}.dim to "
            f"{was.dim}, or give the feature another name to begin its table anew"
        )
    elif now.rows < was.rows or (now.rows % was.rows and now.hashed):
        yield (
            f"the table of '{owner}' has {was.rows} rows in the cut and {now.rows} in the config, so that its rows "
            f"would belong to other ids: set {path}.rows to a multiple of {was.rows}"
        )


def _move_rows(
    saved_key: str, own_key: str, saved: tuple[int, ...], own: tuple[int, ...], was: TableRecord, now: TableRecord
) -> Move | None:
    """Rows to rows; None where these are no rows of the table."""
    shards_before, odd_before = divmod(saved[0], was.rows)
    shards_after, odd_after = divmod(own[0], now.rows)
    if odd_before or odd_after or len(saved) != len(own) or saved[1:] != own[1:]:
        return None
    if (was.rows, shards_before) == (now.rows, shards_after):
        return Move(saved_key, own_key)
    rows = np.arange(now.rows)
    # Ids that are rows themselves: what lies behind the old rows has never been learned. Hashed ones: see above.
    source = rows % was.rows if now.hashed else np.where(rows < was.rows, rows, NEW)
    if shards_before == shards_after:
        parts = [np.where(source == NEW, NEW, source + shard * was.rows) for shard in range(shards_after)]
        return Move(saved_key, own_key, source=np.concatenate(parts))
    return Move(saved_key, own_key, source=np.tile(source, shards_after), shards=shards_before)


def _fits(saved: tuple[int, ...], own: tuple[int, ...], before: ColumnsRecord, after: ColumnsRecord) -> bool:
    """Whether the shapes are as the records say, and differ along that axis only."""
    axis = after.axis
    counts = (sum(count for _, count in record.spans) for record in (before, after))
    alike = all(a == b for place, (a, b) in enumerate(zip(saved, own, strict=True)) if place != axis)
    return alike and (saved[axis], own[axis]) == tuple(counts)


def _places(spans: Sequence[Span]) -> dict[Span, np.ndarray]:
    ends = np.cumsum([count for _, count in spans])
    return {span: np.arange(end - span[1], end) for span, end in zip(spans, ends, strict=True)}


def _inputs(what: str, spans: set[Span]) -> set[str]:
    """Which inputs of a parameter it is about, in one line; nothing where it is about none."""
    names = sorted(name for name, _ in spans)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return {f"{what}: inputs {', '.join(names[:SHOWN])}{more}"} if names else set()


def _grown(was: TableRecord, now: TableRecord) -> str:
    return f"{was.rows} -> {now.rows} rows" if was.rows != now.rows else "another number of column shards"


def _canonical(key: str, labels: Sequence[str]) -> str:
    """A name that does not depend on which table lies where, nor on the order of labels."""
    if (table := _table_of(key)) is not None:
        kind, _, state = key.partition("/")[0], *key.rpartition("/")[1:]
        return f"table {table}/weight" if kind == "model" else f"table {table}/{kind}.{state.rpartition('.')[2]}"
    return re.sub(r"\bheads\.towers\.(\d+)\.", lambda match: f"heads.{labels[int(match[1])]}.", key)


def _weight_of(name: str) -> str:
    """The weight that an optimizer's state belongs to; a weight itself."""
    if name.startswith("table "):
        return name.rpartition("/")[0] + "/weight"
    return name if name.startswith("model/") else f"model/{_parameter(name)}"


def _parameter(key: str) -> str:
    """`model/a.b` and `dense/a.b/exp_avg` are of `a.b`."""
    return key.split("/")[1]


def _table_of(key: str) -> str | None:
    match = re.search(r"/embeddings\..*\.([^./]+)\.weight", key)
    return match[1] if match else None


def _for_people(key: str) -> str:
    if key.startswith("table "):
        return key.rpartition("/")[0]
    return f"table {table}" if (table := _table_of(key)) else _parameter(key)
