"""The description of the model that a config asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import msgspec
import xxhash

from stream.config import Config, ModelConfig
from stream.transforms import TRANSFORMS_VERSION
from stream.transforms.plan import Planned, plan
from trainer.group_tower import module_name
from trainer.ikjt import GroupSpec, group_specs
from trainer.model_record import ColumnsRecord, ModelRecord, Span, TableRecord
from trainer.tables import Table, tables_of_model


def describe(config: Config) -> ModelRecord:
    """The model that a config asks for."""
    trainer, model = config.trainer, config.trainer.model
    specs = group_specs(config.features, model, derived=config.derived)
    tables = tables_of_model(specs, model)
    direct = frozenset[str]().union(*(spec.direct for spec in specs.values()))
    rates = {name: getattr(trainer.optimizer, name) for name in ("sparse_learning_rate", "dense_learning_rate")}
    return ModelRecord(
        tables={
            table.name: TableRecord(
                rows=table.rows, dim=table.dim, hashed=not direct.issuperset(table.features), features=table.features
            )
            for table in tables
        },
        columns=dict(_columns(specs, tables, model)),
        features=_meanings(config, direct=direct),
        labels=tuple(label.name for label in config.labels),
        optimizers={"sparse": trainer.optimizer.sparse, "dense": trainer.optimizer.dense},
        rates=rates,
        sources=dict(_sources(config)),
    )


def _meanings(config: Config, *, direct: frozenset[str]) -> dict[str, str]:
    planned = {feature.name: feature for feature in plan(config.features, config.derived)}
    types = {
        feature.name: [feature.type.replace("list[", "").rstrip("]"), feature.source] for feature in config.features
    }

    def lineage(feature: Planned) -> list[object]:
        inputs = [lineage(planned[name]) for name in feature.inputs]
        return [types.get(feature.name), inputs, feature.transforms]

    return {
        name: xxhash.xxh3_64_hexdigest(msgspec.json.encode([lineage(feature), name in direct, TRANSFORMS_VERSION]))
        for name, feature in planned.items()
        if feature.in_batch
    }


def _sources(config: Config) -> Iterator[tuple[str, str]]:
    for feature in config.features:
        if feature.source is None:
            yield f"features.{feature.name}.field", feature.field or feature.name
    for label in config.labels:
        yield f"labels.{label.name}.engagements", ", ".join(label.engagements)


def _columns(
    specs: dict[str, GroupSpec], tables: Sequence[Table], config: ModelConfig
) -> Iterator[tuple[str, ColumnsRecord]]:
    """The order in which GroupTower and the interactions put their inputs side by side."""
    dims = {feature: table.dim for table in tables for feature in table.features}
    is_dot, mixed = config.interaction.kind == "dot", config.interaction.vectors
    vectors: dict[str, list[Span]] = {}
    for name, spec in specs.items():
        tower = f"towers.{module_name(name)}"
        own = [(feature, config.dim if is_dot and not mixed else dims[feature]) for feature in spec.table_rows]
        if spec.dense:
            own.append((f"dense of {name}", config.dim))
            first = f"{tower}.dense_arch._mlp.0._linear.weight"
            yield first, ColumnsRecord(axis=1, spans=tuple((column, 1) for column in spec.dense))
        if mixed:
            yield f"{tower}.mix.weight", ColumnsRecord(axis=1, spans=tuple(own))
            own = [(f"vector {i} of {name}", config.dim) for i in range(mixed)]
        vectors[name] = own
    if is_dot:
        for name, own in vectors.items():
            pairs = [(_pair(a, b), 1) for (a, _), (b, _) in combinations(own, 2)]
            yield f"interaction.own.{module_name(name)}.weight", ColumnsRecord(axis=1, spans=(*own, *pairs))
        flat = [(group, vector) for group, own in enumerate(vectors.values()) for vector, _ in own]
        between = [(_pair(a, b), 1) for group, a in flat for other, b in flat if group < other]
        if between:
            yield "interaction.between.weight", ColumnsRecord(axis=1, spans=tuple(between))
        return
    spans = tuple(span for own in vectors.values() for span in own)
    yield "interaction.out.weight", ColumnsRecord(axis=1, spans=spans)
    for layer in range(config.interaction.layers):
        for name, axis in (("W_kernels", 0), ("V_kernels", 1), ("bias", 0)):
            yield f"interaction.cross.{name}.{layer}", ColumnsRecord(axis=axis, spans=spans)


def _pair(a: str, b: str) -> str:
    """The product is the same in either order."""
    return "*".join(sorted((a, b)))
