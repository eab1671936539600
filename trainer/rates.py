"""Learning rates: from the config and the step alone, unless an order gave another one.

A part is `dense`, `sparse` (every table without a rate or schedule of its own) or `tables.<feature>`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping

import msgspec

from stream.config import ModelConfig, OptimizerConfig, RateConfig
from trainer.tables import Table, table_config

logger = logging.getLogger("trainer.rates")

DENSE, SPARSE, TABLES = "dense", "sparse", "tables."


class RateError(Exception):
    """An order about learning rates cannot be obeyed; the message says why, and nothing of it was."""


class GivenRate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rate that an order gave, and the config's that it stands for: another one in the config ends it."""

    rate: float
    over: float


class LearningRates:
    """What each part's rate is at a step. Schedules are functions of the step, so a cut needs `state` beside it."""

    def __init__(self, optimizer: OptimizerConfig, *, model: ModelConfig, tables: Iterable[Table]) -> None:
        self._base = {DENSE: optimizer.dense_learning_rate, SPARSE: optimizer.sparse_learning_rate}
        self._schedules = {DENSE: optimizer.dense_schedule, SPARSE: optimizer.sparse_schedule}
        for table in tables:
            part = part_of(table, model)
            if part != SPARSE:
                config = table_config(table.owner, model)
                self._base[part] = config.learning_rate or optimizer.sparse_learning_rate
                self._schedules[part] = config.schedule or optimizer.sparse_schedule
        self._given: dict[str, GivenRate] = {}

    def at(self, step: int) -> dict[str, float]:
        """By part, the rate of the step after `step` others."""
        return {
            part: (self._given[part].rate if part in self._given else base) * factor(self._schedules[part], step)
            for part, base in self._base.items()
        }

    def give(self, rates: Mapping[str, float | None]) -> None:
        """Take these from the next step on, schedules multiplied; None goes back to the config's. RateError."""
        unknown = sorted(rates.keys() - self._base.keys())
        if unknown:
            hint = " (a table needs trainer.model.tables.<feature>.learning_rate)" if unknown[0].startswith("t") else ""
            raise RateError(f"no learning rate '{unknown[0]}': there is {', '.join(self._base)}{hint}")
        for part, rate in rates.items():
            if rate is not None and not (math.isfinite(rate) and rate >= 0):
                raise RateError(f"learning rate '{part}': expected a number from 0, got {rate}")
        for part, rate in rates.items():
            self._given.pop(part, None)
            if rate is not None:
                self._given[part] = GivenRate(rate=rate, over=self._base[part])

    def state(self) -> dict[str, GivenRate]:
        """What a cut has to keep."""
        return dict(self._given)

    def restore(self, state: Mapping[str, GivenRate]) -> None:
        """Go on as `state` was; a part whose rate the config has changed since follows the config."""
        self._given = {part: given for part, given in state.items() if self._base.get(part) == given.over}
        for part in state.keys() - self._given.keys():
            now = self._base.get(part)
            logger.warning(
                "the config's learning rate holds", extra={"part": part, "given": state[part].rate, "is": now}
            )


def part_of(table: Table, model: ModelConfig) -> str:
    """`tables.<feature>` where the table has a rate or schedule of its own, else `sparse`."""
    config = table_config(table.owner, model)
    own = table.owner in model.tables and (config.learning_rate is not None or config.schedule is not None)
    return TABLES + table.owner if own else SPARSE


def factor(schedule: RateConfig, step: int) -> float:
    """What the rate is multiplied by after `step` steps: a linear rise, then the decay down to `floor`.

    Linear and cosine (Loshchilov and Hutter, arXiv 1608.03983, without restarts) reach it after `decay_steps`;
    `inverse_sqrt` (Vaswani et al., arXiv 1706.03762) falls as sqrt(decay_steps / steps) once those have passed.
    """
    rise = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    after = max(0, step - schedule.warmup_steps)
    done = min(1.0, after / schedule.decay_steps)
    fall = {
        "none": 1.0,
        "linear": 1 - (1 - schedule.floor) * done,
        "cosine": schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * done)) / 2,
        "inverse_sqrt": max(schedule.floor, math.sqrt(schedule.decay_steps / max(after, schedule.decay_steps))),
    }[schedule.decay]
    return rise * fall
