"""The live view of a demo: one renderable made from values, drawn by rich."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from recd.telemetry import Rates, Reading, factor

HEALTHY = ("running", "ready", "serving", "training", "idle")
SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class ServiceLine:
    """One row of the table of processes."""

    name: str
    state: str
    pid: int | None
    memory_bytes: int
    address: str


@dataclass(frozen=True, slots=True)
class View:
    """All that the live view shows at one moment."""

    phase: str
    elapsed_s: float
    total_s: float | None
    reading: Reading
    rates: Rates
    ne_history: Sequence[float]
    services: Sequence[ServiceLine]
    label: str
    since: str = "event"
    """What freshness is counted from: "event" time, or the "append" to the log where events are old."""


def render(view: View) -> RenderableType:
    """The whole screen, about 100 columns wide."""
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(_flow(view), _learning(view))
    grid.add_row(_dedup(view), _serving(view))
    return Group(_header(view), grid, _services(view))


def one_line(view: View) -> str:
    """The same for a log: one line."""
    r, t = view.reading, view.reading.trainer
    return (
        f"[{view.elapsed_s:6.1f}s] {view.phase}: events {r.stream.get('events', 0):,} ({view.rates.events:,.0f}/s)  "
        f"samples {r.stream.get('samples', 0):,}  trained {t.get('samples', 0):,}  "
        f"NE {number(t.get('ne'), 4)} (best {number(t.get('logged_ne'), 4)})  "
        f"version {r.serving.get('version') or '-'}  lag {r.stream_lag:,}+{t.get('lag_batches', 0)}"
    )


def number(value: Any, digits: int) -> str:
    """A figure, or a dash where there is none yet."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "–"


def percentiles(value: Any) -> str:
    """`p50 / p95 / p99` in the unit that reads best."""
    if not isinstance(value, dict) or value.get("p50") is None:
        return "–"
    return " / ".join(duration(value[p]) for p in ("p50", "p95", "p99"))


def duration(ms: float | None) -> str:
    """Milliseconds for people."""
    if ms is None:
        return "–"
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def sparkline(values: Sequence[float], *, width: int) -> str:
    """The course of a figure, newest at the right."""
    recent = list(values)[-width:]
    if not recent:
        return ""
    low, high = min(recent), max(recent)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((value - low) * scale)] for value in recent)


def _header(view: View) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column()
    grid.add_column(ratio=1)
    grid.add_column(justify="right")
    shown_s = min(view.elapsed_s, view.total_s) if view.total_s else view.elapsed_s
    clock = f"{shown_s:.0f} s" + (f" of {view.total_s:.0f}" if view.total_s else "")
    bar: RenderableType = Text("")
    if view.total_s:
        bar = ProgressBar(total=view.total_s, completed=min(view.elapsed_s, view.total_s))
    grid.add_row(Text(f"recd-stream  {view.phase}", style="bold"), bar, clock)
    return Panel(grid, border_style="cyan")


def _panel(title: str, rows: Sequence[tuple[str, str]]) -> Panel:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for name, value in rows:
        table.add_row(name, value)
    return Panel(table, title=title, title_align="left")


def _flow(view: View) -> Panel:
    c, r = view.reading.stream, view.rates
    return _panel(
        "stream",
        [
            ("events in", f"{c.get('events', 0):,}  ({r.events:,.0f}/s)"),
            ("sessions closed", f"{c.get('sessions_closed', 0):,}  ({r.sessions:,.0f}/s)"),
            ("sessions open", f"{view.reading.open_sessions:,}"),
            ("samples", f"{c.get('samples', 0):,}  ({r.samples:,.0f}/s)"),
            ("batches", f"{c.get('batches', 0):,}  ({r.batches:,.1f}/s)"),
            ("late, quarantined", f"{c.get('late', 0):,}, {c.get('quarantined', 0):,}"),
            ("lag", f"{view.reading.stream_lag:,} records"),
        ],
    )


def _dedup(view: View) -> Panel:
    c = view.reading.stream

    def times(plain: str, kept: str) -> str:
        value = factor(c.get(plain, 0), c.get(kept, 0))
        return f"{c.get(plain, 0):,} → {c.get(kept, 0):,}  {number(value, 2)}x"

    looked = c.get("near_hits", 0) + c.get("near_misses", 0)
    bytes_factor = factor(c.get("bytes_plain", 0), c.get("bytes_dedup", 0))
    return _panel(
        "dedup cache",
        [
            ("feature rows", times("rows_in", "rows_distinct")),
            ("ids", times("ids_in", "ids_stored")),
            ("bytes", f"{size(c.get('bytes_plain', 0))} → {size(c.get('bytes_dedup', 0))}  {number(bytes_factor, 2)}x"),
            ("values by id", f"{c.get('values_shipped', 0):,} shipped"),
            ("near-cache hits", f"{100 * c.get('near_hits', 0) / looked:.1f} %" if looked else "–"),
            ("redis errors", f"{c.get('redis_errors', 0):,}"),
            ("samples a batch", number(factor(c.get("samples", 0), c.get("batches", 0)), 1)),
        ],
    )


def _learning(view: View) -> Panel:
    t = view.reading.trainer
    return _panel(
        f"trainer ({view.label})",
        [
            ("samples", f"{t.get('samples', 0):,}  ({view.rates.trained:,.0f}/s)"),
            ("steps, lag", f"{t.get('step', 0):,}, {t.get('lag_batches', 0)} batches"),
            ("loss", number(t.get("loss"), 4)),
            ("NE now, all", f"{number(t.get('ne_window'), 4)}, {number(t.get('ne'), 4)}"),
            ("NE best, base rate", f"{number(t.get('logged_ne'), 4)}, {number(t.get('base_ne'), 4)}"),
            ("AUC, calibration", f"{number(t.get('auc'), 3)}, {number(t.get('calibration'), 3)}"),
            ("NE", sparkline(view.ne_history, width=30)),
        ],
    )


def _serving(view: View) -> Panel:
    s, t = view.reading.serving, view.reading.trainer
    counters = s.get("counters", {})
    return _panel(
        "serving",
        [
            ("version in force", f"{s.get('version') or '–'} (of {t.get('version') or '–'})"),
            ("versions loaded", f"{counters.get('versions_loaded', 0):,}"),
            ("requests, candidates", f"{counters.get('requests', 0):,}, {counters.get('candidates', 0):,}"),
            ("latency p50/95/99", percentiles(s.get("latency_ms"))),
            (f"{view.since} → weights", percentiles(t.get(f"{view.since}_to_weights_ms"))),
            ("weights → server", percentiles(s.get("weights_to_server_ms"))),
            ("errors", f"{counters.get('errors', 0):,}"),
        ],
    )


def _services(view: View) -> Panel:
    table = Table(expand=True, box=None, padding=(0, 1))
    for name in ("process", "state", "pid", "memory", "address"):
        table.add_column(name, style="dim" if name in ("pid", "address") else "", header_style="dim")
    for line in view.services:
        style = "green" if line.state in HEALTHY else "bold red" if line.state == "failed" else "yellow"
        pid = str(line.pid) if line.pid else "–"
        table.add_row(line.name, Text(line.state, style=style), pid, size(line.memory_bytes), line.address)
    return Panel(table, border_style="dim")
