"""Published versions: what servers load. Safetensors and JSON, never pickle (ARCHITECTURE.md, "A version").

A version is written beside the older ones, its manifest last, and made current by one replacement of `current.json`.
A crash before that replacement leaves the former version in force.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np
import safetensors.numpy
import xxhash
from safetensors import SafetensorError

from trainer.manifest import (
    DENSE,
    MANIFEST,
    Count,
    Manifest,
    Record,
    Snapshot,
    TableShard,
    VersionError,
    assemble,
    check_digest,
    version_files,
)
from trainer.places import TEMPORARY, Place, open_place

if TYPE_CHECKING:
    import torch

__all__ = ["Manifest", "Snapshot", "TableShard", "Version", "VersionError", "VersionStore", "apply_version"]

CURRENT = "current.json"
T = TypeVar("T")


class _Current(Record, frozen=True):
    version: Count


@dataclass(frozen=True)
class Version:
    """A verified version with its tables put together."""

    manifest: Manifest
    dense: dict[str, np.ndarray]
    tables: dict[str, np.ndarray]
    """By table name, float32[rows, dim]."""


class VersionStore:
    """The versions under one URL: a folder or any fsspec address. One process publishes, any number read."""

    def __init__(self, url: str, *, keep: int) -> None:
        """Opens only; nothing is read, written or deleted yet. `keep` is how many versions outlive a publication."""
        if keep < 1:
            raise VersionError(f"{url}: keep must be at least 1, not {keep}")
        self.url = url
        self._keep = keep
        self._cleaned = False
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
        return _decode(data, _Current, what=f"{self.url}/{CURRENT}").version

    def versions(self) -> list[int]:
        """Ascending numbers of the completely written versions; their bytes are not verified here."""
        try:
            names = self._place.folders_with(MANIFEST)
        except OSError as error:
            raise VersionError(f"{self.url}: {error}") from error
        return sorted(number for number in map(_number, names) if number is not None)

    def publish(self, snapshot: Snapshot, *, version: int | None = None) -> int:
        """Write a version, make it current, delete what exceeds `keep`; returns its number.

        The number follows the greatest that exists unless given, and is never used twice. A failure (VersionError)
        and a crash at any point leave the former version in force:

        1. delete what an earlier crash left (once);
        2. write the files and, last, the manifest: until then nobody sees the folder;
        3. replace `current.json`: now the version is in force;
        4. delete older versions, never the one in force.
        """
        try:
            self._clean()
            number = self._next_number(version)
            files = version_files(snapshot, version=number)
            self._place.write_folder(_name(number), files)
            self._place.replace(CURRENT, msgspec.json.encode(_Current(version=number)))
        except OSError as error:
            self._cleaned = False
            raise VersionError(f"{self.url}: version could not be published: {error}") from error
        try:
            self._retain(current=number)
        except OSError as error:
            raise VersionError(f"{self.url}: version {number} is in force, older ones stay: {error}") from error
        return number

    def load(self, version: int) -> Version:
        """Read and verify a version; VersionError names the file that is missing, damaged or not understood."""
        manifest = self.manifest(version)
        tensors = {name: self._tensors(manifest, name) for name in manifest.files}
        try:
            tables = {table.name: assemble(table, tensors) for table in manifest.tables}
            return Version(manifest, dict(tensors[DENSE]), tables)
        except KeyError as error:
            raise VersionError(f"{self.url}: version {version}: {MANIFEST} names {error}, which is not there") from None
        except VersionError as error:
            raise VersionError(f"{self.url}: version {version}: {error}") from None

    def manifest(self, version: int) -> Manifest:
        """Read and check a version's manifest alone."""
        data = self._read(version, MANIFEST)
        what = f"{self.url}: version {version}: {MANIFEST}"
        manifest = _decode(data, Manifest, what=what)
        check_digest(data, what=what)
        if manifest.version != version:
            raise VersionError(f"{what} is of version {manifest.version}")
        return manifest

    def _tensors(self, manifest: Manifest, name: str) -> dict[str, np.ndarray]:
        data = self._read(manifest.version, name)
        entry, what = manifest.files[name], f"{self.url}: version {manifest.version}: {name}"
        if len(data) != entry.bytes:
            raise VersionError(f"{what}: has {len(data)} bytes, expected {entry.bytes}")
        if (digest := xxhash.xxh3_128_hexdigest(data)) != entry.xxh3_128:
            raise VersionError(f"{what}: digest is {digest}, expected {entry.xxh3_128}")
        try:
            return safetensors.numpy.load(data)
        except SafetensorError as error:
            raise VersionError(f"{what}: not safetensors: {error}") from None

    def _read(self, version: int, name: str) -> bytes:
        try:
            return self._place.read(f"{_name(version)}/{name}")
        except FileNotFoundError:
            raise VersionError(f"{self.url}: version {version}: {name} is missing") from None
        except OSError as error:
            raise VersionError(f"{self.url}: version {version}: {name}: {error}") from error

    def _next_number(self, wanted: int | None) -> int:
        numbers = self.versions()
        # A damaged pointer must not stop publishing: it is replaced by this very publication.
        with suppress(VersionError):
            numbers.append(self.newest() or 0)
        last = max(numbers, default=0)
        if wanted is not None and wanted <= last:
            raise VersionError(f"{self.url}: version {wanted} cannot be published, {last} is there already")
        return last + 1 if wanted is None else wanted

    def _clean(self) -> None:
        if self._cleaned:
            return
        whole = set(self._place.folders_with(MANIFEST))
        for name in self._place.folders():
            # Only folders of this store's own making: a user may have pointed the URL at a folder with other things.
            if name not in whole and _number(name.removeprefix(TEMPORARY)) is not None:
                self._place.remove(name, marker=MANIFEST)
        self._cleaned = True

    def _retain(self, *, current: int) -> None:
        for number in self.versions()[: -self._keep]:
            if number != current:
                self._place.remove(_name(number), marker=MANIFEST)


