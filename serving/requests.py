"""What is asked, whatever the protocol: columns of one user and K candidates; and the body of `POST /score`.

Letters in shapes: K candidates, R rows of a column: 1 where all candidates share it, else K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import GenericAlias
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from dedup_cache import Jagged
from dedup_cache.arrays import Float32
from serving.errors import RequestError
from stream.columns import ImpressionColumns, ImpressionReader
from stream.config import FeatureConfig
from stream.event_schema import TYPES, Float32Number
from stream.hashing import hash_strings

MAX_CANDIDATES = 10_000
KNOWN_FORMS = 64
"""Sets of features that candidates bring, each with a reader of its own that is kept."""

ItemType = Literal["id", "int", "string"]
"""What the items of a session's history are: as events give them, `id` is either."""
Column = Jagged | Float32
"""Ids of R rows, or float32[R, numbers of the feature]."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One user, K candidates; every feature by its name in the config."""

    num_candidates: int
    columns: Mapping[str, Column]


def as_read(feature: FeatureConfig, *, items: ItemType) -> FeatureConfig:
    """A feature as requests bring it: under its own name, what the session gives in the stream included."""
    if feature.source is None:
        return msgspec.structs.replace(feature, field=None)
    if feature.is_dense:
        return msgspec.structs.replace(feature, field=None, source=None, type="float", default=0.0)
    kind: Any = "list[string]" if items == "string" else "list[int]"
    return msgspec.structs.replace(feature, field=None, source=None, type=kind)


class RequestSchema:
    """Reads bodies for one set of features, each by its name in the config and with its type.

    Null means missing, for a candidate too, whatever the shared value is. Items of a session's history are ids as the
    events have them. Safe to use from several threads.
    """

    def __init__(self, features: Sequence[FeatureConfig], *, items: ItemType = "id") -> None:
        self._features = [as_read(feature, items=items) for feature in features]
        self._mixed = {f.name for f in features if f.source is not None and not f.is_dense and items == "id"}
        self._attributes = {feature.name: f"f{i}" for i, feature in enumerate(features)}
        self._all_attributes = attrgetter(*self._attributes.values()) if len(features) > 1 else None
        values = msgspec.defstruct(
            "Features",
            [(self._attributes[f.name], self._type(f) | None | UnsetType, UNSET) for f in self._features],
            rename={attribute: name for name, attribute in self._attributes.items()},
            forbid_unknown_fields=True,
            gc=False,
        )
        candidates = Annotated[list[values], msgspec.Meta(max_length=MAX_CANDIDATES)]  # type: ignore[valid-type]
        body = msgspec.defstruct(
            "Body",
            [("candidates", candidates), ("features", values, msgspec.field(default_factory=values))],
            forbid_unknown_fields=True,
        )
        self._decoder = msgspec.json.Decoder(body)
        self._readers: dict[tuple[str, ...], ImpressionReader] = {}

    def decode(self, body: bytes) -> ScoreRequest:
        """Check and read a body; RequestError with the path of the first thing that does not fit."""
        try:
            decoded: Any = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(str(error).replace("`", "")) from None
        if not decoded.candidates:
            return ScoreRequest(0, {})
        shared = dict(zip(self._attributes, self._tuple(decoded.features), strict=True))
        own = dict(zip(self._attributes, zip(*map(self._tuple, decoded.candidates), strict=True), strict=True))
        count = len(decoded.candidates)
        given = {name for name in own if own[name].count(UNSET) < count}
        mine = {f.name: self._column(f, shared[f.name], own[f.name]) for f in self._features if f.name in given}
        theirs = {f.name: self._column(f, shared[f.name], None) for f in self._features if f.name not in given}
        return ScoreRequest(count, self._columns(mine, num_rows=count) | self._columns(theirs, num_rows=1))

    def _columns(self, values: Mapping[str, list[Any]], *, num_rows: int) -> dict[str, Column]:
        if not values:
            return {}
        names = tuple(values)
        features = [feature for feature in self._features if feature.name in values]
        reader = self._readers.get(names)
        if reader is None:
            if len(self._readers) >= KNOWN_FORMS:
                self._readers.clear()
            reader = self._readers[names] = ImpressionReader(_ByName(), features=features, labels=())
        impressions: Any = _Given(values, num_rows=num_rows)
        return split(reader.read(impressions), features)

    def _tuple(self, values: msgspec.Struct) -> tuple[Any, ...]:
        if self._all_attributes is None:
            return (getattr(values, "f0"),) if self._attributes else ()  # noqa: B009 - made at run time
        found: tuple[Any, ...] = self._all_attributes(values)
        return found

    def _column(self, feature: FeatureConfig, shared: Any, own: Sequence[Any] | None) -> list[Any]:
        """What `own` says of each candidate, or else what is shared; None for missing."""
        shared = None if shared is UNSET else shared
        column = [shared] if own is None else [shared if value is UNSET else value for value in own]
        if feature.required and None in column:
            at = "features" if own is None else f"candidates[{column.index(None)}]"
            raise RequestError(f"Feature {feature.name} is required, but missing - at $.{at}.{feature.name}")
        return [_hashed(ids) for ids in column] if feature.name in self._mixed else column

    def _type(self, feature: FeatureConfig) -> Any:
        if feature.name in self._mixed:
            return GenericAlias(list, TYPES["id"])
        if feature.type == "list[float]":
            return Annotated[list[Float32Number], msgspec.Meta(min_length=feature.length, max_length=feature.length)]
        return TYPES[feature.type]


class _Given:
    """Values by feature name, in place of decoded events."""

    def __init__(self, values: Mapping[str, list[Any]], *, num_rows: int) -> None:
        self.values = values
        self._num_rows = num_rows

    def __len__(self) -> int:
        return self._num_rows


class _ByName:
    """As `EventSchema`: gives the fields of what was read."""

    def column(self, events: Any, path: str) -> list[Any]:
        """The values of the feature of this name."""
        values: list[Any] = events.values[path]
        return values


def split(read: ImpressionColumns, features: Sequence[FeatureConfig]) -> dict[str, Column]:
    """By feature name, what an ImpressionReader of these features read."""
    columns: dict[str, Column] = {}
    lists, dense, single = iter(read.lists), 0, 0
    for feature in features:
        if feature.is_dense:
            width = len(feature.dense_columns)
            columns[feature.name] = read.dense[:, dense : dense + width]
            dense += width
        elif feature.type in ("int", "string"):
            present = read.has_id[:, single]
            columns[feature.name] = Jagged.from_lengths(read.ids[present, single], present.astype(np.int32))
            single += 1
        else:
            columns[feature.name] = next(lists)
    return columns


def _hashed(ids: list[int | str] | None) -> list[int] | None:
    """Items that may be of either kind, as `session.items` has them: an integer is itself, a string its hash."""
    if ids is None:
        return None
    hashes = iter(hash_strings([item for item in ids if isinstance(item, str)]).tolist())
    return [next(hashes) if isinstance(item, str) else item for item in ids]
