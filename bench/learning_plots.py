"""The plots of docs/learning.md, drawn by `bench.learning`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.learning import Run

COLOURS = {"model": "#1565c0", "base": "#9e9e9e", "best": "#2e7d32", "frozen": "#c62828", "popularity": "#ef6c00"}
NAMES = {
    "model": "trainer",
    "base": "rate of positives so far",
    "best": "best possible (the truth)",
    "frozen": "frozen after a quarter",
    "popularity": "each item's rate so far",
}


def draw(runs: dict[str, Run], folder: Path) -> None:
    """One SVG a run; says so where matplotlib is not there."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plots: matplotlib is not installed (`uv pip install matplotlib`)")
        return
    mpl.use("Agg")
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "recd", "font.size": 11, "font.family": "sans-serif"}
    folder.mkdir(parents=True, exist_ok=True)
    plots = {
        "demo": ("Traffic whose tastes turn all the time: clicks", ("base", "frozen", "model", "best")),
        "jump": ("Tastes jump by a quarter turn, once: clicks", ("base", "frozen", "model", "best")),
        "deskdrop": ("Real reading events (deskdrop): engagements", ("base", "popularity", "frozen", "model")),
    }
    for name, (title, kinds) in plots.items():
        if name in runs:
            _draw(runs[name], title=title, kinds=kinds, path=folder / f"{name}.svg")


def _draw(run: Run, *, title: str, kinds: tuple[str, ...], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    thousands = [end / 1000 for end in run.ends]
    for kind in kinds:
        if kind in run.curves:
            width = 2.2 if kind == "model" else 1.4
            axes.plot(thousands, run.curves[kind], label=NAMES[kind], color=COLOURS[kind], linewidth=width)
    if run.jump is not None:
        axes.axvline(run.jump / 1000, color="black", linestyle=":", linewidth=1)
        axes.annotate(" jump", (run.jump / 1000, 0.02), xycoords=("data", "axes fraction"))
    shown = [value for kind in kinds for value in run.curves.get(kind, [])[2:] if not math.isnan(value)]
    margin = 0.05 * (max(shown) - min(shown))
    axes.set(xlabel="thousand samples", ylabel="normalised entropy (less is better)", title=title)
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set_xlim(0, thousands[-1])
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False, ncols=2, fontsize=10)
    figure.savefig(path, metadata={"Date": None})
