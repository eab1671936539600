"""When rank 0 wants a cut, a version, a report: by the clock, and by what it was told."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from stream.config import TrainerConfig
from trainer.orders import Orders, StandingOrders

REPORT_EVERY_MS = 500


@dataclass(frozen=True)
class Wants:
    """What is to be done at this step boundary."""

    checkpoint: bool = False
    publish: bool = False
    report: bool = False
    reload: int = 0
    """Version to take; 0: none."""
    rates: Mapping[str, float | None] = field(default_factory=dict)
    """Learning rates to take."""
    release: bool = False
    """What guards hold back is to go out."""


class Schedule:
    """Asked by rank 0 before every step; `orders` None: on the clock alone. `standing` outlives a restart."""

    def __init__(self, config: TrainerConfig, *, orders: Orders | None, standing: StandingOrders | None = None) -> None:
        self._config = config
        self._orders = orders
        self._last_cut_ms = self._last_publication_ms = self._last_report_ms = _now_ms()
        self._standing = standing
        self._cut_ordered = False
        self.paused = standing is not None and standing.paused
        self.orders_obeyed = 0

    @property
    def idle_timeout_s(self) -> float:
        """How long a rank whose topic holds nothing waits before it joins the others with nothing."""
        return self._config.idle_timeout_ms / 1000

    @property
    def orders_refused(self) -> int:
        """Orders that were not understood."""
        return self._orders.refused if self._orders else 0

    def wants(self, *, uncut: bool, unpublished: bool, cut_busy: bool, publisher_busy: bool) -> Wants:
        """`uncut`, `unpublished`: there is something new since the last cut, the last version. `cut_busy`: not now."""
        now_ms = _now_ms()
        ordered = self._ordered()
        self._cut_ordered |= ordered.checkpoint
        due = uncut and self._due(self._last_cut_ms, self._config.checkpoint_every_ms)
        checkpoint = not cut_busy and (self._cut_ordered or due)
        publish = ordered.publish or (
            unpublished and not publisher_busy and self._due(self._last_publication_ms, self._config.publish_every_ms)
        )
        report = self._due(self._last_report_ms, REPORT_EVERY_MS)
        if checkpoint:
            self._last_cut_ms, self._cut_ordered = now_ms, False
        self._last_publication_ms = now_ms if publish else self._last_publication_ms
        self._last_report_ms = now_ms if report else self._last_report_ms
        return Wants(checkpoint, publish, report, ordered.reload, ordered.rates, ordered.release)

    def cut_later(self) -> None:
        """A cut that was wanted could not be taken: it is wanted still."""
        self._cut_ordered = True

    def _due(self, last_ms: int, every_ms: int) -> bool:
        return _now_ms() - last_ms >= every_ms

    def _ordered(self) -> Wants:
        order = self._orders.next() if self._orders else None
        if order is None:
            return Wants()
        self.orders_obeyed += 1
        if order.action in ("pause", "resume"):
            self.paused = order.action == "pause"
            if self._standing is not None:
                self._standing.keep(paused=self.paused)
        reload = order.version if order.action == "reload" else 0
        told = {name: order.action == name for name in ("checkpoint", "publish", "release")}
        return Wants(reload=reload, rates=order.rates, **told)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
