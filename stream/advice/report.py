"""From counts to advice: repeat rates and factors, groups, slices, and the `features` section to paste."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import yaml

from stream.advice.grouping import Candidate, greedy_groups, joined
from stream.advice.observe import FeatureCounts, Observed
from stream.advice.sides import Side
from stream.config import Config, DerivedConfig, FeatureConfig

ID_BYTES, NUMBER_BYTES, SLICE_BYTES = 8, 4, 8
PAYS_FROM = 1.1
"""Slices pay where they hold at least so many times fewer ids."""


@dataclass(frozen=True, slots=True)
class FeatureAdvice:
    """One feature."""

    name: str
    group: str
    """Where it is now."""
    better_group: str
    side: str
    """Whose it is: user, item, session, context, or any (see sides)."""
    bytes_per_sample: float
    """Plain: 8 an id and 4 a row, or 4 a number."""
    repeats: float
    """p: share of the neighbouring samples of a session that have the same value."""
    repeats_across: float | None
    """Share of a user's sessions that begin with the value with which the one before ended; None: nobody came twice."""
    expected: float
    """S / (1 + (S - 1)(1 - p)), of a batch that holds whole sessions (RecD, arXiv 2211.05239)."""
    measured: float
    """Samples per distinct value, batch by batch."""
    slice_factor: float | None
    """Ids of the distinct values per id of their slices; None: not a list."""
    slices: str
    """What to set: always, never or auto."""


@dataclass(frozen=True, slots=True)
class GroupAdvice:
    """One group as it should be."""

    name: str
    features: tuple[str, ...]
    repeats: float
    expected: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do."""

    samples: int
    sessions: int
    samples_per_session: float
    features: tuple[FeatureAdvice, ...]
    groups: tuple[GroupAdvice, ...]
    bytes_plain: float
    """Of a sample, one row each, before compression."""
    bytes_now: float
    """Distinct rows in the groups of the configuration, slices where they pay."""
    bytes_advised: float
    """Distinct rows in the groups as they should be."""
    yaml: str
    """The `features` section of a configuration."""


def factor(per_session: float, repeats: float) -> float:
    """RecD's dedup factor for S samples a session and a chance p of no change: S / (1 + (S - 1)(1 - p))."""
    return per_session / (1 + (per_session - 1) * (1 - repeats))


def advise(config: Config, observed: Observed) -> Advice:
    """Advice from what was observed of the features of `config`."""
    changed = {name: _flat(counts) for name, counts in observed.features.items()}
    sides = {f.name: _side(f, observed.features[f.name]) for f in config.features}
    sizes = {f.name: _row_bytes(f, observed.features[f.name]) for f in config.features}
    single = {
        name: Candidate((name,), sizes[name], changed[name], np.concatenate(counts.keys), sides[name])
        for name, counts in observed.features.items()
    }
    together = [joined([single[name] for name in names]) for names in kept_together(config.features, config.derived)]
    groups = greedy_groups(together, sessions=observed.sessions)
    named = _named(groups, config=config, observed=observed)
    better = {name: group for group, names in named.items() for name in names}
    features = tuple(
        _feature(f, observed, changed[f.name], better=better[f.name], side=sides[f.name]) for f in config.features
    )
    return Advice(
        samples=observed.samples,
        sessions=observed.sessions,
        samples_per_session=observed.per_session,
        features=features,
        groups=tuple(_group(group, names, observed, changed) for group, names in named.items()),
        bytes_plain=sum(feature.bytes_per_sample for feature in features),
        bytes_now=_bytes_a_sample(_present(config.features), single),
        bytes_advised=_bytes_a_sample(groups, single),
        yaml=to_paste(config.features, features),
    )


def to_paste(features: Sequence[FeatureConfig], advice: Sequence[FeatureAdvice]) -> str:
    """The `features` section: as it is but for groups and slices, features of a group side by side."""
    lines: dict[str, list[str]] = {}
    for feature, advised in zip(features, advice, strict=True):
        changed = msgspec.structs.replace(feature, group=advised.better_group, slices=advised.slices)
        lines.setdefault(changed.group, []).append(f"  - {_flow(changed)}\n")
    return "features:\n" + "\n".join("".join(group) for group in lines.values())


def kept_together(features: Sequence[FeatureConfig], derived: Sequence[DerivedConfig]) -> list[tuple[str, ...]]:
    """Names of features that have to share a group, because one that is derived reads all of them."""
    sources: dict[str, set[str]] = {feature.name: {feature.name} for feature in features}
    owner = {feature.name: {feature.name} for feature in features}
    for made in derived:
        sources[made.name] = set().union(*(sources.get(name, set()) for name in made.inputs))
        joined = set().union(*(owner[name] for name in sources[made.name]))
        owner |= dict.fromkeys(joined, joined)
    order = [feature.name for feature in features]
    return list(dict.fromkeys(tuple(n for n in order if n in owner[name]) for name in order))


