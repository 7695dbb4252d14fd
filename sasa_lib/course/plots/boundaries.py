"""Figures of subspaces and boundaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from sklearn.metrics import roc_auc_score, roc_curve

from sasa_lib.checks import check_finite, check_labels, check_scores
from sasa_lib.course.plots.style import LINES, MARKERS, NONTOXIC, SERIES, TOXIC, label_ends
from sasa_lib.evaluation.statistics import wilson_interval

COVARIANCE_NAMES = {"ledoit_wolf": "Ledoit-Wolf", "oas": "OAS"}


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
    label_ends(left)
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


def calibration(
    margins: Mapping[str, Sequence[np.ndarray]],
    toxic: np.ndarray,
    lines: Mapping[str, tuple[float, float]],
    *,
    bins: int = 8,
) -> Figure:
    """Log-odds of nontoxic against the margin of a phrase, and what sigmoids suppose.

    Both classes weigh the same. A bar is Wilson's 95% interval for as many texts as have a phrase
    in the bin, since the phrases of a text are no independent observations.

    Parameters
    ----------
    margins : mapping from a name to sequences of arrays
        Of every beginning of every text, a panel each.
    toxic : bool array [texts]
    lines : mapping from a name to (slope, intercept)
        Of log sigma(slope * margin + intercept); one called as a panel is drawn in that one alone.
    bins : int
        Of equally many phrases.
    """
    figure, panels = plt.subplots(
        1, len(margins), figsize=(4.6 * len(margins), 4.2), sharey=True, squeeze=False
    )
    even = np.log(toxic.sum() / (~toxic).sum())  # added where both classes weigh the same
    for axes, (name, of_texts) in zip(panels[0], margins.items(), strict=True):
        values = np.concatenate(of_texts)
        text = np.repeat(np.arange(len(of_texts)), [len(one) for one in of_texts])
        edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
        of_bin = np.searchsorted(edges, values)
        for number in range(bins):
            inside = of_bin == number
            share = (~toxic[text[inside]]).mean()
            texts = len(set(text[inside]))
            low, high = wilson_interval(np.arange(texts) < round(share * texts))
            low, middle, high = (
                np.log(max(x, 1e-9) / max(1 - x, 1e-9)) + even for x in (low, share, high)
            )
            at = values[inside].mean()
            axes.plot([at, at], [low, high], color=NONTOXIC, lw=1.2)
            if 0 < share < 1:  # else the odds are beyond the picture
                axes.plot(at, middle, "o", color=NONTOXIC)
        ends = np.quantile(values, [0.005, 0.995])
        for label, (slope, intercept) in lines.items():
            if label in margins and label != name:
                continue
            shown = f"calibrated: {slope:.1f} m {intercept:+.1f}" if label in margins else label
            style = (
                {"color": SERIES[1], "ls": "-"}
                if label in margins
                else {"color": "0.4", "ls": "--"}
            )
            axes.plot(ends, slope * ends + intercept, label=shown, **style)
        axes.set(title=name, xlabel="margin of the phrase (sd)", xlim=ends)
        axes.axhline(0, color="0.85", lw=1, zorder=0)
        axes.legend(fontsize="small", loc="upper left")
    panels[0, 0].set(ylabel="log-odds of nontoxic (nats)", ylim=(-6, 6))
    return figure


def learning_curve(
    table: pd.DataFrame, *, by: str = "covariance", hidden_size: int | None = None
) -> Figure:
    """Held-out AUC against the number of training texts.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns n, auc and `by`, one row a resample; see `boundary.learning_curve`.
    by : str
        What has a curve of its own.
    hidden_size : int, optional
        Where to draw a line: with fewer texts the empirical covariance has no inverse.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.6))
    for i, (name, rows) in enumerate(table.groupby(by, sort=True)):
        by_size = rows.groupby("n")["auc"]
        middle, low, high = by_size.median(), by_size.min(), by_size.max()
        style = {"color": SERIES[i], "marker": MARKERS[i], "ls": LINES[i]}
        axes.plot(middle.index, middle, label=COVARIANCE_NAMES.get(name, name), **style)
        axes.fill_between(middle.index, low, high, color=SERIES[i], alpha=0.2, lw=0)
    sizes = sorted(table["n"].unique())
    axes.set(xscale="log", xlabel="training texts N", ylabel="held-out AUC")
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    if hidden_size is not None:
        axes.axvline(hidden_size, color="0.5", ls=":")
        at = (hidden_size * 0.97, 0.02)
        axes.text(
            *at, f"hidden size {hidden_size}", transform=axes.get_xaxis_transform(), color="0.4",
            ha="right", fontsize="small",
        )  # fmt: skip
    figure.legend(
        loc="outside upper center", ncols=4, fontsize="small",
        title="median and range over resamples", title_fontsize="small",
    )  # fmt: skip
    return figure


def layers(tried: pd.DataFrame) -> Figure:
    """Cross-validated AUC of every layer, pooling and covariance, and which was chosen.

    Parameters
    ----------
    tried : pandas.DataFrame
        ``Boundary.metadata["tried"]``: columns layer, pooling, covariance, auc, standard_error and
        chosen.
    """
    of_logistic = tried["covariance"].isna()  # which has no covariance
    tried = tried.assign(covariance=tried["covariance"].mask(of_logistic, "logistic regression"))
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
    label_ends(np.atleast_1d(grid)[-1])
    np.atleast_1d(grid)[0].set_ylabel("cross-validated AUC (± one standard error)")
    low, high = np.atleast_1d(grid)[0].get_ylim()  # shared
    np.atleast_1d(grid)[0].set_ylim(min(low, 0.9), min(high, 1.01))
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
    label_ends(axes)
    return figure


def heat_maps(tables: Mapping[str, pd.DataFrame], *, label: str, limit: float = 1.0) -> Figure:
    """Tables of numbers around 0 as coloured squares, a panel each, with the numbers in them.

    Parameters
    ----------
    tables : mapping from title to pandas.DataFrame
        Such as those of `values.cosines` and `correlations`; the same rows in all. The
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
