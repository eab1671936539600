"""Reading published versions: which there are, how each is reached, and what it holds, every byte verified."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec
import numpy as np
import safetensors.numpy
import xxhash
from safetensors import SafetensorError

from trainer.deltas import Delta, row_updates
from trainer.manifest import DENSE, MANIFEST, Count, Manifest, Record, VersionError, check_digest
from trainer.places import Place, open_place
from trainer.version_files import assemble

CURRENT = "current.json"
FULL_FORM = "-full"
"""Ends the name of the folder that holds a delta's version once more, as a full one."""
T = TypeVar("T")
R = TypeVar("R")


class Current(Record, frozen=True):
    """`current.json`."""

    version: Count


@dataclass(frozen=True)
class Version:
    """A verified version with its tables put together."""

    manifest: Manifest
    dense: dict[str, np.ndarray]
    tables: dict[str, np.ndarray]
    """By table name, float32[rows, dim]."""


@dataclass(frozen=True)
class Full:
    """A full version, and the folder that holds it."""

    manifest: Manifest
    folder: str


@dataclass(frozen=True)
class Route:
    """How to come to a version: from a full one (None: from what one has), by deltas in this order."""

    full: Full | None
    deltas: tuple[Manifest, ...]


class VersionReader:
    """The versions under one URL: a folder or any fsspec address."""

    def __init__(self, url: str) -> None:
        """Opens only. VersionError where the scheme is unknown or its driver is missing."""
        self.url = url
        try:
            self._place: Place = open_place(url)
        except OSError as error:
            raise VersionError(f"versions cannot be opened: {error}") from None

    def newest(self) -> int | None:
        """The version in force, None before the first; VersionError when `current.json` is damaged or unreachable."""
        try:
            data = self._place.read(CURRENT)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise VersionError(f"{self.url}/{CURRENT}: {error}") from error
        return _decode(data, Current, what=f"{self.url}/{CURRENT}").version

    def versions(self) -> list[int]:
        """Ascending numbers of the completely written versions; their bytes are not verified here."""
        return sorted(number for number in map(number_of, self._whole()) if number is not None)

    def manifest(self, version: int) -> Manifest:
        """Read and check a version's manifest alone."""
        return self._manifest(folder_of(version), version=version)

    def reach(self, version: int, take: Callable[[Route], R], *, at: Manifest | None = None) -> R:
        """What `take` makes of the first way to a version that works.

        Shortest first: by deltas from what one is `at`, then from full versions, the nearest one first. `take` raises
        VersionError where a way is broken. VersionError, the first that there was, where no way works.
        """
        first: VersionError | None = None
        ways = self._ways(version, at=at)
        while True:
            try:
                return take(next(ways))
            except StopIteration:
                raise first or VersionError(f"{self.url}: no way leads to version {version}") from None
            except VersionError as error:
                first = first or error

    def load(self, version: int) -> Version:
        """Read and verify a version, deltas put in; VersionError names what is missing, damaged or not understood."""
        return self.reach(version, self.follow)

    def follow(self, route: Route) -> Version:
        """What a route from a full version leads to."""
        if route.full is None:
            raise VersionError(f"{self.url}: a way to a version that does not begin at a full one")
        version = self.load_full(route.full)
        for manifest in route.deltas:
            delta = self.load_delta(manifest)
            delta.apply_to(version.tables)
            version = replace(version, manifest=manifest, dense=delta.dense)
        return version

    def load_full(self, full: Full) -> Version:
        """Read and verify the files of a full version."""
        manifest = full.manifest
        tensors = self._files(manifest, folder=full.folder)
        try:
            tables = {table.name: assemble(table, tensors) for table in manifest.tables}
            return Version(manifest, dict(tensors[DENSE]), tables)
        except KeyError as error:
            raise self._error(manifest, f"{MANIFEST} names {error}, which is not there") from None
        except VersionError as error:
            raise self._error(manifest, str(error)) from None

    def load_delta(self, manifest: Manifest) -> Delta:
        """Read and verify the files of a delta."""
        tensors = self._files(manifest, folder=folder_of(manifest.version))
        try:
            return Delta(manifest, dict(tensors[DENSE]), row_updates(manifest.tables, tensors))
        except KeyError as error:
            raise self._error(manifest, f"{MANIFEST} names {error}, which is not there") from None
        except VersionError as error:
            raise self._error(manifest, str(error)) from None

    def folders_for(self, version: int) -> list[str]:
        """Names of the folders that `version` needs to be loaded, its own first."""
        names = []
        while True:
            names.append(folder_of(version))
            manifest = self.manifest(version)
            if manifest.kind == "full":
                return names
            if (form := full_folder_of(version)) in self._whole():
                return [*names, form]
            version = manifest.base

    def _ways(self, version: int, *, at: Manifest | None) -> Iterator[Route]:
        """Ways to a version; a broken one raises where it is asked for, which ends the iteration."""
        broken: VersionError | None = None
        try:
            if at is not None and (deltas := self._deltas_from(at, version=version)):
                yield Route(None, deltas)
        except VersionError as error:
            broken = error
        yield from self._ways_from_full(version)
        if broken is not None:
            raise broken

    def _deltas_from(self, at: Manifest, *, version: int) -> tuple[Manifest, ...]:
        """From `at` to a later version; empty where the way does not lead over it."""
        deltas: list[Manifest] = []
        while version > at.version:
            manifest = self.manifest(version)
            if manifest.kind == "full" or manifest.lineage != at.lineage:
                return ()
            deltas.append(manifest)
            version = manifest.base
        return tuple(reversed(deltas)) if version == at.version else ()

    def _ways_from_full(self, version: int) -> Iterator[Route]:
        whole = set(self._whole())
        deltas: list[Manifest] = []
        broken: VersionError | None = None
        manifest = self.manifest(version)
        while manifest.kind == "delta":
            if full_folder_of(manifest.version) in whole:
                try:
                    yield Route(self._full_form(manifest), tuple(reversed(deltas)))
                except VersionError as error:
                    broken = error
            deltas.append(manifest)
            base = self.manifest(manifest.base)
            if base.lineage != manifest.lineage:
                raise self._error(manifest, f"builds on version {base.version} of another lineage")
            manifest = base
        yield Route(Full(manifest, folder_of(manifest.version)), tuple(reversed(deltas)))
        if broken is not None:
            raise broken

    def _full_form(self, manifest: Manifest) -> Full:
        folder = full_folder_of(manifest.version)
        full = self._manifest(folder, version=manifest.version)
        if full.kind != "full" or not full.is_same(manifest):
            raise self._error(manifest, f"{folder} holds another version")
        return Full(full, folder)

    def _manifest(self, folder: str, *, version: int) -> Manifest:
        what = f"{self.url}: version {version}: {MANIFEST}"
        data = self._read(folder, MANIFEST, version=version)
        manifest = _decode(data, Manifest, what=what)
        check_digest(data, what=what)
        if manifest.version != version:
            raise VersionError(f"{what} is of version {manifest.version}")
        return manifest

    def _files(self, manifest: Manifest, *, folder: str) -> dict[str, dict[str, np.ndarray]]:
        return {name: self._tensors(manifest, name, folder=folder) for name in manifest.files}

    def _tensors(self, manifest: Manifest, name: str, *, folder: str) -> dict[str, np.ndarray]:
        data = self._read(folder, name, version=manifest.version)
        entry = manifest.files[name]
        if len(data) != entry.bytes:
            raise self._error(manifest, f"{name}: has {len(data)} bytes, expected {entry.bytes}")
        if (digest := xxhash.xxh3_128_hexdigest(data)) != entry.xxh3_128:
            raise self._error(manifest, f"{name}: digest is {digest}, expected {entry.xxh3_128}")
        try:
            return safetensors.numpy.load(data)
        except SafetensorError as error:
            raise self._error(manifest, f"{name}: not safetensors: {error}") from None

    def _read(self, folder: str, name: str, *, version: int) -> bytes:
        try:
            return self._place.read(f"{folder}/{name}")
        except FileNotFoundError:
            raise VersionError(f"{self.url}: version {version}: {name} is missing") from None
        except OSError as error:
            raise VersionError(f"{self.url}: version {version}: {name}: {error}") from error

    def _whole(self) -> list[str]:
        """Names of the folders that were written to their end."""
        try:
            return self._place.folders_with(MANIFEST)
        except OSError as error:
            raise VersionError(f"{self.url}: {error}") from error

    def _error(self, manifest: Manifest, text: str) -> VersionError:
        return VersionError(f"{self.url}: version {manifest.version}: {text}")


def folder_of(version: int) -> str:
    """Where a version lies."""
    return f"v{version:010d}"


def full_folder_of(version: int) -> str:
    """Where a delta's version lies once more, as a full one."""
    return f"{folder_of(version)}{FULL_FORM}"


def number_of(folder: str) -> int | None:
    """The version that lies in a folder; None for another folder, a full form among them."""
    match = re.fullmatch(r"v(\d{10,})", folder)
    return int(match[1]) if match else None


def _decode(data: bytes, kind: type[T], *, what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VersionError(f"{what}: {str(error).replace('`', '')}") from None
