"""Figures of what methods achieve and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from sasa_lib.course.plots.style import (
    LINES,
    MARKERS,
    NONTOXIC,
    SERIES,
    TOXIC,
    draw_front,
    is_steered,
    label_ends,
    place_labels,
)


def strengths(table: pd.DataFrame) -> Figure:
    """Mean margin and divergence from the reference of generated tokens, against beta.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns beta, margin (mean of the drawn tokens) and divergence (mean KL, nats a token).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    left.plot(table["beta"], table["margin"], color=NONTOXIC, marker="o")
    left.set(xlabel="beta", ylabel="mean margin of the drawn tokens")
    left.axhline(0, color="0.4", lw=1)
    right.plot(table["beta"], table["divergence"], color=TOXIC, marker="s", ls="--")
    right.set(xlabel="beta", ylabel="KL to the reference (nats a token)", ylim=(0, None))
    for line in right.lines:
        line.set_clip_on(False)
    return figure


def trade_off(results: pd.DataFrame, *, toxicity: str = "expected_max_toxicity") -> Figure:
    """Toxicity against perplexity, a curve a method with beta along it.

    Parameters
    ----------
    results : pandas.DataFrame
        Rows of results.csv: method, beta, perplexity and `toxicity`, each with `_low` and
        `_high`, the ends of its 95% interval.
    toxicity : str
        The metric on the vertical axis.
    """
    figure, axes = plt.subplots(figsize=(7, 4.8))
    draw_front(axes, results, "perplexity", toxicity, is_steered(results))
    axes.set(xlabel="perplexity of the text under the judging model")
    axes.set(ylabel=toxicity.replace("_", " ").replace("max ", "maximum "), ylim=(0, None))
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small",
        title="numbers at the ends of a curve: beta", title_fontsize="small",
    )  # fmt: skip
    place_labels(figure)
    return figure


def fronts(
    results: pd.DataFrame,
    methods: Sequence[str] | None = None,
    *,
    costs: Sequence[str] = ("perplexity", "kl"),
    toxicity: str = "expected_max_toxicity",
) -> Figure:
    """`trade_off` for several costs, models and prompt sets: a column a cost.

    Parameters
    ----------
    results : pandas.DataFrame
        As for `trade_off`, with columns model and prompts, and every cost; NaN where a method has
        none, which leaves it out of the panel.
    methods : sequence of str, optional
        Those to show beside plain sampling. Default: all.
    costs : sequence of str
        Metrics on the horizontal axes.
    toxicity : str
        The metric on the vertical axis, which all panels share.
    """
    methods = list(methods or is_steered(results))
    sets = list(dict.fromkeys(zip(results["model"], results["prompts"], strict=True)))
    figure, panels = plt.subplots(
        len(sets), len(costs), figsize=(5.2 * len(costs), 3.8 * len(sets) + 0.8), sharey=True,
        squeeze=False,
    )  # fmt: skip
    labels = {"perplexity": "perplexity under the judging model", "kl": "KL (nats a token)"}
    for (model, prompts), row in zip(sets, panels, strict=True):
        rows = results[(results["model"] == model) & (results["prompts"] == prompts)]
        for cost, axes in zip(costs, row, strict=True):
            draw_front(axes, rows, cost, toxicity, methods)
            axes.set(title=f"{model}, {prompts} prompts", xlabel=labels.get(cost, cost))
            axes.margins(x=0.1)
            if cost == "perplexity":  # some methods pay a little, others many times as much
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(
                    LogLocator(subs=(1, 1.2, 1.4, 1.6, 2, 2.5, 3, 4, 6, 8))
                )
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_locator(NullLocator())
        label = toxicity.replace("_", " ").replace("max ", "maximum ")
        row[0].set(ylabel=label, ylim=(0, None))
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=4, fontsize="small",
        title="numbers at the ends of a curve: strength", title_fontsize="small",
    )  # fmt: skip
    place_labels(figure)
    return figure


