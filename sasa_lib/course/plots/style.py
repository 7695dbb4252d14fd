"""The one style of all figures, and the marks that they share."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

NONTOXIC, TOXIC = "#0072B2", "#D55E00"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "0.45")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LABEL_HEIGHT = 13  # points
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def set_style() -> None:
    """Set the one style of all figures; a notebook calls it once."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette=list(SERIES),
        rc={
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "legend.frameon": False,
            "savefig.dpi": 200,
        },
    )


def save(figure: Figure, folder: str | Path, name: str) -> None:
    """Write a figure as `name`.png and `name`.svg into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("png", "svg"):
        figure.savefig(folder / f"{name}.{ending}")


def is_steered(results: pd.DataFrame) -> list[str]:
    """Methods but plain sampling, in the order of the table."""
    return [method for method in dict.fromkeys(results["method"]) if method != "plain"]


def draw_front(axes: plt.Axes, results: pd.DataFrame, toxicity: str, methods: list[str]) -> None:
    """Curves from plain sampling through the strengths of every method."""
    plain = results[results["method"] == "plain"]
    for i, method in enumerate(methods):
        rows = results[results["method"] == method].sort_values("beta")
        draw_points(axes, rows, toxicity, SERIES[i], MARKERS[i], LINES[i], method)
        path = pd.concat([plain, rows])
        axes.plot(path["perplexity"], path[toxicity], color=SERIES[i], ls=LINES[i], lw=1.2)
        for _, row in rows.iterrows():
            if row["beta"] > 0 or len(rows) > 1:  # a method without strengths has one row, of 0
                axes.annotate(
                    f"{row['beta']:g}", (row["perplexity"], row[toxicity]), xytext=(5, 5),
                    textcoords="offset points", fontsize="small", color=SERIES[i],
                )  # fmt: skip
    draw_points(axes, plain, toxicity, "0.15", "*", "-", "plain sampling")


def draw_points(
    axes: plt.Axes,
    rows: pd.DataFrame,
    toxicity: str,
    colour: str,
    marker: str,
    line: str,
    label: str,
) -> None:
    """Points with their 95% intervals in both directions."""
    spread = [
        [rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]
        for name in ("perplexity", toxicity)
    ]
    axes.errorbar(
        rows["perplexity"], rows[toxicity], xerr=spread[0], yerr=spread[1], color=colour, ls="",
        elinewidth=0.8, alpha=0.35,
    )  # fmt: skip
    axes.plot(
        rows["perplexity"], rows[toxicity], color=colour, marker=marker, ls="", label=label,
        ms=11 if marker == "*" else 6,
    )  # fmt: skip


def label_ends(axes: plt.Axes) -> None:
    """Write the label of every line behind its last point, in its colour, none over another."""
    axes.figure.draw_without_rendering()  # the places of the points are known only then
    points_per_pixel = 72 / axes.figure.dpi
    ends = []
    for line in axes.lines:
        if not line.get_label().startswith("_"):
            data = line.get_xydata()[np.isfinite(line.get_ydata().astype(float))][-1]
            ends.append((line, data, axes.transData.transform(data) * points_per_pixel))
    right, lowest = max(at[0] for _, _, at in ends), -np.inf
    for line, data, (x, y) in sorted(ends, key=lambda end: end[2][1]):
        lowest = max(y, lowest + LABEL_HEIGHT)
        axes.annotate(
            line.get_label(), data, xytext=(right - x + 7, lowest - y), textcoords="offset points",
            color=line.get_color(), va="center", fontsize="small", annotation_clip=False,
        )  # fmt: skip
