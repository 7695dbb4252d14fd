"""Every figure, one function each, one style.

Each function takes arrays or a table, draws on new axes and returns the `Figure`; `save` writes it.
Colours are from the Okabe-Ito palette, which colour-blind readers can tell apart; wherever two
classes meet, line style or marker differs as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score, roc_curve

from sasa_lib.checks import check_finite, check_labels, check_scores

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


def geometry(table: pd.DataFrame) -> Figure:
    """Length of the embeddings and their anisotropy, layer by layer.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns layer, pooling, norm_low, norm, norm_high (quartiles) and anisotropy.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for i, (pooling, rows) in enumerate(table.groupby("pooling", sort=True)):
        style = {"color": SERIES[i], "marker": MARKERS[i], "ls": LINES[i], "label": pooling}
        left.plot(rows["layer"], rows["norm"], **style)
        left.fill_between(
            rows["layer"], rows["norm_low"], rows["norm_high"], color=SERIES[i], alpha=0.2, lw=0
        )
        right.plot(rows["layer"], rows["anisotropy"], **style)
    left.set(xlabel="layer", ylabel="Euclidean norm", yscale="log")
    left.set_title("Length of an embedding (median, quartiles)")
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.yaxis.set_minor_formatter(ScalarFormatter())
    layers = sorted(table["layer"].unique())
    for axes in (left, right):
        axes.set_xticks(layers)
    right.set(xlabel="layer", ylabel="mean cosine of two texts", ylim=(-0.05, 1.05))
    right.set_title("Anisotropy")
    right.axhline(0, color="0.6", lw=1)
    _label_ends(left)
    return figure


def subspaces(
    maps: Mapping[int, np.ndarray],
    margins: Mapping[int, np.ndarray],
    values: np.ndarray,
    *,
    threshold: float = 0.5,
    attribute: str = "toxicity",
) -> Figure:
    """UMAP of every layer over the densities of its margins.

    Parameters
    ----------
    maps : mapping from layer to array [n, 2]
        Two-dimensional UMAP coordinates.
    margins : mapping from layer to array [n]
        Scaled margins of the same texts.
    values : array [n]
        The annotated value in [0, 1].
    threshold : float
        Above it a text counts as toxic.
    attribute : str
        What the values measure.
    """
    figure, axes = plt.subplots(
        2, len(maps), figsize=(3.6 * len(maps), 6.4), squeeze=False, height_ratios=(3, 2)
    )
    order = np.argsort(values, kind="stable")
    toxic = values > threshold
    for column, (layer, points) in enumerate(maps.items()):
        top, bottom = axes[:, column]
        shown = top.scatter(
            *points[order].T, c=values[order], cmap="cividis", vmin=0, vmax=1, s=6, lw=0
        )
        top.set(xticks=[], yticks=[], title=f"layer {layer}")
        top.set_xlabel("UMAP 1 (no unit)" if column == 0 else "")
        top.set_ylabel("UMAP 2 (no unit)" if column == 0 else "")
        for name, rows, colour, line in (
            ("toxic", toxic, TOXIC, "--"),
            ("nontoxic", ~toxic, NONTOXIC, "-"),
        ):
            sns.kdeplot(
                margins[layer][rows], ax=bottom, color=colour, ls=line, fill=True, alpha=0.15
            )
            sns.kdeplot(margins[layer][rows], ax=bottom, color=colour, ls=line)
            if column == 0:
                peak = max(bottom.lines[-1].get_xydata(), key=lambda point: point[1])
                bottom.annotate(
                    name, peak, xytext=(0, 4), textcoords="offset points", color=colour,
                    ha="right" if rows is toxic else "left", va="bottom", fontsize="small",
                )  # fmt: skip
        bottom.axvline(0, color="0.4", lw=1)
        auc = roc_auc_score(~toxic, margins[layer])
        bottom.set(
            xlabel="margin (standard deviations)",
            ylabel="density" if column == 0 else "",
            title=f"AUC {auc:.2f}",
        )
    axes[1, 0].set_ylim(0, 1.15 * axes[1, 0].get_ylim()[1])
    figure.colorbar(shown, ax=axes[0], label=f"annotated {attribute}", pad=0.01)
    return figure


