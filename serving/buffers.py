"""Two sets of weights of one model: one in service, which nothing changes, and one that takes the next delta."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Sequence

import numpy as np

from serving.model import ServedModel
from trainer.deltas import Delta
from trainer.manifest import Manifest, VersionError
from trainer.version_reader import Route, Version, VersionReader
from trainer.versions import weights_of

FREE_S = 0.5
"""How long requests of an older version may keep its weights before new memory is taken."""


class Buffer:
    """One set of weights. What it hands out scores with them until it is dropped; only then may they change."""

    def __init__(self, version: Version) -> None:
        """Takes over the version's memory. VersionError where no model can be made of it."""
        self.manifest = version.manifest
        self._made = ServedModel(version)
        self.tables, self.dense = weights_of(self._made.module)
        self._dropped = threading.Event()
        self._dropped.set()
        self._out: weakref.ref[ServedModel] | None = None

    def hand_out(self) -> ServedModel:
        """The model at its present version, as an object of its own: while anyone holds it, the weights stay."""
        model = copy.copy(self._made)
        model.manifest = self.manifest
        dropped = threading.Event()
        self._out, self._dropped = weakref.ref(model, lambda _: dropped.set()), dropped
        return model

    def is_free(self, *, timeout_s: float) -> bool:
        """Whether nobody scores with these weights any more."""
        return self._dropped.wait(timeout_s)

    def apply(self, delta: Delta) -> None:
        """Move on by one version, in place."""
        if delta.manifest.config != self.manifest.config or delta.dense.keys() != self.dense.keys():
            raise VersionError(f"version {delta.manifest.version} is a delta to another model")
        delta.apply_to(self.tables)
        for name, weights in delta.dense.items():
            self.dense[name][...] = weights
        self.manifest = delta.manifest

    def try_out(self) -> None:
        """VersionError where the weights give no finite score."""
        self._made.manifest = self.manifest
        self._made.try_out()

    def copied(self) -> Buffer:
        """The same weights in memory of their own."""
        tables = {name: np.array(weights) for name, weights in self.tables.items()}
        dense = {name: np.array(weights) for name, weights in self.dense.items()}
        return Buffer(Version(self.manifest, dense, tables))


class Buffers:
    """Brings versions into memory, by deltas where that is possible; for one thread at a time.

    A delta costs its touched rows twice, once for each set of weights. A whole table is copied only for the first
    delta after a full version, and where requests hold an older version for longer than FREE_S.
    """

    def __init__(self, store: VersionReader) -> None:
        self._store = store
        self._serving: Buffer | None = None
        self._spare: Buffer | None = None
        self._behind: Sequence[Delta] = ()
        """What the spare buffer lacks to be where the one in service is."""
        self.copies = 0
        """How often all weights were copied."""

    def take(self, version: int) -> ServedModel:
        """The model at `version`. VersionError: then what was handed out before stays as it is."""
        at = None if self._serving is None else self._serving.manifest
        return self._store.reach(version, self._follow, at=at)

    def _follow(self, route: Route) -> ServedModel:
        if route.full is not None:
            # Before the new weights are read: there is never room for three of them.
            self._spare, self._behind = None, ()
            return self._switch(Buffer(self._store.follow(route)), behind=())
        deltas = [self._store.load_delta(manifest) for manifest in route.deltas]
        spare = self._take_spare()
        for delta in deltas:
            spare.apply(delta)
        spare.try_out()
        return self._switch(spare, behind=deltas)

    def _take_spare(self) -> Buffer:
        """The weights in service once more, free to change. Until they are in service, nothing is spare."""
        if self._serving is None:
            raise VersionError("there are no weights that a delta could change")
        spare, self._spare = self._spare, None
        behind, self._behind = self._behind, ()
        if spare is None or not behind or not spare.is_free(timeout_s=FREE_S):
            self.copies += 1
            return self._serving.copied()
        for delta in behind:
            spare.apply(delta)
        return spare

    def _switch(self, buffer: Buffer, *, behind: Sequence[Delta]) -> ServedModel:
        self._serving, self._spare, self._behind = buffer, self._serving if behind else None, behind
        return buffer.hand_out()

    @property
    def manifest(self) -> Manifest | None:
        """Of what is in service."""
        return None if self._serving is None else self._serving.manifest
