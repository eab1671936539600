"""What the batches hold after the transforms: checked when the config is loaded, read by stream, trainer and server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stream.transforms.operation import Ids, Kind, KindError, Numbers
from stream.transforms.transform import Transform


class TransformError(Exception):
    """The transforms do not fit the features; the message ends with the path of the offending key."""


class GivenFeature(Protocol):
    """A feature that an event or a session gives, as the config declares it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def group(self) -> str:
        """Its group."""
        ...

    @property
    def kind(self) -> Kind:
        """What it is before its transforms."""
        ...

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Operations, one after the other."""
        ...

    @property
    def in_batch(self) -> bool:
        """Whether batches hold it, or derived features only read it."""
        ...


class DerivedFeature(Protocol):
    """A feature that transforms make of others."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of features, after their own transforms."""
        ...

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Operations; the first reads the inputs."""
        ...

    @property
    def in_batch(self) -> bool:
        """Whether batches hold it, or derived features only read it."""
        ...


@dataclass(frozen=True, slots=True)
class Planned:
    """One feature after its transforms."""

    name: str
    group: str
    inputs: tuple[str, ...]
    """Of a derived feature; empty for one that is given."""
    transforms: tuple[Transform, ...]
    given: Kind | None
    """What a given feature is before its transforms."""
    kind: Kind
    in_batch: bool

    @property
    def is_dense(self) -> bool:
        """Whether it is made of dense columns."""
        return isinstance(self.kind, Numbers)

    @property
    def dense_columns(self) -> tuple[str, ...]:
        """Names of its dense columns; empty for ids."""
        if not isinstance(self.kind, Numbers):
            return ()
        width = self.kind.width
        return (self.name,) if width == 1 else tuple(f"{self.name}.{i}" for i in range(width))

    @property
    def bound(self) -> int | None:
        """All its ids are in [0, bound); None where that is not known, or it has none."""
        return self.kind.bound if isinstance(self.kind, Ids) else None


def plan(features: Sequence[GivenFeature], derived: Sequence[DerivedFeature]) -> tuple[Planned, ...]:
    """Every feature after its transforms: those given in their order, then those derived in theirs.

    A derived feature lies in the group of its inputs, which is one. Raises TransformError.
    """
    planned: dict[str, Planned] = {}
    for feature in features:
        kind = _kind_after(feature.transforms, (feature.kind,), path=f"$.features.{feature.name}")
        planned[feature.name] = Planned(
            feature.name, feature.group, (), feature.transforms, feature.kind, kind, feature.in_batch
        )
    for made in derived:
        path = f"$.derived.{made.name}"
        if made.name in planned:
            raise TransformError(f"feature '{made.name}' is named twice - at {path}.name")
        inputs = [_input(name, planned, path=f"{path}.inputs[{i}]") for i, name in enumerate(made.inputs)]
        if not inputs:
            raise TransformError(f"feature '{made.name}' needs at least one input - at {path}.inputs")
        _check_group(inputs, path=path)
        kind = _kind_after(made.transforms, tuple(source.kind for source in inputs), path=path)
        group = inputs[0].group
        planned[made.name] = Planned(made.name, group, made.inputs, made.transforms, None, kind, made.in_batch)
    _check_use(planned)
    _check_columns(planned)
    return tuple(planned.values())


def in_batch(features: Sequence[GivenFeature], derived: Sequence[DerivedFeature]) -> tuple[Planned, ...]:
    """The features that batches hold, in the order of each group's columns. Raises TransformError."""
    return tuple(feature for feature in plan(features, derived) if feature.in_batch)


def _input(name: str, planned: dict[str, Planned], *, path: str) -> Planned:
    if name not in planned:
        known = ", ".join(planned)
        raise TransformError(f"no feature '{name}' stands before this one, there are {known} - at {path}")
    return planned[name]


def _check_group(inputs: Sequence[Planned], *, path: str) -> None:
    first = inputs[0]
    for i, other in enumerate(inputs):
        if other.group != first.group:
            raise TransformError(
                f"feature '{first.name}' is of group '{first.group}' and '{other.name}' of group '{other.group}'; "
                f"a transform sees the distinct rows of one group, so put both into one - at {path}.inputs[{i}]"
            )


def _kind_after(transforms: Sequence[Transform], kinds: tuple[Kind, ...], *, path: str) -> Kind:
    for i, transform in enumerate(transforms):
        try:
            kinds = (transform.operation.check(kinds),)
        except KindError as error:
            raise TransformError(f"{transform.name} {error} - at {path}.transforms[{i}].{transform.name}") from None
    if len(kinds) != 1:
        raise TransformError(f"{len(kinds)} inputs need an operation that makes one of them - at {path}.transforms")
    return kinds[0]


def _check_use(planned: dict[str, Planned]) -> None:
    read = {name for feature in planned.values() for name in feature.inputs}
    for feature in planned.values():
        if not feature.in_batch and feature.name not in read:
            section = "derived" if feature.inputs else "features"
            raise TransformError(f"neither a batch nor a feature reads it - at $.{section}.{feature.name}.in_batch")


def _check_columns(planned: dict[str, Planned]) -> None:
    owners: dict[str, str] = {}
    for feature in planned.values():
        for column in feature.dense_columns or (feature.name,):
            owner = owners.setdefault(column, feature.name)
            if owner != feature.name:
                section = "derived" if feature.inputs else "features"
                raise TransformError(f"'{owner}' has a column '{column}' too - at $.{section}.{feature.name}.name")
