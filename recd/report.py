"""What a demo did, as numbers: from the audit of the topics where it can say, else from the services' own words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from recd.audit import AuditReport
from recd.audit import format_report as format_audit
from recd.learning import Learning
from recd.telemetry import Reading, Telemetry, factor
from recd.view import number, percentiles, size

PERCENTILES = ("p50", "p95", "p99")


@dataclass(frozen=True, slots=True)
class Dedup:
    """What deduplication gave, over all batches: counts, and how many times fewer."""

    rows: int
    rows_distinct: int
    rows_factor: float | None
    ids: int
    ids_stored: int
    ids_factor: float | None
    bytes_plain: int
    bytes_dedup: int
    bytes_factor: float | None

    @staticmethod
    def of(counters: dict[str, int]) -> Dedup:
        """From the workers' counters."""
        c = {name: counters.get(name, 0) for name in COUNTERS}
        return Dedup(
            rows=c["rows_in"],
            rows_distinct=c["rows_distinct"],
            rows_factor=factor(c["rows_in"], c["rows_distinct"]),
            ids=c["ids_in"],
            ids_stored=c["ids_stored"],
            ids_factor=factor(c["ids_in"], c["ids_stored"]),
            bytes_plain=c["bytes_plain"],
            bytes_dedup=c["bytes_dedup"],
            bytes_factor=factor(c["bytes_plain"], c["bytes_dedup"]),
        )


VERSION_COUNTERS = ("deltas_published", "full_written", "delta_bytes", "full_bytes")
COUNTERS = ("rows_in", "rows_distinct", "ids_in", "ids_stored", "bytes_plain", "bytes_dedup")


@dataclass(frozen=True, slots=True)
class Report:
    """The report of a run; times in ms, rates per second."""

    clean: bool
    audit: AuditReport
    dedup: Dedup
    learning: Learning
    final: Reading
    stage_rates: dict[str, float]
    batches: int
    requests: int
    requests_failed: int
    freshness: str
    """What event to weights is taken from: of old events, the time since the broker took them."""

    def to_dict(self) -> dict[str, Any]:
        """The keys that `--json` writes."""
        a, serving = self.audit, self.final.serving
        counters = serving.get("counters", {})
        trainer_counters = self.final.trainer.get("counters", {})
        return {
            "events": a.events,
            "impressions": a.impressions,
            "engagements": a.engagements,
            "sessions": self.final.stream.get("sessions_closed", 0),
            "samples": a.samples,
            "late": a.late_total,
            "quarantined": a.quarantined_total,
            "batches": self.batches,
            "lost": a.lost,
            "duplicated": a.duplicated,
            "dedup": asdict(self.dedup),
            **asdict(self.learning),
            "segments": self.final.trainer.get("segments", {}),
            "alarms": self.final.trainer.get("counters", {}).get("alarms", 0),
            "event_to_weights_ms": _percentiles(self.final.trainer.get(self.freshness)),
            "event_to_weights_since": self.freshness.partition("_")[0],
            "weights_to_server_ms": _percentiles(serving.get("weights_to_server_ms")),
            "latency_ms": _percentiles(serving.get("latency_ms")),
            "versions": {
                "published": self.final.trainer.get("version") or 0,
                "served": counters.get("versions_loaded", 0),
                "in_service": serving.get("version"),
                **{name: trainer_counters.get(name, 0) for name in VERSION_COUNTERS},
            },
            "requests": {"answered": self.requests, "failed": self.requests_failed},
            "samples_per_second": self.stage_rates,
            "audit": a.to_dict(),
        }

    def to_json(self) -> str:
        """One JSON object, indented."""
        return json.dumps(self.to_dict(), indent=2, default=str) + "\n"


def build_report(
    audited: AuditReport, *, learning: Learning, telemetry: Telemetry, requests: tuple[int, int], live: bool
) -> Report:
    """Put the report together; `requests` are those answered and failed, `live` means events dated now."""
    newest = telemetry.newest
    return Report(
        clean=audited.ok,
        audit=audited,
        dedup=Dedup.of(newest.stream),
        learning=learning,
        final=newest,
        stage_rates=telemetry.stage_rates(),
        batches=newest.stream.get("batches", 0),
        requests=requests[0],
        requests_failed=requests[1],
        freshness="event_to_weights_ms" if live else "append_to_weights_ms",
    )


def format_report(report: Report) -> RenderableType:
    """For people: what went through, what dedup gave, what was learned, how fresh, and the audit's verdict."""
    d, learned, final = report.dedup, report.learning, report.final
    table = Table(title="recd demo", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    a = report.audit
    table.add_row("events", f"{a.events:,}: {a.impressions:,} impressions, {a.engagements:,} engagements")
    table.add_row("samples", f"{a.samples:,} in {report.batches:,} batches")
    table.add_row("late, quarantined", f"{a.late_total:,}, {a.quarantined_total:,}")
    table.add_row("dedup rows", _factor_line(d.rows, d.rows_distinct, d.rows_factor))
    table.add_row("dedup ids", _factor_line(d.ids, d.ids_stored, d.ids_factor))
    sizes = f"{size(d.bytes_plain)} → {size(d.bytes_dedup)}, {number(d.bytes_factor, 2)}x fewer"
    table.add_row("dedup bytes", sizes)
    table.add_row(
        "normalised entropy",
        f"{number(learned.ne, 4)} (best possible {number(learned.ne_best, 4)}, base rate {number(learned.ne_base, 4)})",
    )
    table.add_row(
        "after the first quarter",
        f"{number(learned.ne_after_freeze, 4)} online, {number(learned.ne_frozen, 4)} for the model frozen there",
    )
    table.add_row("AUC, calibration", f"{number(learned.auc, 4)}, {number(learned.calibration, 3)}")
    table.add_row(
        "AUC of new, known items", "{}, {}".format(*(_auc_of(final, name) for name in ("new_items", "known_items")))
    )
    table.add_row("alarms of guards", number(final.trainer.get("counters", {}).get("alarms", 0), 0))
    since = "event" if report.freshness.startswith("event") else "append"
    table.add_row(f"{since} → weights", percentiles(final.trainer.get(report.freshness)) + "  (p50 / p95 / p99)")
    table.add_row("weights → server", percentiles(final.serving.get("weights_to_server_ms")))
    loaded = final.serving.get("counters", {}).get("versions_loaded", 0)
    table.add_row("versions", f"{final.trainer.get('version') or 0:,} published, {loaded:,} served")
    table.add_row("score requests", f"{report.requests:,} answered, {report.requests_failed:,} failed")
    rates = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in report.stage_rates.items())
    table.add_row("mean rates", rates)
    return Group(table, "", format_audit(a))


def write(report: Report, path: Path) -> None:
    """Write the JSON form, making the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.to_json(), encoding="utf-8")


def _auc_of(final: Reading, segment: str) -> str:
    """Of the first label."""
    labels = final.trainer.get("segments", {}).get(segment, {})
    return number(next(iter(labels.values()))["auc"], 4) if labels else "-"


def _factor_line(plain: int, kept: int, times: float | None) -> str:
    return f"{plain:,} → {kept:,}, {number(times, 2)}x fewer"


def _percentiles(value: Any) -> dict[str, float | None]:
    found = value if isinstance(value, dict) else {}
    return {p: found.get(p) for p in PERCENTILES}