def apply_version(module: torch.nn.Module, version: Version) -> None:
    """Put all weights into an unsharded model, in place; VersionError unless names and shapes agree exactly.

    A table is found by the state_dict name that TorchRec gives it, `...embedding_bags.<table>.weight` or
    `...embeddings.<table>.weight`; every other
    entry of the state_dict by its own name. Nothing is changed unless all of it fits. Entries on the meta device take
    over the version's own memory, others are copied into.
    """
    import torch  # here, so that whoever only reads or lists versions starts without it

    wanted = module.state_dict()
    given = {f"table {name}": weights for name, weights in version.tables.items()} | version.dense
    keys = {key: _source(key) for key in wanted}
    missing, unused = set(keys.values()) - set(given), set(given) - set(keys.values())
    if missing or unused:
        raise VersionError(f"the model does not fit: missing {sorted(missing)}, not used {sorted(unused)}")
    for key, source in keys.items():
        if tuple(wanted[key].shape) != given[source].shape:
            raise VersionError(f"{source} is {list(given[source].shape)}, the model has {list(wanted[key].shape)}")
    state = {key: torch.from_numpy(np.ascontiguousarray(given[source])) for key, source in keys.items()}
    module.load_state_dict(state, assign=any(tensor.is_meta for tensor in wanted.values()))


def _source(key: str) -> str:
    """What fills an entry of the state_dict."""
    match = re.search(r"(?:^|\.)(?:embedding_bags|embeddings)\.([^.]+)\.weight$", key)
    return f"table {match[1]}" if match else key


def _decode(data: bytes, kind: type[T], *, what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VersionError(f"{what}: {str(error).replace('`', '')}") from None


def _name(version: int) -> str:
    return f"v{version:010d}"


def _number(name: str) -> int | None:
    match = re.fullmatch(r"v(\d{10,})", name)
    return int(match[1]) if match else None
