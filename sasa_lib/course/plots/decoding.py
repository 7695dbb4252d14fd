"""Figures of single steps and texts."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest

from sasa_lib.course.plots.style import LINES, MARKERS, NONTOXIC, SERIES, TOXIC


def decoding_step(step: pd.DataFrame) -> Figure:
    """One decoding step: every candidate's probability before and after, beside its margin.

    Parameters
    ----------
    step : pandas.DataFrame
        Columns token (already fit to be shown), reference, new (probabilities) and margin.
    """
    step = step.sort_values("reference").reset_index(drop=True)
    rows = np.arange(len(step))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 0.34 * len(step) + 1.4), sharey=True, width_ratios=(2, 1)
    )
    left.hlines(rows, step["reference"], step["new"], color="0.7", lw=2)
    left.plot(step["reference"], rows, "o", mfc="white", mec="0.25", label="reference")
    left.plot(step["new"], rows, "D", color=NONTOXIC, label="re-weighted")
    left.set_yticks(rows, step["token"])
    left.set(xlabel="probability", xlim=(-0.02, None))
    left.legend(loc="lower right", fontsize="small")
    colours = np.where(step["margin"] > 0, NONTOXIC, TOXIC)
    right.barh(rows, step["margin"], color=colours, height=0.6)
    right.axvline(0, color="0.4", lw=1)
    right.set(xlabel="margin (standard deviations)")
    return figure


def explained(shares: pd.DataFrame) -> Figure:
    """Share of toxic generations of every method, by what is in them; a panel a scorer.

    Parameters
    ----------
    shares : pandas.DataFrame, indexed by (scorer, method)
        A column a reason, from left to right; shares of all generations, in [0, 1].
    """
    scorers = list(dict.fromkeys(shares.index.get_level_values(0)))
    methods = list(dict.fromkeys(shares.index.get_level_values(1)))
    figure, row = plt.subplots(
        1, len(scorers), figsize=(4.6 * len(scorers), 0.45 * len(methods) + 2),
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for axes, scorer in zip(row[0], scorers, strict=True):
        rows = shares.loc[scorer].reindex(methods)
        left = np.zeros(len(methods))
        for i, reason in enumerate(shares.columns):
            axes.barh(
                methods, rows[reason], left=left, height=0.6, color=(TOXIC, SERIES[4], "0.75")[i],
                hatch=("", "//", "..")[i], edgecolor="white", label=reason,
            )  # fmt: skip
            left += rows[reason].to_numpy()
        axes.set(title=scorer, xlabel="generations that score over 0.5 (share)")
    row[0, 0].invert_yaxis()
    handles, labels = row[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    return figure


def listed_words(table: pd.DataFrame, *, attribute: str = "toxicity") -> Figure:
    """Share of texts that hold a listed word, over ten bins of the annotated value.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a text: `corpus` (a panel each), `value` in [0, 1], and a column of bools a list.
    attribute : str
        What the values measure.
    """
    corpora = list(dict.fromkeys(table["corpus"]))
    lists = [name for name in table.columns if name not in ("corpus", "value")]
    figure, row = plt.subplots(
        1, len(corpora), figsize=(4.8 * len(corpora) + 1, 4), sharey=True, squeeze=False
    )
    for axes, corpus in zip(row[0], corpora, strict=True):
        rows = table[table["corpus"] == corpus]
        # Bins without a text are kept, so that no line leads across them.
        bins = rows.groupby(
            pd.cut(rows["value"], np.linspace(0, 1, 11), include_lowest=True), observed=False
        )
        for i, name in enumerate(lists):
            hits = bins[name].agg(["sum", "size"]).to_numpy(int)
            share = np.full((3, len(hits)), np.nan)
            for column, (hit, size) in enumerate(hits):
                if size:
                    interval = binomtest(int(hit), int(size)).proportion_ci(0.95, "wilson")
                    share[:, column] = hit / size, interval.low, interval.high
            middle, low, high = share
            axes.errorbar(
                bins["value"].mean() + 0.008 * (i - (len(lists) - 1) / 2), middle,
                [middle - low, high - middle], color=SERIES[i], marker=MARKERS[i], ls=LINES[i],
                capsize=3, label=name,
            )  # fmt: skip
        axes.axvline(0.5, color="0.6", lw=1)
        axes.set(title=corpus, xlabel=f"annotated {attribute}, mean of a bin", xlim=(-0.03, 1.03))
    row[0, 0].set(ylabel="texts with a listed word (share)", ylim=(0, None))
    row[0, 0].legend(title="list (bars: 95% interval)", loc="upper left", fontsize="small")
    return figure