def groups(table: pd.DataFrame) -> Figure:
    """Toxic rate of every group under every method, a panel a domain.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns domain, group, method, toxic_rate, toxic_rate_low and toxic_rate_high (the ends of
        its 95% interval). Of the methods, the first one stands on top.
    """
    methods = list(dict.fromkeys(table["method"]))
    panels = {name: rows for name, rows in table.groupby("domain", sort=False)}
    heights = [rows["group"].nunique() for rows in panels.values()]
    figure, grid = plt.subplots(
        len(panels), 1, figsize=(7, 1.6 + 0.24 * (len(methods) + 1) * sum(heights)), sharex=True,
        height_ratios=heights, squeeze=False,
    )  # fmt: skip
    for (domain, rows), axes in zip(panels.items(), grid[:, 0], strict=True):
        names = list(dict.fromkeys(rows["group"]))
        for i, method in enumerate(methods):
            line = rows[rows["method"] == method].set_index("group").reindex(names)
            rate = line["toxic_rate"]
            # Rounding may leave the end of an interval a hair inside its rate.
            spread = np.clip(
                [rate - line["toxic_rate_low"], line["toxic_rate_high"] - rate], 0, None
            )
            at = np.arange(len(names)) + (i - (len(methods) - 1) / 2) / (len(methods) + 1)
            axes.errorbar(
                rate, at, xerr=spread, color=SERIES[i], marker=MARKERS[i], ms=8, ls="", capsize=3,
                label=method, clip_on=False, zorder=3,
            )  # fmt: skip
        axes.set_yticks(np.arange(len(names)), [name.replace("_", " ") for name in names])
        axes.set(ylim=(len(names) - 0.45, -0.55), title=domain.replace("_", " "))
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    grid[-1, 0].set(xlim=(0, min(1, 1.1 * table["toxic_rate_high"].max())))
    grid[-1, 0].set_xlabel("toxic rate (95% interval)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(methods), 4))
    return figure


def cost(table: pd.DataFrame) -> Figure:
    """Time per token over that of plain sampling, against k and against sequences.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of `make bench`: model, method, sequences, k, prompt, new, and ratio, the tokens/s
        over those of plain sampling, with `ratio_low` and `ratio_high`, its range.
    """
    short = table[(table["prompt"] == table["prompt"].min()) & (table["new"] == table["new"].min())]
    panels = {
        "k": short[short["sequences"] == 25],
        "sequences": short[short["k"] == 10],
    }
    models = list(dict.fromkeys(table["model"]))
    figure, grid = plt.subplots(
        2, len(models), figsize=(4.2 * len(models), 6.4), sharey=True, squeeze=False
    )
    for (name, rows), row_axes in zip(panels.items(), grid, strict=True):
        for model, axes in zip(models, row_axes, strict=True):
            axes.axhline(1, color="0.4", lw=1)
            for i, method in enumerate(("margin", "posterior")):
                line = rows[(rows["model"] == model) & (rows["method"] == method)].sort_values(name)
                time = 1 / line["ratio"]
                spread = [time - 1 / line["ratio_high"], 1 / line["ratio_low"] - time]
                axes.errorbar(
                    line[name], time, yerr=spread, color=SERIES[i], marker=MARKERS[i],
                    ls=LINES[i], capsize=3,
                )[0].set_label(f"SASA, {method}")  # fmt: skip
            axes.set(title=model, xscale="log", xticks=sorted(set(rows[name])))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel(
                "k, with 25 generations" if name == "k" else "generations of a prompt, with k = 10"
            )
        row_axes[0].set_ylabel("time per token,\nplain sampling = 1")
    grid[0, 0].set_ylim(bottom=0)
    label_ends(grid[0, -1])
    return figure


def method_cost(table: pd.DataFrame) -> Figure:
    """Time and peak memory of every method over those of plain sampling, with their ranges.

    Parameters
    ----------
    table : pandas.DataFrame, indexed by method, from top to bottom
        `time` and `memory`, plain sampling being 1, each with `_low` and `_high`, its range over
        repetitions.
    """
    figure, panels = plt.subplots(
        1, 2, figsize=(10, 0.4 * len(table) + 1.4), sharey=True, width_ratios=(3, 2)
    )
    labels = {"time": "time, plain sampling = 1", "memory": "peak memory, plain sampling = 1"}
    rows = np.arange(len(table))
    for i, (axes, (name, label)) in enumerate(zip(panels, labels.items(), strict=True)):
        axes.axvline(1, color="0.6", lw=1)
        spread = [table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]]
        axes.errorbar(
            table[name], rows, xerr=spread, color=SERIES[i], marker=MARKERS[i], ls="", capsize=3
        )
        axes.set_xlabel(label)
        axes.set_xlim(0, 1.08 * table[f"{name}_high"].max())
    panels[0].set_yticks(rows, table.index)
    panels[0].invert_yaxis()
    return figure


