"""What a sample is made of: features, features made of others, labels."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from stream.config.section import Name, Positive, Section
from stream.transforms import Ids, Kind, Numbers, Transform

FeatureType = Literal["int", "string", "float", "list[int]", "list[string]", "list[float]"]

SessionSource = Literal[
    "session.items",
    "session.engaged_items",
    "session.impressions",
    "session.engagements",
    "session.ms_since_last_event",
    "session.ms_since_start",
]

DENSE_SOURCES = (
    "session.impressions",
    "session.engagements",
    "session.ms_since_last_event",
    "session.ms_since_start",
)


class FeatureConfig(Section, frozen=True):
    """One feature of an impression.

    `int`, `string` and their lists are ids: a list column of int64 (one id, or none where it is missing); strings
    are hashed to 64 bits. `float` is one dense column, `list[float]` is `length` dense columns.
    """

    name: Name
    group: Name
    """Features of a group change together and share one inverse (RecD's grouped features)."""
    type: FeatureType = "int"
    field: str | None = None
    """Path of the field in the event; the feature's own name by default."""
    source: SessionSource | None = None
    """Computed from the session instead of read: only events strictly before the impression's time count."""
    max_length: Positive = 50
    """Lists: only the last `max_length` ids are kept."""
    slices: Literal["auto", "always", "never"] = "auto"
    """Lists: whether batches store them as overlapping slices, which pays where they grow or slide within a session.
    `auto` decides batch by batch; samples are the same in any form."""
    length: Positive = 1
    """`list[float]`: exactly so many numbers, anything else is quarantined."""
    required: bool = False
    """An impression without it is quarantined; otherwise it counts as an empty list or `default`."""
    default: float = 0.0
    transforms: tuple[Transform, ...] = ()
    """Operations on its distinct rows, one after the other (`stream.transforms`): what batches hold is the result."""
    in_batch: bool = True
    """False: batches leave it out, only features of `derived` read it."""

    @property
    def kind(self) -> Kind:
        """What it is before its transforms."""
        if self.is_dense:
            return Numbers(len(self.dense_columns))
        return Ids(self.max_length if self.source or self.type.startswith("list") else 1)

    @property
    def is_dense(self) -> bool:
        """Whether the feature is made of dense columns."""
        return self.source in DENSE_SOURCES if self.source else self.type in ("float", "list[float]")

    @property
    def dense_columns(self) -> tuple[str, ...]:
        """Names of the feature's dense columns, empty for id features."""
        if not self.is_dense:
            return ()
        if self.type != "list[float]" or self.source:
            return (self.name,)
        return tuple(f"{self.name}.{i}" for i in range(self.length))


class DerivedConfig(Section, frozen=True):
    """A feature made of others, in the group of its inputs, which must be one and the same.

    The inputs are features as they are after their own transforms, of `features` or further up in `derived`.
    """

    name: Name
    inputs: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    transforms: tuple[Transform, ...] = ()
    """The first operation reads the inputs, each further one what the one before it made."""
    in_batch: bool = True
    """False: batches leave it out, only further features of `derived` read it."""


class LabelConfig(Section, frozen=True):
    """One target: 1.0 where the impression found one of these engagements in its session, else 0.0."""

    name: Name
    engagements: tuple[str, ...]
    score_field: str | None = None
    """A logged probability on the impression (the truth of a simulator, the model in production), evaluated beside
    the trainer's own prediction. An event with a number outside [0, 1] there is quarantined."""
