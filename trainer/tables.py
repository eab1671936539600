"""Which tables the model has, who reads them, and which of them are looked up together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stream.config import ConfigError, ModelConfig, TableConfig
from trainer.ikjt import GroupSpec

LANES = 4
"""FBGEMM's kernels take so many columns at a time."""
BAGS = ("sum", "mean")
"""Poolings that happen inside the lookup."""


@dataclass(frozen=True)
class Table:
    """One table and the features that read it; `as_bag` where every one of them is a sum or mean of rows."""

    name: str
    owner: str
    rows: int
    dim: int
    features: tuple[str, ...]
    as_bag: bool


@dataclass(frozen=True)
class Unit:
    """Groups that are looked up together, because they share a table or because VBE takes all in one."""

    name: str
    groups: tuple[str, ...]
    bags: tuple[Table, ...]
    sequences: tuple[Table, ...]


def tables_of_model(specs: Mapping[str, GroupSpec], config: ModelConfig) -> list[Table]:
    """In the order of the features. Raises ConfigError."""
    rows = {feature: rows for spec in specs.values() for feature, rows in spec.table_rows.items()}
    readers: dict[str, list[str]] = {}
    for feature in rows:
        readers.setdefault(_owner(feature, rows, config), []).append(feature)
    return [_table(owner, tuple(names), rows=rows[owner], config=config) for owner, names in readers.items()]


def units(specs: Mapping[str, GroupSpec], tables: Sequence[Table], *, together: bool) -> list[Unit]:
    """Groups with id features, those joined by a table in one unit; `together` puts all of them into one."""
    group_of = {feature: spec.name for spec in specs.values() for feature in spec.table_rows}
    parts: list[set[str]] = (
        [set(group_of.values())] if together else [{name} for name in dict.fromkeys(group_of.values())]
    )
    for table in tables:
        joined = {group_of[feature] for feature in table.features}
        touching = [part for part in parts if part & joined]
        parts = [part for part in parts if not part & joined] + [set().union(*touching)]
    order = list(specs)
    found = []
    for part in sorted(parts, key=lambda part: min(map(order.index, part))):
        groups = tuple(name for name in order if name in part)
        own = [table for table in tables if group_of[table.owner] in part]
        found.append(
            Unit(
                "+".join(groups),
                groups,
                bags=tuple(table for table in own if table.as_bag),
                sequences=tuple(table for table in own if not table.as_bag),
            )
        )
    return found


def table_config(feature: str, config: ModelConfig) -> TableConfig:
    """What the config says of the feature's table."""
    return config.tables.get(feature, config.default_table)


def table_name(feature: str) -> str:
    """The table of an id feature."""
    return "t_" + feature.replace(".", ":")


def _owner(feature: str, rows: Mapping[str, int], config: ModelConfig) -> str:
    shared = table_config(feature, config).shares
    if shared is None:
        return feature
    at = f"at $.trainer.model.tables.{feature}.shares"
    if shared not in rows:
        raise ConfigError(f"'{shared}' is no id feature of the batches, choose one of {', '.join(rows)} - {at}")
    if table_config(shared, config).shares is not None:
        raise ConfigError(f"'{shared}' shares a table itself, name the feature that owns it - {at}")
    return shared


def _table(owner: str, features: tuple[str, ...], *, rows: int, config: ModelConfig) -> Table:
    table = table_config(owner, config)
    dim = table.dim or config.dim
    if dim % LANES:
        raise ConfigError(f"tables need a multiple of {LANES}, got {dim} - at $.trainer.model.tables.{owner}.dim")
    as_bag = all(table_config(feature, config).pooling in BAGS for feature in features)
    if as_bag and len({table_config(feature, config).pooling for feature in features}) > 1:
        as_bag = False  # a bag pools all its features alike
    return Table(table_name(owner), owner, rows, dim, features, as_bag)
