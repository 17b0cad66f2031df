"""Plots: time per stage, memory over rows, throughput over rows, as SVG."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import Record, Results

_COLOUR, _LIGHT = "#2f5d8a", "#c98b3a"


def draw(results: Results, folder: Path) -> list[tuple[str, Path]]:
    """Draw what the results allow into the folder, and return titles and files. Without matplotlib nothing is drawn."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (make setup)", file=sys.stderr)  # noqa: T201
        return []
    matplotlib.use("svg")
    # The same results give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "benchmark", "font.size": 9, "axes.spines.top": False})
    matplotlib.rcParams.update({"axes.spines.right": False, "svg.fonttype": "none"})
    from matplotlib import pyplot

    loads = results.by_rows("first load")
    drawn = []
    kinds: tuple[tuple[str, str, Callable[[Any, list[Record]], None]], ...] = (
        ("Time per stage", "time_per_stage.svg", _stages),
        ("Memory over rows", "memory_over_rows.svg", _memory),
        ("Throughput over rows", "throughput_over_rows.svg", _throughput),
    )
    for title, name, plot in kinds if loads else ():
        figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
        plot(axes, loads)
        axes.set_title(title, loc="left", fontweight="bold")
        figure.savefig(folder / name, metadata={"Date": None})
        pyplot.close(figure)
        drawn.append((title, folder / name))
    return drawn


def _stages(axes: Any, loads: list[Record]) -> None:
    seconds = sorted(loads[-1]["stage_wall_s"].items(), key=lambda item: item[1])
    shown = [(stage, value) for stage, value in seconds if value >= 0.005 * sum(dict(seconds).values())]
    bars = axes.barh([stage for stage, _ in shown], [value for _, value in shown], color=_COLOUR)
    axes.bar_label(bars, fmt="{:,.1f}", padding=3)
    axes.set_xlabel(f"wall seconds of all task runs, first load of {loads[-1]['rows']:,} rows")


def _memory(axes: Any, loads: list[Record]) -> None:
    rows = [one["rows"] for one in loads]
    peaks = [max(mb for _, mb in one["peaks_mb"]) for one in loads]
    axes.plot(rows, peaks, marker="o", color=_COLOUR)
    axes.axhline(600, color=_LIGHT, linestyle="--", linewidth=1)
    axes.annotate("600 MB", (rows[0], 600), xytext=(0, 3), textcoords="offset points", color=_LIGHT)
    axes.set_ylim(0, 1.15 * max(600, *peaks))
    axes.set_ylabel("peak of the largest process, MB")
    _rows_axis(axes, rows)


def _throughput(axes: Any, loads: list[Record]) -> None:
    rows = [one["rows"] for one in loads]
    axes.plot(rows, [one["rows"] / one["run_wall_s"] for one in loads], marker="o", color=_COLOUR)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("rows a second", color=_COLOUR)
    beside = axes.twinx()
    cpu = [one["cpu_s"]["total"] / one["rows"] * 1e6 for one in loads]
    beside.plot(rows, cpu, marker="s", color=_LIGHT)
    beside.set_ylim(bottom=0)
    beside.set_ylabel("CPU ms per 1,000 rows", color=_LIGHT)
    _rows_axis(axes, rows)


def _rows_axis(axes: Any, rows: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(rows, [f"{number:,}" for number in rows])
    axes.minorticks_off()
    axes.set_xlabel("rows")


def bars(file: Path, title: str, groups: list[str], values: dict[str, list[float]]) -> None:
    """Draw a bar for each value between 0 and 1: a group of bars for each group, one of each name in it."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "benchmark", "font.size": 9, "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    width = 0.8 / len(values)
    for number, (name, heights) in enumerate(values.items()):
        places = [place + (number - (len(values) - 1) / 2) * width for place in range(len(groups))]
        drawn = axes.bar(places, heights, width, label=name)
        axes.bar_label(drawn, fmt="{:.2f}", padding=1, fontsize=6)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, 1.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.legend(ncols=len(values), fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