def roc(margins: Mapping[str, np.ndarray], toxic: np.ndarray | Mapping[str, np.ndarray]) -> Figure:
    """ROC curve of each named set of margins, "toxic" being the class to find.

    Parameters
    ----------
    margins : mapping from name to array [n]
        Positive on the nontoxic side.
    toxic : bool array [n], or a mapping from the same names to such arrays
    """
    if not isinstance(margins, Mapping) or len(margins) > len(SERIES):
        raise ValueError(f"give up to {len(SERIES)} sets of margins as a mapping from their names")
    figure, axes = plt.subplots(figsize=(5.2, 5))
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    for i, (name, values) in enumerate(margins.items()):
        check_finite(f"margins of {name!r}", values)
        values = np.asarray(values)
        labels = check_labels("toxic", toxic[name] if isinstance(toxic, Mapping) else toxic)
        false_positive, true_positive, _ = roc_curve(labels, -values)
        auc = roc_auc_score(labels, -values)
        axes.plot(
            false_positive, true_positive, ls=LINES[i], color=SERIES[i], label=f"{name}: {auc:.3f}"
        )
    axes.set(xlabel="nontoxic texts flagged (share)", ylabel="toxic texts found (share)")
    axes.set(aspect="equal", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(title="AUC", loc="lower right", fontsize="small")
    return figure


def margin_against_value(
    margins: np.ndarray, values: np.ndarray, *, attribute: str = "toxicity"
) -> Figure:
    """Margins against the continuous annotation, with the mean over ten bins of it.

    Parameters
    ----------
    margins : array [n]
        Scaled margins.
    values : array [n]
        Annotated values in [0, 1].
    attribute : str
    """
    # As arrays: by the labels of Series pandas would pair other points.
    margins, values = np.asarray(margins, dtype=float), check_scores("values", values)
    check_finite("margins", margins)
    figure, axes = plt.subplots(figsize=(6, 4.2))
    axes.scatter(values, margins, s=8, lw=0, alpha=0.4, color="0.45")
    bins = pd.cut(values, np.linspace(0, 1, 11), include_lowest=True)
    table = pd.DataFrame({"value": values, "margin": margins}).groupby(bins, observed=True)
    mean, error = table.mean(), table["margin"].sem()
    axes.errorbar(
        mean["value"], mean["margin"], 1.96 * error, color=TOXIC, marker="o", capsize=3,
        label="mean of a bin, 95% interval",
    )  # fmt: skip
    axes.axhline(0, color="0.4", lw=1)
    axes.set(xlabel=f"annotated {attribute}", ylabel="margin (standard deviations)", xlim=(0, 1))
    axes.legend(loc="best", fontsize="small")
    return figure


def calibration(probabilities: np.ndarray, toxic: np.ndarray, *, bins: int = 10) -> Figure:
    """Reliability diagram of P(toxic), over bins of equally many texts.

    Parameters
    ----------
    probabilities : array [n]
        Predicted P(toxic) in [0, 1].
    toxic : bool array [n]
    bins : int
    """
    figure, axes = plt.subplots(figsize=(5, 4.6))
    observed, predicted = calibration_curve(toxic, probabilities, n_bins=bins, strategy="quantile")
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    axes.plot(predicted, observed, color=NONTOXIC, marker="o")
    axes.text(0.72, 0.62, "perfectly calibrated", color="0.45", rotation=45, ha="center",
              va="center")  # fmt: skip
    axes.set(xlabel="predicted P(toxic), mean of a bin", ylabel="toxic texts in the bin (share)")
    axes.set(aspect="equal", xlim=(0, 1), ylim=(0, 1))
    return figure


def learning_curve(table: pd.DataFrame, *, by: str = "covariance") -> Figure:
    """Held-out AUC against the number of training texts.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns n, auc and `by`, one row a resample; see `boundary.learning_curve`.
    by : str
        What has a curve of its own.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    for i, (name, rows) in enumerate(table.groupby(by, sort=True)):
        by_size = rows.groupby("n")["auc"]
        middle, low, high = by_size.median(), by_size.min(), by_size.max()
        axes.plot(middle.index, middle, color=SERIES[i], marker=MARKERS[i], ls=LINES[i], label=name)
        axes.fill_between(middle.index, low, high, color=SERIES[i], alpha=0.2, lw=0)
    sizes = sorted(table["n"].unique())
    axes.set(xscale="log", xlabel="training texts N", ylabel="held-out AUC")
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.set_title("median and range over resamples", fontsize="small", loc="right")
    _label_ends(axes)
    return figure


def layers(tried: pd.DataFrame) -> Figure:
    """Cross-validated AUC of every layer, pooling and covariance, and which was chosen.

    Parameters
    ----------
    tried : pandas.DataFrame
        ``Boundary.metadata["tried"]``: columns layer, pooling, covariance, auc, standard_error and
        chosen.
    """
    figure, grid = plt.subplots(1, tried["pooling"].nunique(), figsize=(10, 4.2), sharey=True)
    chosen = tried[tried["chosen"]].iloc[0]
    panels = tried.groupby("pooling", sort=False)
    for axes, (pooling, of_pooling) in zip(np.atleast_1d(grid), panels, strict=True):
        for i, (covariance, rows) in enumerate(of_pooling.groupby("covariance", sort=True)):
            axes.errorbar(
                rows["layer"], rows["auc"], yerr=rows["standard_error"],
                color=SERIES[i], marker=MARKERS[i], ls=LINES[i], ms=5, lw=1.2,
            )[0].set_label(covariance)  # fmt: skip
        if pooling == chosen["pooling"]:
            at = chosen["layer"], chosen["auc"]
            axes.plot(*at, "o", ms=16, mfc="none", mec="0.15")
            axes.annotate(
                "chosen", at, xytext=(0, 10), textcoords="offset points", ha="center", va="bottom",
                fontsize="small",
            )  # fmt: skip
        axes.set(
            xlabel="layer", title=f"pooling: {pooling}", xticks=sorted(tried["layer"].unique())
        )
    _label_ends(np.atleast_1d(grid)[-1])
    np.atleast_1d(grid)[0].set_ylabel("cross-validated AUC (± one standard error)")
    return figure


def prefixes(table: pd.DataFrame) -> Figure:
    """How well the beginning of a text tells what the whole text is, a curve a kind of phrase.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns phrase, tokens and auc, see `boundary.prefix_auc`.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    for i, (name, rows) in enumerate(table.groupby("phrase", sort=False)):
        axes.plot(
            rows["tokens"], rows["auc"], color=SERIES[i], marker=MARKERS[i], ls=LINES[i], label=name
        )
    sizes = sorted(table["tokens"].unique())
    axes.set(xscale="log", xlabel="tokens of the response read", ylabel="AUC for the whole text")
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    _label_ends(axes)
    return figure


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
    _front(axes, results, toxicity, _steered(results))
    axes.set(xlabel="perplexity of the text under the judging model")
    axes.set(ylabel=toxicity.replace("_", " ").replace("max ", "maximum "), ylim=(0, None))
    axes.legend(title="numbers at the points: beta", loc="lower left", fontsize="small")
    return figure


def fronts(results: pd.DataFrame, *, toxicity: str = "expected_max_toxicity") -> Figure:
    """`trade_off` for several models and prompt sets: a column a model, a row a set.

    Parameters
    ----------
    results : pandas.DataFrame
        As for `trade_off`, with columns model, judge and prompts.
    toxicity : str
        The metric on the vertical axes, which all panels share. Perplexities under different
        judging models are different quantities, so only a column shares its horizontal axis.
    """
    models, sets = (list(dict.fromkeys(results[name])) for name in ("model", "prompts"))
    figure, panels = plt.subplots(
        len(sets), len(models), figsize=(5.2 * len(models), 3.6 * len(sets) + 0.6),
        sharex="col", sharey=True, squeeze=False,
    )  # fmt: skip
    for i, prompts in enumerate(sets):
        for j, model in enumerate(models):
            axes = panels[i, j]
            rows = results[(results["prompts"] == prompts) & (results["model"] == model)]
            _front(axes, rows, toxicity, _steered(results))
            axes.set(title=f"{model}, {prompts} prompts")
            axes.set_xlabel(
                f"perplexity under {rows['judge'].iloc[0]}" if i + 1 == len(sets) else ""
            )
        label = toxicity.replace("_", " ").replace("max ", "maximum ")
        panels[i, 0].set(ylabel=label, ylim=(0, None))
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=4, fontsize="small",
        title="numbers at the points: beta", title_fontsize="small",
    )  # fmt: skip
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
    _label_ends(grid[0, -1])
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


