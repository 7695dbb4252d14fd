"""The one style of all figures, and the marks that they share."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.text import Annotation

NONTOXIC, TOXIC = "#0072B2", "#D55E00"
SERIES = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "0.45",
    "#661100",
    "#999933",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h")
LABEL_HEIGHT = 13  # points
# Where the label of a point may lie, in points from it.
LABEL_PLACES = [
    radius * np.array([np.cos(angle), np.sin(angle)])
    for radius in (10, 14, 19, 25)
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False) + 0.5
]
METHOD_NAMES = {
    "plain": "plain sampling",
    "sasa": "SASA, margin",
    "sasa-posterior": "SASA, posterior",
    "sasa-published": "SASA as published",
    "sasa-relabelled": "SASA as published, toxic over 0.5",
    "sasa-unclamped": "SASA as published, all candidates",
    "sasa-posterior-filtered": "word filter, then SASA",
    "sasa-budget": "SASA, budget",
    "best-of": "best of several",
    "accept": "plain draws, accepted",
    "accept-posterior": "SASA, posterior, accepted",
    "sasa-posterior-logistic": "SASA, posterior, by logistic regression",
    "best-of-logistic": "best of several, by logistic regression",
    "accept-logistic": "plain draws, accepted by logistic regression",
    "accept-posterior-logistic": "SASA, posterior, accepted, by logistic regression",
    "rad-fine-tuned": "RAD, fine-tuned",
    "plain-unclamped": "plain sampling, all candidates",
    "rad": "RAD",
    "dexperts": "DExperts",
    "anti-only": "DExperts, anti-only",
    "word-filter": "word filter",
    "static-bias": "static bias",
    "mean-difference": "mean difference",
    "prompt-only": "prompt only",
    "random": "random direction",
    "random-direction-0": "random direction",
    "shuffled-labels-0": "shuffled labels",
}
LINES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1)),
    (0, (3, 1, 1, 1)),
    (0, (1, 1)),
    (0, (7, 2)),
    (0, (2, 2)),
)


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


def method_name(method: str) -> str:
    """Return a method's name as people write it; one that is not known stays as it is."""
    return METHOD_NAMES.get(method, method)


def draw_front(
    axes: plt.Axes, results: pd.DataFrame, cost: str, toxicity: str, methods: list[str]
) -> None:
    """Curves from plain sampling through the strengths of every method, named at their ends."""
    plain = results[results["method"] == "plain"]
    for i, method in enumerate(methods):
        rows = results[results["method"] == method].dropna(subset=[cost]).sort_values("beta")
        draw_points(axes, rows, cost, toxicity, SERIES[i], MARKERS[i], method_name(method))
        path = pd.concat([plain, rows]) if len(rows) else rows
        axes.plot(path[cost], path[toxicity], color=SERIES[i], ls=LINES[i], lw=1.2)
        for _, row in rows.iloc[:: max(len(rows) - 1, 1)].iterrows():
            if row["beta"] > 0 or len(rows) > 1:  # a method without strengths has one row, of 0
                axes.annotate(
                    f"{row['beta']:g}", (row[cost], row[toxicity]), xytext=(5, 5),
                    textcoords="offset points", fontsize="small", color=SERIES[i],
                    ha="center", va="center",
                )  # fmt: skip
    draw_points(axes, plain, cost, toxicity, "0.15", "*", "plain sampling")


def draw_points(
    axes: plt.Axes,
    rows: pd.DataFrame,
    cost: str,
    toxicity: str,
    colour: str,
    marker: str,
    label: str,
) -> None:
    """Points with their 95% intervals in both directions."""
    spread = [
        [rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]
        for name in (cost, toxicity)
    ]
    axes.errorbar(
        rows[cost], rows[toxicity], xerr=spread[0], yerr=spread[1], color=colour, ls="",
        elinewidth=0.8, alpha=0.35,
    )  # fmt: skip
    axes.plot(
        rows[cost], rows[toxicity], color=colour, marker=marker, ls="", label=label,
        ms=11 if marker == "*" else 6,
    )  # fmt: skip


def place_labels(figure: Figure) -> None:
    """Move the annotations of points to where they lie over no point, line or other annotation."""
    figure.draw_without_rendering()  # the places of the points are known only then
    pixels = figure.dpi / 72
    for axes in figure.axes:
        taken = [
            axes.transData.transform(_dense(line.get_xydata()))
            for line in axes.lines
            if len(line.get_xydata())
        ]
        taken = np.concatenate(taken) if taken else np.empty((0, 2))
        labels: list[np.ndarray] = []
        for text in (t for t in axes.texts if isinstance(t, Annotation)):
            at = axes.transData.transform(text.xy)
            half = np.array([4 + 3 * len(text.get_text()), 6]) * pixels

            crowd = partial(
                _crowd, at=at / pixels, half=half / pixels, taken=taken / pixels, labels=labels
            )
            place = min(LABEL_PLACES, key=crowd)
            labels.append(at / pixels + place)
            text.set_position(place)


def _crowd(
    place: np.ndarray, at: np.ndarray, half: np.ndarray, taken: np.ndarray, labels: list[np.ndarray]
) -> float:
    """How much lies where a label would, in points; nearer places are better."""
    over = (abs(taken - at - place) < half).all(axis=1).sum()
    near = sum((abs(other - at - place) < 2 * half).all() for other in labels)
    return over + 20 * near + 0.01 * float(np.hypot(*place))


def _dense(points: np.ndarray) -> np.ndarray:
    """Points along the lines between points, 20 for one."""
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) < 2:
        return points
    at = np.linspace(0, len(points) - 1, 20 * (len(points) - 1) + 1)
    return np.stack([np.interp(at, np.arange(len(points)), column) for column in points.T], axis=1)


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
