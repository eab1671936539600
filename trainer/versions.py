"""Published versions: what servers load. Safetensors and JSON, never pickle (ARCHITECTURE.md, "A version").

A version is written beside the older ones, its manifest last, and made current by one replacement of `current.json`.
A crash before that replacement leaves the former version in force.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from trainer.manifest import MANIFEST, Manifest, Snapshot, TableShard, VersionError, manifest_of
from trainer.places import TEMPORARY
from trainer.version_files import version_files
from trainer.version_reader import (
    CURRENT,
    FULL_FORM,
    Current,
    Version,
    VersionReader,
    folder_of,
    full_folder_of,
    number_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

__all__ = [
    "Manifest",
    "Snapshot",
    "TableShard",
    "Version",
    "VersionError",
    "VersionStore",
    "apply_version",
    "weights_of",
]

TABLE = "table "
"""Begins what a table's weights are called among all weights."""


class VersionStore(VersionReader):
    """The versions under one URL: a folder or any fsspec address. One process publishes, any number read."""

    def __init__(self, url: str, *, keep: int, hook: Callable[[str], object] = lambda _: None) -> None:
        """Opens only; nothing is read, written or deleted yet.

        `keep` is how many versions outlive a publication, besides those that they build on. `hook` is called with the
        name of each stage: a place to crash in tests.
        """
        if keep < 1:
            raise VersionError(f"{url}: keep must be at least 1, not {keep}")
        super().__init__(url)
        self._keep = keep
        self._hook = hook
        self._cleaned = False
        self._writing: set[str] = set()
        self._bases: dict[int, int] = {}
        """By version, what it builds on; 0 for full ones."""
        self.published: Manifest | None = None
        """Of the newest version that this store has put into force."""

    def publish(self, snapshot: Snapshot, *, version: int | None = None) -> int:
        """Write a version, make it current, delete what is not needed any more; returns its number.

        The number follows the greatest that exists unless given, and is never used twice. A failure (VersionError)
        and a crash at any point leave the former version in force:

        1. delete what an earlier crash left (once);
        2. write the files and, last, the manifest: until then nobody sees the folder;
        3. replace `current.json`: now the version is in force;
        4. delete older versions, never the one in force nor what a kept one builds on.

        A delta is refused unless it changes the very version that this store has put into force last.
        """
        self._check_base(snapshot)
        try:
            self._clean()
            number = self._next_number(version)
            manifest = self._write(folder_of(number), snapshot, version=number)
            self._hook("version written")
            self._place.replace(CURRENT, msgspec.json.encode(Current(version=number)))
        except OSError as error:
            self._cleaned = False
            raise VersionError(f"{self.url}: version could not be published: {error}") from error
        self.published = manifest
        self._bases[number] = snapshot.base
        self._hook("version current")
        try:
            self._retain(current=number)
        except OSError as error:
            raise VersionError(f"{self.url}: version {number} is in force, older ones stay: {error}") from error
        return number

    def serve(self, version: int) -> Manifest:
        """Make an older version, whose manifest can be read, the one in force. VersionError; then nothing changes."""
        manifest = self.manifest(version)
        try:
            self._place.replace(CURRENT, msgspec.json.encode(Current(version=version)))
        except OSError as error:
            raise VersionError(f"{self.url}: version {version} could not be put in force: {error}") from error
        return manifest

    def add_full(self, snapshot: Snapshot, *, version: int) -> Manifest:
        """Write the full form of a version that was published as a delta. VersionError where it cannot be written.

        May run beside `publish` in another thread. A crash leaves it whole or not there.
        """
        try:
            return self._write(full_folder_of(version), snapshot, version=version)
        except OSError as error:
            raise VersionError(f"{self.url}: version {version} could not be written in full: {error}") from error

    def _write(self, folder: str, snapshot: Snapshot, *, version: int) -> Manifest:
        written: dict[str, bytes] = {}

        def files() -> Iterator[tuple[str, bytes]]:
            for name, data in version_files(snapshot, version=version):
                if name == MANIFEST:
                    written[name] = data
                yield name, data

        self._writing.add(folder)
        try:
            self._place.write_folder(folder, files())
        finally:
            self._writing.discard(folder)
        return manifest_of(written[MANIFEST])

    def _check_base(self, snapshot: Snapshot) -> None:
        last = self.published
        if snapshot.base and (last is None or (last.version, last.lineage) != (snapshot.base, snapshot.lineage)):
            found = "nothing" if last is None else f"version {last.version}"
            raise VersionError(
                f"{self.url}: a delta to version {snapshot.base} cannot follow {found}: publish a full version"
            )

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
            folder = name.removeprefix(TEMPORARY)
            own = number_of(folder.removesuffix(FULL_FORM)) is not None
            if own and name not in whole and folder not in self._writing:
                self._place.remove(name, marker=MANIFEST)
        self._cleaned = True

    def _retain(self, *, current: int) -> None:
        whole = set(self._whole())
        numbers = sorted(number for number in map(number_of, whole) if number is not None)
        forms = {number for name in whole if (number := number_of(name.removesuffix(FULL_FORM)))} - set(numbers)
        forms |= {number for number in numbers if full_folder_of(number) in whole}
        needed = self._needed({current, *numbers[-self._keep :]}, forms=forms)
        # The newest first: what is left after a crash is the beginning of a chain, and whole.
        for number in sorted({*numbers, *forms} - needed, reverse=True):
            for folder in (folder_of(number), full_folder_of(number)):
                if folder in whole:
                    self._place.remove(folder, marker=MANIFEST)

    def _needed(self, kept: set[int], *, forms: set[int]) -> set[int]:
        """The kept versions and all that lies between each and the nearest full one before it."""
        needed: set[int] = set()
        for number in kept:
            step = number
            while step and step not in needed:
                needed.add(step)
                step = 0 if step in forms else self._base_of(step)
        return needed

    def _base_of(self, version: int) -> int:
        if version not in self._bases:
            try:
                self._bases[version] = self.manifest(version).base
            except VersionError as error:
                # Not known now, not "none": what it builds on must stay.
                if isinstance(error.__cause__, OSError):
                    raise error.__cause__ from error
                return 0
        return self._bases[version]