def budgets(results: pd.DataFrame) -> Figure:
    """Toxicity and perplexity against the divergence spent, a curve a way of limiting it.

    Parameters
    ----------
    results : pandas.DataFrame
        method, strength, kl (mean, nats a token), expected_max_toxicity and perplexity, the last
        three each with `_low` and `_high`, the ends of its 95% interval. Of "plain" there is one.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharex=True)
    labels = {"expected_max_toxicity": "expected maximum toxicity", "perplexity": "perplexity"}
    plain = results[results["method"] == "plain"]
    methods = [m for m in dict.fromkeys(results["method"]) if m != "plain"]
    styles = [*zip(methods, SERIES, MARKERS, LINES, strict=False), ("plain", "0.15", "*", "")]
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        for method, colour, marker, line in styles:
            rows = results[results["method"] == method].sort_values("strength")
            spread = [
                [rows[of] - rows[f"{of}_low"], rows[f"{of}_high"] - rows[of]] for of in ("kl", name)
            ]
            axes.errorbar(
                rows["kl"], rows[name], xerr=spread[0], yerr=spread[1], color=colour, ls="",
                elinewidth=0.8, alpha=0.5,
            )  # fmt: skip
            path = rows if method == "plain" else pd.concat([plain, rows])
            axes.plot(
                path["kl"], path[name], color=colour, ls=line, lw=1.2, marker=marker,
                ms=11 if method == "plain" else 6, markevery=slice(len(path) - len(rows), None),
                label="plain sampling" if method == "plain" else method, clip_on=False,
            )  # fmt: skip
            for _, row in rows[rows["method"] != "plain"].iterrows():
                first = method == methods[0]  # below its point, the others above theirs
                axes.annotate(
                    f"{row['strength']:g}", (row["kl"], row[name]),
                    xytext=(-4, -4) if first else (4, 4), textcoords="offset points",
                    ha="right" if first else "left", va="top" if first else "bottom",
                    fontsize="small", color=colour,
                )  # fmt: skip
        axes.set(xlabel="KL to the reference (nats a token)", ylabel=label)
    panels[0].set(ylim=(0, None))
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=len(handles), fontsize="small",
        title="numbers at the points: beta, or the budget in nats a token", title_fontsize="small",
    )  # fmt: skip
    return figure


def toxicity_and_refusals(results: pd.DataFrame) -> Figure:
    """Toxicity of the answers of every method beside the share of them that refuse.

    Parameters
    ----------
    results : pandas.DataFrame
        Rows of instruct.csv, from top to bottom: method, beta (0 for none),
        expected_max_toxicity and refusals, each with `_low` and `_high`, its 95% interval.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 0.5 * len(results) + 1.4), sharey=True)
    labels = {
        "expected_max_toxicity": "expected maximum toxicity",
        "refusals": "answers that refuse (share)",
    }
    rows = np.arange(len(results))
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        low, high = results[f"{name}_low"], results[f"{name}_high"]
        for i in rows:
            # Where there is one prompt, there is no interval.
            axes.plot([low.iloc[i], high.iloc[i]], [i, i], color=SERIES[i], lw=1.5)
            axes.plot(results[name].iloc[i], i, color=SERIES[i], marker=MARKERS[i], ms=8, ls="")
        axes.set(xlabel=label, xlim=(-0.02, 1.02))
    names = [
        f"{method}, beta {beta:g}" if beta else method
        for method, beta in zip(results["method"], results["beta"], strict=True)
    ]
    panels[0].set_yticks(rows, names)
    panels[0].set_ylim(len(results) - 0.5, -0.5)
    return figure


def traded(tables: Mapping[str, pd.DataFrame], first: str, second: str) -> Figure:
    """What steering at several ratios of two values did to one against the other.

    Parameters
    ----------
    tables : mapping from title to pandas.DataFrame, a panel each
        Rows of `interference.interference` in the order of the ratio; their index is written
        at the points.
    first, second : str
        The values, on the horizontal and the vertical axis.
    """
    figure, row = plt.subplots(
        1, len(tables), figsize=(4.8 * len(tables) + 0.4, 4.4), squeeze=False
    )
    for i, (axes, (title, table)) in enumerate(zip(row[0], tables.items(), strict=True)):
        x, y = table["change", first], table["change", second]
        spread = [
            [change - table["change_low", value], table["change_high", value] - change]
            for value, change in ((first, x), (second, y))
        ]
        style = {"color": SERIES[i], "marker": MARKERS[i], "ls": LINES[i]}
        axes.errorbar(x, y, xerr=spread[0], yerr=spread[1], color=SERIES[i], ls="", alpha=0.35)
        axes.plot(x, y, **style)
        axes.plot(0, 0, color="0.15", marker="*", ms=11, ls="", label="plain sampling")
        for name, at in zip(table.index, zip(x, y, strict=True), strict=True):
            axes.annotate(
                str(name), at, xytext=(6, 6), textcoords="offset points", fontsize="small",
                color=SERIES[i],
            )  # fmt: skip
        axes.axhline(0, color="0.8", lw=1, zorder=0)
        axes.axvline(0, color="0.8", lw=1, zorder=0)
        axes.set(title=title, xlabel=f"{first.replace('_', ' ')}: change of the margin (sd)")
        axes.set_ylabel(f"{second.replace('_', ' ')}: change of the margin (sd)")
    row[0, 0].legend(loc="best", fontsize="small")
    return figure