def heat_maps(tables: Mapping[str, pd.DataFrame], *, label: str, limit: float = 1.0) -> Figure:
    """Tables of numbers around 0 as coloured squares, a panel each, with the numbers in them.

    Parameters
    ----------
    tables : mapping from title to pandas.DataFrame
        Such as those of `sasa_lib.values.cosines` and `correlations`; the same rows in all. The
        names of rows and columns, if there are any, are the labels of the axes.
    label : str
        What the numbers are.
    limit : float
        The colours reach from -limit to limit.
    """
    columns = [len(table.columns) for table in tables.values()]
    rows = len(next(iter(tables.values())))
    figure, row = plt.subplots(
        1, len(tables), figsize=(0.62 * sum(columns) + 3.2, 0.5 * rows + 2.2), sharey=True,
        squeeze=False, width_ratios=columns,
    )  # fmt: skip
    colours = LinearSegmentedColormap.from_list("values", [TOXIC, "white", NONTOXIC])
    for axes, (title, table) in zip(row[0], tables.items(), strict=True):
        values = table.to_numpy(dtype=float)
        shown = axes.imshow(values, cmap=colours, vmin=-limit, vmax=limit, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            axes.text(
                j, i, f"{value:.2f}", ha="center", va="center", fontsize="x-small",
                color="white" if abs(value) > 0.7 * limit else "0.15",
            )  # fmt: skip
        names = [str(name).replace("_", " ") for name in table.columns]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set(title=title, xlabel=table.columns.name)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    names = [str(name).replace("_", " ") for name in next(iter(tables.values())).index]
    row[0, 0].set_yticks(range(rows), names)
    row[0, 0].set_ylabel(next(iter(tables.values())).index.name)
    figure.colorbar(shown, ax=row[0], label=label, pad=0.01)
    return figure


def traded(tables: Mapping[str, pd.DataFrame], first: str, second: str) -> Figure:
    """What steering at several ratios of two values did to one against the other.

    Parameters
    ----------
    tables : mapping from title to pandas.DataFrame, a panel each
        Rows of `sasa_lib.values.interference` in the order of the ratio; their index is written
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


def _steered(results: pd.DataFrame) -> list[str]:
    """Methods but plain sampling, in the order of the table."""
    return [method for method in dict.fromkeys(results["method"]) if method != "plain"]


def _front(axes: plt.Axes, results: pd.DataFrame, toxicity: str, methods: list[str]) -> None:
    """Curves from plain sampling through the strengths of every method."""
    plain = results[results["method"] == "plain"]
    for i, method in enumerate(methods):
        rows = results[results["method"] == method].sort_values("beta")
        _points(axes, rows, toxicity, SERIES[i], MARKERS[i], LINES[i], method)
        path = pd.concat([plain, rows])
        axes.plot(path["perplexity"], path[toxicity], color=SERIES[i], ls=LINES[i], lw=1.2)
        for _, row in rows.iterrows():
            if row["beta"] > 0 or len(rows) > 1:  # a method without strengths has one row, of 0
                axes.annotate(
                    f"{row['beta']:g}", (row["perplexity"], row[toxicity]), xytext=(5, 5),
                    textcoords="offset points", fontsize="small", color=SERIES[i],
                )  # fmt: skip
    _points(axes, plain, toxicity, "0.15", "*", "-", "plain sampling")


def _points(
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


def _label_ends(axes: plt.Axes) -> None:
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
