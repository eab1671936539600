"""What a person sees: the live view and its line, from values alone."""

import io

import pytest
from rich.console import Console

from recd.learning import Step, ne_of
from recd.telemetry import Reading, Telemetry, factor, read
from recd.view import ServiceLine, View, duration, one_line, render, size, sparkline

WORKERS = (
    {
        "counters": {"events": 1200, "samples": 900, "batches": 3, "rows_in": 300, "rows_distinct": 100},
        "partitions": {"0": {"open_sessions": 4, "lag": 7}},
    },
    {"counters": {"events": 34, "samples": 100, "batches": 1}, "partitions": {"1": {"open_sessions": 1, "lag": -2}}},
)
TRAINER = {"samples": 950, "ne": 0.91234, "ne_window": 0.85, "logged_ne": None, "lag_batches": 2, "version": 9}
SERVING = {"version": 8, "counters": {"requests": 5, "candidates": 20}}


def reading(at_s: float = 2.0) -> Reading:
    return read(at_s, workers=WORKERS, trainer=TRAINER, serving=SERVING)


def view_of(telemetry: Telemetry) -> View:
    return View(
        phase="live traffic",
        elapsed_s=3.0,
        total_s=60.0,
        reading=telemetry.newest,
        rates=telemetry.rates(),
        ne_history=telemetry.ne_history,
        services=[ServiceLine("stream-0", "running", 17, 5 << 20, "http://127.0.0.1:1")],
        label="click",
    )


def shown(view: View, *, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(render(view))
    return console.export_text()


def test_workers_are_added_up() -> None:
    newest = reading()
    assert newest.stream["events"] == 1234
    assert (newest.open_sessions, newest.stream_lag) == (5, 7)


def test_rates_are_of_the_last_readings() -> None:
    telemetry = Telemetry()
    telemetry.add(reading(2.0))
    assert telemetry.rates().events == 617.0
    telemetry.add(reading(4.0))
    assert telemetry.rates().events == 308.5
    for at_s in range(6, 30, 2):
        telemetry.add(reading(float(at_s)))
    assert telemetry.rates().events == 0.0


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_screen_shows_the_figures_at_every_width(width: int) -> None:
    telemetry = Telemetry()
    telemetry.add(reading())
    text = shown(view_of(telemetry), width=width)
    for figure in ("1,234", "300 → 100", "3.00x", "0.8500, 0.9123", "8 (of 9)", "stream-0", "5.0 MiB"):
        assert figure in text
    assert max(map(len, text.splitlines())) <= width


def test_before_anything_has_answered_there_are_dashes() -> None:
    text = shown(view_of(Telemetry()), width=100)
    assert "–" in text
    assert "None" not in text


def test_the_line_for_a_log() -> None:
    telemetry = Telemetry()
    telemetry.add(reading())
    line = one_line(view_of(telemetry))
    assert "events 1,234" in line
    assert "lag 7+2" in line
    assert "\n" not in line


def test_units_for_people() -> None:
    assert [duration(ms) for ms in (None, 12.4, 1_500)] == ["–", "12 ms", "1.5 s"]
    assert [size(n) for n in (5, 2048, 3 << 20, 4 << 30)] == ["5 B", "2.0 KiB", "3.0 MiB", "4.00 GiB"]
    assert sparkline([1.0, 0.5, 0.0], width=2) == "█▁"
    assert (factor(10, 4), factor(1, 0)) == (2.5, None)


def test_ne_over_steps_is_that_of_all_their_samples() -> None:
    """Half positives, predicted at 0.5, is an entropy of ln 2 a sample: NE 1."""
    half = Step(
        step=1, partition=0, offset=0, samples=4, weight=[4.0], positive=[2.0], entropy=[4 * 0.6931471805599453]
    )
    better = Step(step=2, partition=0, offset=1, samples=4, weight=[4.0], positive=[2.0], entropy=[0.0])
    assert ne_of([half]) == pytest.approx(1.0)
    assert ne_of([half, better]) == pytest.approx(0.5)
    assert ne_of([]) is None