def apply_version(module: torch.nn.Module, version: Version) -> None:
    """Put all weights into an unsharded model, in place; VersionError unless names and shapes agree exactly.

    A table is found by the state_dict name that TorchRec gives it, `...embedding_bags.<table>.weight` or
    `...embeddings.<table>.weight`; every other
    entry of the state_dict by its own name. Nothing is changed unless all of it fits. Entries on the meta device take
    over the version's own memory, others are copied into.
    """
    import torch  # here, so that whoever only reads or lists versions starts without it

    wanted = module.state_dict()
    given = {f"{TABLE}{name}": weights for name, weights in version.tables.items()} | version.dense
    keys = {key: _source(key) for key in wanted}
    missing, unused = set(keys.values()) - set(given), set(given) - set(keys.values())
    if missing or unused:
        raise VersionError(f"the model does not fit: missing {sorted(missing)}, not used {sorted(unused)}")
    for key, source in keys.items():
        if tuple(wanted[key].shape) != given[source].shape:
            raise VersionError(f"{source} is {list(given[source].shape)}, the model has {list(wanted[key].shape)}")
    state = {key: torch.from_numpy(np.ascontiguousarray(given[source])) for key, source in keys.items()}
    module.load_state_dict(state, assign=any(tensor.is_meta for tensor in wanted.values()))


def weights_of(module: torch.nn.Module) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """An unsharded model's tables and its other weights by name, as aliases of its memory (on the host)."""
    weights = {_source(key): tensor.detach().numpy() for key, tensor in module.state_dict().items()}
    tables = {name.removeprefix(TABLE): array for name, array in weights.items() if name.startswith(TABLE)}
    return tables, {name: array for name, array in weights.items() if not name.startswith(TABLE)}


def _source(key: str) -> str:
    """What fills an entry of the state_dict."""
    match = re.search(r"(?:^|\.)(?:embedding_bags|embeddings)\.([^.]+)\.weight$", key)
    return f"{TABLE}{match[1]}" if match else key