def _present(features: Sequence[FeatureConfig]) -> list[tuple[str, ...]]:
    groups = dict.fromkeys(feature.group for feature in features)
    return [tuple(feature.name for feature in features if feature.group == group) for group in groups]


def _bytes_a_sample(groups: Sequence[tuple[str, ...]], single: Mapping[str, Candidate]) -> float:
    made = [joined([single[name] for name in names]) for names in groups]
    return sum(group.bytes / group.keys.size for group in made)


def _flat(counts: FeatureCounts) -> np.ndarray:
    return np.concatenate(counts.changed) if counts.changed else np.zeros(0, np.bool_)


def _flow(feature: FeatureConfig) -> str:
    tree = msgspec.to_builtins(feature, str_keys=True)
    defaults = msgspec.to_builtins(FeatureConfig(name=feature.name, group=feature.group), str_keys=True)
    kept = {key: tree[key] for key in tree if key in ("name", "group") or tree[key] != defaults[key]}
    text: str = yaml.safe_dump(kept, default_flow_style=True, sort_keys=False, width=10**6)
    return text.strip()


def _row_bytes(feature: FeatureConfig, counts: FeatureCounts) -> float:
    """What one more row of the feature costs a group: its ids, or a slice of ids that are there already."""
    if feature.is_dense:
        return float(NUMBER_BYTES * len(feature.dense_columns))
    per_row = counts.distinct_ids / max(1, counts.distinct_rows)
    return SLICE_BYTES + ID_BYTES * (per_row if _slice_factor(counts) < PAYS_FROM else min(per_row, 1.0))


def _slice_factor(counts: FeatureCounts) -> float:
    return counts.distinct_ids / counts.sliced_ids if counts.sliced_ids else 1.0


def _side(feature: FeatureConfig, counts: FeatureCounts) -> Side:
    if feature.source is not None:
        return Side.SESSION
    return counts.following.side(slides=not feature.is_dense and _slice_factor(counts) >= PAYS_FROM)


def _feature(
    feature: FeatureConfig, observed: Observed, changed: np.ndarray, *, better: str, side: Side
) -> FeatureAdvice:
    counts = observed.features[feature.name]
    repeats = 1.0 - float(changed.mean()) if changed.size else 0.0
    plain = NUMBER_BYTES * max(1, len(feature.dense_columns)) + ID_BYTES * counts.ids / max(1, observed.samples)
    is_list = feature.type.startswith("list[") if feature.source is None else True
    sliced = _slice_factor(counts) if is_list and not feature.is_dense else None
    return FeatureAdvice(
        name=feature.name,
        group=feature.group,
        better_group=better,
        side=side.value,
        bytes_per_sample=plain,
        repeats=repeats,
        repeats_across=counts.kept / counts.returns if counts.returns else None,
        expected=factor(observed.per_session, repeats),
        measured=observed.samples / max(1, counts.distinct_rows),
        slice_factor=sliced,
        slices="auto" if sliced is None else "always" if sliced >= PAYS_FROM else "never",
    )


def _group(name: str, names: tuple[str, ...], observed: Observed, changed: dict[str, np.ndarray]) -> GroupAdvice:
    any_changed = np.logical_or.reduce([changed[feature] for feature in names])
    repeats = 1.0 - float(any_changed.mean()) if any_changed.size else 0.0
    return GroupAdvice(name, names, repeats, factor(observed.per_session, repeats))


def _named(groups: list[tuple[str, ...]], *, config: Config, observed: Observed) -> dict[str, tuple[str, ...]]:
    """Groups by name: that of the present group of most of its bytes, made unique by its largest feature."""
    present = {feature.name: feature.group for feature in config.features}
    size = {name: counts.ids + observed.samples for name, counts in observed.features.items()}
    named: dict[str, tuple[str, ...]] = {}
    for names in sorted(groups, key=lambda group: -sum(size[name] for name in group)):
        weights: dict[str, int] = {}
        for name in names:
            weights[present[name]] = weights.get(present[name], 0) + size[name]
        wanted = max(weights, key=lambda group: weights[group])
        if wanted in named:
            wanted = f"{wanted}-{max(names, key=lambda name: size[name])}"
        named[wanted] = names
    return {group: named[group] for group in sorted(named, key=lambda group: list(present).index(named[group][0]))}
