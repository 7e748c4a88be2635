"""Plots of `stepscore parity`, as SVG: error along the positions, and rewards of both sides."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from stepscore_export.parity.compare import Comparison, Profile, profile

PAIR, PYTORCH, WRONG = "#1f5fa8", "#8a8a8a", "#c8322b"
MOST_VECTORS = 5000
"""Points are rasterized above this number, which keeps the file small."""


def error_plot(comparison: Comparison, title: str) -> bytes:
    """Plot |error of the log-ratio| and |log-ratio| along the tokens: medians and 90th percentiles."""
    figure, axes = _figure(title, (7.5, 4.5))
    shown = {
        "log-ratio of PyTorch": (comparison.log_ratios, PYTORCH),
        "error of the log-ratio": (comparison.errors, PAIR),
    }
    for what, (values, color) in shown.items():
        _band(axes, profile(comparison.positions, values), what, color)
    axes.set_yscale("log" if np.any(comparison.errors) else "linear")
    axes.set_xlabel("position of the token")
    axes.set_ylabel("absolute value, nats")
    axes.grid(visible=True, which="major", alpha=0.3)
    _legend_below(figure, axes)
    return _svg(figure)


def reward_plot(comparison: Comparison, title: str) -> bytes:
    """Plot every step's reward by the pair against PyTorch's; steps with another sign are highlighted.

    The scale is linear around zero, up to the power of ten below the median of |reward|, and logarithmic
    beyond.
    """
    figure, axes = _figure(title, (6.0, 6.2))
    x, y = comparison.pytorch_step_rewards, comparison.step_rewards
    axes.axline((0, 0), (1, 1), color=PYTORCH, linewidth=0.8, zorder=0)  # straight on this scale, too
    same = np.sign(x) == np.sign(y)
    for members, what, color, size in ((same, "same sign", PAIR, 12), (~same, "other sign", WRONG, 24)):
        axes.scatter(
            x[members],
            y[members],
            s=size,
            linewidths=0,
            alpha=0.6,
            color=color,
            label=f"{what}: {members.sum():,} steps",
            rasterized=len(x) > MOST_VECTORS,
        )
    median = float(np.median(np.abs(x)))
    linear = 10.0 ** math.floor(math.log10(median)) if median else 1.0
    low, high = float(np.min([x, y])), float(np.max([x, y]))
    for axis, set_scale, set_limits in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim),
        (axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        set_scale("symlog", linthresh=linear)
        set_limits(min(1.2 * low, -linear), max(1.2 * high, linear))
        axis.grid(visible=True, alpha=0.3)
    axes.set_aspect("equal")
    axes.set_xlabel("step reward, PyTorch")
    axes.set_ylabel("step reward, stepscore")
    _legend_below(figure, axes)
    return _svg(figure)


def _band(axes: Any, found: Profile, what: str, color: str) -> None:
    """Draw a profile; zeros leave gaps, as a log scale has no place for them."""
    median, high = (np.where(values > 0, values, np.nan) for values in (found.median, found.percentile90))
    style = {"color": color, "marker": ".", "markersize": 4}
    axes.fill_between(found.positions, median, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(found.positions, high, label=f"{what}, 90th percentile", linewidth=0.8, linestyle=":", **style)
    axes.plot(found.positions, median, label=f"{what}, median", linewidth=1.4, **style)


def _figure(title: str, inches: tuple[float, float]) -> tuple[Any, Any]:
    """Make a figure without pyplot, which needs a display and has global state."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second, and only needed for --output

    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize="medium", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend_below(figure: Any, axes: Any) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)


def _svg(figure: Any) -> bytes:
    """Encode the figure; no date and no random names, so that equal numbers give equal bytes."""
    from matplotlib import rc_context  # noqa: PLC0415

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "stepscore"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
