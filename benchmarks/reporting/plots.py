"""Plot speed by engine and latency by length as SVG text. The same results give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator

import matplotlib as mpl
from benchmarks.reporting.table import Result, Results, of_kind, shape_name
from benchmarks.support.machine import integer_unit
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STEPSCORE, PEER = "#1b6ca8", "#b9c2cc"
STYLE = {"svg.hashsalt": "stepscore", "svg.fonttype": "path", "font.size": 9, "axes.edgecolor": "#8a939c"}


def all_plots(results: Results) -> dict[str, str]:
    """Return the plots that have results, by the name of their file."""
    plots = {"throughput": throughput(results), "latency": latency(results)}
    return {name: svg for name, svg in plots.items() if svg is not None}


def throughput(results: Results) -> str | None:
    """Return bars of tokens/s, a panel for each workload of each shape."""
    panels = [
        (f"{shape_name(result)}, {_unit(result)}: {workload['workload']}", list(_bars(workload)))
        for result in of_kind(results, "throughput")
        for workload in result["workloads"]
    ]
    if not panels:
        return None
    figure = Figure(figsize=(7.5, sum(0.7 + 0.24 * len(bars) for _, bars in panels)), layout="constrained")
    heights = [len(bars) + 1 for _, bars in panels]
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, (title, bars) in zip(axes, panels, strict=True):
        _draw_bars(axis, title, bars)
    return _svg(figure)


def latency(results: Results) -> str | None:
    """Return lines of p50 over the length, with a band up to p90, a panel for each shape."""
    found = [
        result for result in of_kind(results, "latency") if any("lengths" in row for row in result["rows"])
    ]
    if not found:
        return None
    figure = Figure(figsize=(7.5, 3.2 * len(found)), layout="constrained")
    for axis, result in zip(figure.subplots(len(found), 1, squeeze=False)[:, 0], found, strict=True):
        _draw_lines(axis, result)
    return _svg(figure)


def _unit(result: Result) -> str:
    return integer_unit(result["machine"]["cpu_features"], amx=result["amx"])


def _bars(workload: Result) -> Iterator[tuple[str, float, float, float]]:
    """Yield (engine, median, slowest, fastest) of each engine's first round."""
    seen = set()
    for row in workload["rows"]:
        if "skipped" not in row and row["peer"] not in seen:
            seen.add(row["peer"])
            speed = row["pair_tokens_per_second"]
            yield row["peer"], speed["median"], speed["slowest"], speed["fastest"]


def _draw_bars(axis: Axes, title: str, bars: list[tuple[str, float, float, float]]) -> None:
    bars = sorted(bars, key=lambda bar: bar[1])
    names, medians, slowest, fastest = zip(*bars, strict=True)
    spread = [
        [median - low for median, low in zip(medians, slowest, strict=True)],
        [high - median for median, high in zip(medians, fastest, strict=True)],
    ]
    colours = [STEPSCORE if name.startswith("stepscore") else PEER for name in names]
    axis.barh(names, medians, xerr=spread, color=colours, error_kw={"elinewidth": 1, "ecolor": "#333"})
    axis.set_title(title, loc="left", fontsize=9)
    axis.set_xlabel("input tokens/s, both models")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_lines(axis: Axes, result: Result) -> None:
    for row in result["rows"]:
        if "lengths" not in row:
            continue
        tokens = [each["tokens"] for each in row["lengths"]]
        (line,) = axis.plot(
            tokens, [each["p50"] for each in row["lengths"]], marker="o", ms=3, label=row["peer"]
        )
        low, high = ([each[key] for each in row["lengths"]] for key in ("p50", "p90"))
        axis.fill_between(tokens, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_title(f"{shape_name(result)}: p50, band to p90", loc="left", fontsize=9)
    axis.set_xlabel("tokens of one sequence")
    axis.set_ylabel("seconds")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
