"""The cut: weights, optimizer, positions, metrics and random state of one moment between two steps.

A cut is written beside the older ones and put in force by one rename (ARCHITECTURE.md, "The cut"). A crash at any
point leaves the former cut in force. Digests are verified before anything else of a cut is opened.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from trainer import cut_files, durable
from trainer.cut_files import CURRENT, RECORD, TEMPORARY, Current, CutError, CutRecord, DamagedCut, cuts_folder
from trainer.cut_tensors import Tensors, load_tensors, save_tensors, saved_shapes, shapes_of_all
from trainer.folder_lock import FolderLock, FolderTaken, lock_versions
from trainer.model_record import ModelRecord
from trainer.ranks import Ranks
from trainer.takeover import TakenOver, Takeover, plan_exactly, plan_takeover

logger = logging.getLogger("trainer.cut")

__all__ = ["CutError", "CutRecord", "CutStore", "DamagedCut", "LoadedCut", "cuts_folder"]


@dataclass(frozen=True)
class LoadedCut:
    """What was read beside the tensors."""

    name: str
    record: CutRecord
    arrays: list[dict[str, np.ndarray]]
    """By rank of the processes that wrote the cut."""
    passed_over: list[str]
    """Damaged cuts that were newer, with the reason."""
    taken_over: TakenOver


class CutStore:
    """The cuts in one folder. All ranks make the same calls in the same order.

    `hook` is called with the name of each stage of writing as it is reached: a place to crash in tests.
    """

    def __init__(self, url: str, *, keep: int, ranks: Ranks, hook: Callable[[str], object] = lambda _: None) -> None:
        self._root = cuts_folder(url)
        self._keep = keep
        self._ranks = ranks
        self._hook = hook
        self._locks: list[FolderLock] = []

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    def hold(self, *, versions_url: str | None = None) -> None:
        """Keep other trainers off the folder until this process ends, and from publishing to `versions_url`.

        FolderTaken on all ranks where another one has either.
        """
        error = None
        if self._ranks.rank == 0:
            try:
                self._locks.append(FolderLock(self._root))
                if versions_url is not None and (lock := lock_versions(versions_url)) is not None:
                    self._locks.append(lock)
            except CutError as failure:
                error = str(failure)
        error = self._ranks.first_error(error)
        if error is not None:
            self.release()
            raise FolderTaken(error)

    def release(self) -> None:
        """Let others have both."""
        while self._locks:
            self._locks.pop().release()

    def write(
        self,
        tensors: Tensors,
        *,
        record: CutRecord,
        arrays: Mapping[str, np.ndarray],
        before: Callable[[], object] = lambda: None,
    ) -> str:
        """Write a cut and put it in force; returns its name. `arrays` are this rank's own; `record` is rank 0's.

        `before` is called on every rank ahead of anything that is written. Raises CutError on all ranks where it could
        not be written; the former cut stays in force. Stages:

        1. `begun`: an empty folder of a temporary name;
        2. `tensors`, `arrays`, `record`, `sealed`: its files, the digests last;
        3. `renamed`: the folder has its name, but nobody looks at it;
        4. `current`: it is in force;
        5. `retained`: older ones are deleted.
        """
        number = self._agree_number(record.step)
        temporary = self._root / f"{TEMPORARY}{cut_files.cut_name(number)}"
        try:
            self._agree("before", before)
            self._stage("begun", lambda: self._begin(temporary), only_first=True)
            save_tensors(tensors, temporary, ranks=self._ranks)
            self._hook("tensors")
            self._stage("arrays", lambda: self._write_arrays(temporary, arrays))
            self._stage("record", lambda: self._write_record(temporary, record), only_first=True)
            self._stage("sealed", lambda: cut_files.seal(temporary), only_first=True)
            self._stage("renamed", lambda: self._rename(temporary), only_first=True)
            name = cut_files.cut_name(number)
            self._stage("current", lambda: cut_files.replace_current(self._root, name), only_first=True)
        except CutError:
            if self._ranks.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if self._ranks.rank == 0:
            try:
                self._retain(number)
            except OSError:
                logger.exception("an older cut could not be deleted", extra={"folder": str(self._root)})
        self._hook("retained")
        return name

    def load(
        self,
        tensors: Tensors,
        *,
        model: ModelRecord | None = None,
        check: Callable[[str, CutRecord], object] = lambda *_: None,
    ) -> LoadedCut | None:
        """Fill `tensors` from the newest cut that is whole; None where there is no cut at all.

        Damaged cuts are passed over. `model` says what the tensors are: another one than the cut's takes over by name
        what it can. `check` may refuse a cut, by its name and record, before a tensor is touched. Raises CutError where
        all cuts are damaged, or where tensors and cut do not fit.
        """
        chosen, passed_over, error = self._choose() if self._ranks.rank == 0 else ("", [], None)
        chosen, passed_over, error = self._ranks.gather((chosen, passed_over, error))[0]
        if error is not None:
            raise CutError(error)
        if not chosen:
            return None
        folder = self._root / chosen
        record = cut_files.decode((folder / RECORD).read_bytes(), CutRecord, what=str(folder / RECORD))
        check(chosen, record)
        takeover = self._plan(tensors, folder, was=record.model, now=model)
        load_tensors(tensors, folder, moves=takeover.moves, ranks=self._ranks)
        arrays = [_read_arrays(_arrays_file(folder, rank)) for rank in range(record.world_size)]
        return LoadedCut(chosen, record, arrays, passed_over, takeover.taken_over)

    def clean(self) -> None:
        """Delete what crashes left; once, before the first `write`."""
        if self._ranks.rank == 0:
            for folder in cut_files.unfinished(self._root):
                shutil.rmtree(folder, ignore_errors=True)

    def _stage(self, name: str, work: Callable[[], object], *, only_first: bool = False) -> None:
        """Do a part of the work, on rank 0 only or on all; CutError on all ranks where it failed on one."""
        self._agree(name, work, only_first=only_first)
        self._hook(name)

    def _agree(self, name: str, work: Callable[[], object], *, only_first: bool = False) -> None:
        error = None
        if self._ranks.rank == 0 or not only_first:
            try:
                work()
            except Exception as failure:
                # Whatever it is: a rank that goes its own way here would leave the others waiting for it.
                logger.exception("writing a cut failed", extra={"stage": name})
                error = f"{self._root}: the cut could not be written ({name}): {type(failure).__name__}: {failure}"
        error = self._ranks.first_error(error)
        if error is not None:
            raise CutError(error)

    def _agree_number(self, step: int) -> int:
        number, error = 0, None
        if self._ranks.rank == 0:
            try:
                number = max(cut_files.cut_numbers(self._root), default=0) + 1
            except OSError as failure:
                error = f"{self._root}: the cuts that are there cannot be listed: {failure}"
        found = self._ranks.gather((number, step, error))
        number, first_step, error = found[0]
        if error is None and any(one[1] != first_step for one in found):
            error = f"{self._root}: the ranks are at different steps: {[one[1] for one in found]}"
        if error is not None:
            raise CutError(error)
        return number

    def _begin(self, temporary: Path) -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def _write_arrays(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
        data = save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        durable.write_through(_arrays_file(folder, self._ranks.rank), data)

    def _write_record(self, folder: Path, record: CutRecord) -> None:
        durable.write_through(folder / RECORD, msgspec.json.encode(record))

    def _rename(self, temporary: Path) -> None:
        temporary.rename(self._root / temporary.name.removeprefix(TEMPORARY))
        durable.sync_folder(self._root)

    def _retain(self, newest: int) -> None:
        for number in cut_files.cut_numbers(self._root)[: -self._keep]:
            if number != newest:
                cut_files.remove(self._root / cut_files.cut_name(number))

    def _choose(self) -> tuple[str, list[str], str | None]:
        """The cut in force or, where that is damaged, the newest whole one before it; and why others were not taken."""
        passed_over: list[str] = []
        try:
            in_force = self._in_force()
        except DamagedCut as error:
            in_force = None
            passed_over.append(str(error))
        numbers = cut_files.cut_numbers(self._root)
        limit = cut_files.cut_number(in_force) if in_force else None
        for number in reversed(numbers):
            if limit is not None and number > limit:
                continue
            folder = self._root / cut_files.cut_name(number)
            try:
                cut_files.verify(folder)
                cut_files.decode((folder / RECORD).read_bytes(), CutRecord, what=str(folder / RECORD))
            except DamagedCut as error:
                passed_over.append(str(error))
            else:
                return folder.name, passed_over, None
        if in_force or passed_over:
            reasons = "; ".join(passed_over) or f"{self._root / str(in_force)} is missing"
            hint = "restore one of them, or set trainer.checkpoint_url to an empty folder to start anew"
            return "", passed_over, f"no cut in {self._root} can be used: {reasons}; {hint}"
        return "", [], None

    def _in_force(self) -> str | None:
        path = self._root / CURRENT
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedCut(f"{path}: {error}") from None
        name = cut_files.decode(data, Current, what=str(path)).cut
        if cut_files.cut_number(name) is None:
            raise DamagedCut(f"{path}: {name!r} is no cut")
        if not (self._root / name).is_dir():
            raise DamagedCut(f"{path}: {name} is not there")
        return name

    def _plan(self, tensors: Tensors, folder: Path, *, was: ModelRecord | None, now: ModelRecord | None) -> Takeover:
        saved, own = saved_shapes(folder), shapes_of_all(tensors, ranks=self._ranks)
        if was is not None and now is not None:
            return plan_takeover(folder.name, saved=saved, own=own, was=was, now=now)
        return plan_exactly(folder.name, saved=saved, own=own)


def _arrays_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:04d}.safetensors"


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_arrays(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise DamagedCut(f"{path}: {error}") from None
