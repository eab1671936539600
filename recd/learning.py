"""What was learned, from the trainer's own log of steps, and what a model frozen early would have lost.

Normalised entropy of the first label, every sample predicted before it was learned from.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

FREEZE_AT = 0.25
"""Share of the samples after which the frozen model stops learning."""
SPACING = 1.1
"""A version is set aside for it whenever so many times more samples were trained."""
EVALUATE_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Learning:
    """NE is 1 for always predicting the base rate of these very samples; None where there is nothing to say."""

    ne: float | None = None
    ne_best: float | None = None
    """Of the probabilities that the traffic was drawn from; None for real events."""
    ne_base: float | None = None
    """Of predicting, at each moment, the rate of positives so far."""
    ne_frozen: float | None = None
    """Of the model as it was after a quarter of the samples, on the other three quarters."""
    ne_after_freeze: float | None = None
    """Of the trainer on the same three quarters."""
    auc: float | None = None
    calibration: float | None = None


class Step(msgspec.Struct, frozen=True):
    """One line of the trainer's `steps.jsonl`; sums by label."""

    step: int
    partition: int
    offset: int
    samples: int
    weight: list[float] = []
    positive: list[float] = []
    predicted: list[float] = []
    entropy: list[float] = []
    base_entropy: list[float] = []
    logged_weight: list[float] = []
    logged_positive: list[float] = []
    logged_entropy: list[float] = []


class Freezer:
    """Sets versions aside (as hard links) so that the one at a quarter of the end can be found at the end."""

    def __init__(self, *, versions: Path, frozen: Path) -> None:
        self._versions = versions
        self.frozen = frozen
        self._kept: list[tuple[int, str]] = []

    def look(self) -> None:
        """Set the current version aside when it is far enough from the last one; drop what is too old by now."""
        try:
            name = _version_name(json.loads((self._versions / "current.json").read_text())["version"])
            samples = int(_manifest(self._versions / name)["samples"])
            if samples > SPACING * (self._kept[-1][0] if self._kept else 0):
                for needed in _chain(self._versions, name):
                    _link_folder(self._versions / needed, self.frozen / needed)
                self._kept.append((samples, name))
        except FileNotFoundError:  # none yet, or it was retired at this very moment
            return
        while len(self._kept) > 1 and self._kept[1][0] <= FREEZE_AT * samples:
            self._kept.pop(0)
            names = {folder for _, kept in self._kept for folder in _chain(self.frozen, kept)}
            for path in [path for path in self.frozen.iterdir() if path.name not in names]:
                _remove_folder(path)

    def at_a_quarter(self, total: int) -> str | None:
        """Folder name of the newest version with at most a quarter of `total` samples, else of the oldest kept."""
        before = [name for samples, name in self._kept if samples <= FREEZE_AT * total]
        return before[-1] if before else self._kept[0][1] if self._kept else None


def learning_of(*, checkpoints: Path, config_path: Path, freezer: Freezer, auc: float | None) -> Learning:
    """Compute it at the end of a run, when every process has stopped."""
    steps = read_steps(checkpoints)
    if not steps:
        return Learning()
    ne_frozen = ne_after = None
    name = freezer.at_a_quarter(sum(step.samples for step in steps))
    if name is not None:
        frozen_step = int(_manifest(freezer.frozen / name)["step"])
        later = [step for step in steps if step.step > frozen_step]
        ne_after = ne_of(later)
        ne_frozen = _evaluate_frozen(name, later, config_path=config_path, frozen=freezer.frozen)
    positive, predicted = _total(steps, "positive"), _total(steps, "predicted")
    return Learning(
        ne=ne_of(steps),
        ne_best=ne_of(steps, kind="logged_"),
        ne_base=_normalised(_total(steps, "base_entropy"), _total(steps, "weight"), positive),
        ne_frozen=ne_frozen,
        ne_after_freeze=ne_after,
        auc=auc,
        calibration=predicted / positive if positive > 0 else None,
    )


def read_steps(checkpoints: Path) -> list[Step]:
    """The lines of all ranks in the order of training; a torn last line is left out."""
    steps: list[Step] = []
    for path in sorted(checkpoints.glob("steps*.jsonl*")):
        for line in path.read_bytes().splitlines():
            try:
                steps.append(msgspec.json.decode(line, type=Step))
            except msgspec.DecodeError:
                continue
    return sorted(steps, key=lambda step: step.step)


def ne_of(steps: Iterable[Step], *, kind: str = "") -> float | None:
    """NE of the first label over these steps; kind "logged_" for the logged scores."""
    steps = list(steps)
    sums = [_total(steps, kind + name) for name in ("entropy", "weight", "positive")]
    return _normalised(*sums)


def _total(steps: Iterable[Step], name: str) -> float:
    return math.fsum(values[0] for step in steps if (values := getattr(step, name)))


def _normalised(entropy: float, weight: float, positive: float) -> float | None:
    if not 0 < positive < weight:
        return None
    rate = positive / weight
    return entropy / -(positive * math.log(rate) + (weight - positive) * math.log1p(-rate))


def _evaluate_frozen(name: str, later: Iterable[Step], *, config_path: Path, frozen: Path) -> float | None:
    """NE of a set-aside version on the batches of these steps, computed by a process that may load torch."""
    ranges: dict[int, tuple[int, int]] = {}
    for step in later:
        first, end = ranges.get(step.partition, (step.offset, step.offset))
        ranges[step.partition] = (min(first, step.offset), max(end, step.offset + 1))
    if not ranges:
        return None
    asked = {"config": str(config_path), "versions_url": str(frozen), "version": int(name[1:]), "ranges": ranges}
    done = subprocess.run(
        [sys.executable, "-m", "recd.frozen"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=EVALUATE_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        print(f"the frozen model could not be evaluated: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return None
    result: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result.get("ne")


def _version_name(version: int) -> str:
    return f"v{version:010d}"


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def _chain(versions: Path, name: str) -> list[str]:
    """The folders that a version is made of: its own, and what a delta builds on."""
    names = [name]
    while base := _manifest(versions / names[-1]).get("base", 0):
        full = f"{names[-1]}-full"
        if (versions / full / "manifest.json").exists():
            return [*names, full]
        names.append(_version_name(base))
    return names


def _link_folder(source: Path, target: Path) -> None:
    """All of a folder, or nothing: what is linked already stays."""
    if target.exists():
        return
    unfinished = target.with_name(f"{target.name}.linking")
    unfinished.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        (unfinished / path.name).unlink(missing_ok=True)
        os.link(path, unfinished / path.name)
    unfinished.rename(target)


def _remove_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
