"""What a model is made of, by name: stands in the cut, so that a changed model can take over what it still has."""

from __future__ import annotations

import msgspec

Span = tuple[str, int]
"""So many columns in a row, and what they come from."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON object; unknown keys are refused."""


class TableRecord(Record, frozen=True):
    """A table, and what its rows belong to."""

    rows: int
    dim: int
    hashed: bool
    """Whether a reader's ids are hashed into its rows."""
    features: tuple[str, ...]


class ColumnsRecord(Record, frozen=True):
    """What the inputs of a dense parameter are, along one of its axes."""

    axis: int
    spans: tuple[Span, ...]


class ModelRecord(Record, frozen=True):
    """Part of `cut.json`."""

    tables: dict[str, TableRecord]
    columns: dict[str, ColumnsRecord]
    """By parameter; of those whose inputs follow from the features."""
    features: dict[str, str]
    """By feature, a digest of what its ids or numbers mean: its source and its transforms."""
    labels: tuple[str, ...]
    optimizers: dict[str, str]
    rates: dict[str, float]
    sources: dict[str, str] = {}
    """What features and labels are read from, by their path in the config: names that may change, and are told."""
