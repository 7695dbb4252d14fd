"""Collect and draw what the cells of a sweep wrote; scripts/sweep.py calls this."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pandas as pd

import notebooks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRIC = "expected_max_toxicity"


def conclude(
    folder: Path,
    cells: dict[str, dict[str, Any]],
    notebook: str,
    name: str | None = None,
    metric: str | None = None,
) -> str | None:
    """Write table.csv and the figure and say where they lie.

    Parameters
    ----------
    folder : Path
        Of the sweep.
    cells : mapping from the name of a cell that is done to its parameters
    notebook : str
        The last one that every cell ran.
    name, metric : str, optional
        The table to collect, and its column to draw.

    Returns
    -------
    str or None
        What is wrong, if something is.
    """
    if not cells:
        return None
    shown = folder.relative_to(notebooks.PROJECT)
    name = name or written(folder / next(iter(cells)), notebook)
    if name is None:
        print(f"{notebook} writes no table, so there is none of the sweep")
        return None
    missing = [cell for cell in cells if not (folder / cell / name).is_file()]
    if missing:
        return f"there is no {name} in {shown}/{missing[0]}"
    table, columns = collect(cells, folder, name)
    notebooks._write(folder / "table.csv", table.to_csv(index=False))
    print(f"Table of {len(cells)} cells:  {shown}/table.csv")
    metric = metric or _metric(table.drop(columns=columns))
    if metric not in table or not pd.api.types.is_numeric_dtype(table[metric]):
        numeric = ", ".join(table.drop(columns=columns).select_dtypes("number"))
        return f"there is no metric {metric!r} to draw in {name}; its columns are {numeric}"
    # Only here, so that a cell's process and a refusal need not wait for it.
    from sasa_lib.course import plots

    plots.set_style()
    plots.save(draw(table, columns, metric), folder, "sweep")
    print(f"Figure of {metric}:  {shown}/sweep.png")
    return None


def written(run: Path, notebook: str) -> str | None:
    """Name of the table that the last notebook of a run wrote; results.csv, if it is one of them.

    Parameters
    ----------
    run : Path
        The run's folder.
    notebook : str
    """
    executed = nbformat.read(run / f"{notebook}.ipynb", as_version=4)
    start = datetime.fromisoformat(executed.metadata.papermill.start_time).timestamp()
    tables = sorted(path.name for path in run.glob("*.csv") if path.stat().st_mtime >= start)
    if "results.csv" in tables or not tables:
        return "results.csv" if tables else None
    return tables[0]


def collect(
    cells: dict[str, dict[str, Any]], folder: Path, name: str
) -> tuple[pd.DataFrame, list[str]]:
    """One table of all cells: the parameters of the grid, then the columns of the cells' tables.

    Parameters
    ----------
    cells : mapping from the name of a cell to its parameters
    folder : Path
        Where the cells' folders lie.
    name : str
        The table's name in each.

    Returns
    -------
    table : pandas.DataFrame
        A list of one is shown as its element, a longer one as text. A parameter with the name of a
        column of the results, such as beta, is called grid_beta.
    columns : list of str
        The columns of the parameters.
    """
    # A method may be called null; "Unnamed: 0" is the index of a table written without its name.
    as_written = {"keep_default_na": False, "na_values": [""]}
    tables = {
        cell: pd.read_csv(folder / cell / name, **as_written).rename(columns={"Unnamed: 0": "row"})
        for cell in cells
    }
    taken = {column for rows in tables.values() for column in rows}
    # Text where one value of an axis is text, so that a column is of one type.
    texts = {
        axis
        for values in cells.values()
        for axis, value in values.items()
        if isinstance(value, list) and len(value) != 1
    }
    parts, columns = [], []
    for cell, values in cells.items():
        shown = {
            f"grid_{axis}" if axis in taken else axis: readable(value, axis in texts)
            for axis, value in values.items()
        }
        columns = list(shown)
        rows = tables[cell]
        parts.append(pd.DataFrame(shown, index=rows.index).join(rows))
    return pd.concat(parts, ignore_index=True), columns


def draw(table: pd.DataFrame, columns: Sequence[str], metric: str) -> Figure:
    """A metric against perplexity, or against the first numeric axis where there is none.

    Colours tell apart the axes that are not numbers (and further numbers), markers the methods. A
    line follows the first numeric axis; where that is not the horizontal one, its values stand at
    the points.

    Parameters
    ----------
    table : pandas.DataFrame
        As from `collect`; bars reach from `metric`_low to `metric`_high where there are such.
    columns : sequence of str
        The columns of the grid's parameters.
    metric : str
        The column on the vertical axis.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    from sasa_lib.course.plots import LINES, MARKERS, SERIES

    varying = [name for name in columns if table[name].nunique(dropna=False) > 1]
    along = next((name for name in varying if _is_number(table[name])), None)
    others = [name for name in varying if name != along]
    x = "perplexity" if "perplexity" in table and metric != "perplexity" else along
    if x is None:
        x = (others or list(columns))[0]
        table = table.assign(**{x: table[x].astype(str)})
    methods = ["method"] if "method" in table and table["method"].nunique() > 1 else []
    marked = bool(others and methods)
    text = table.astype(str).assign(all="")
    colour, colours = pd.factorize(text[others or methods or ["all"]].agg(", ".join, axis=1))
    marker, markers = pd.factorize(text["method" if marked else "all"])
    many = others and len(colours) > len(SERIES)
    palette = sns.color_palette("cividis" if many else SERIES, len(colours) + 2)
    shapes = [*MARKERS, "<", ">", "p", "h"] * len(table)
    figure, axes = plt.subplots(figsize=(8, 4.8))
    for (i, j), rows in table.groupby([colour, marker], sort=False):
        if along:
            rows = rows.sort_values(along, kind="stable")
        # What does not depend on the axis is one point, however many cells have it.
        rows = rows.drop_duplicates([x, metric])
        spread = {f"{of}err": _spread(rows, name) for of, name in (("x", x), ("y", metric))}
        axes.errorbar(
            rows[x], rows[metric], **spread, color=palette[i], fmt="none", elinewidth=0.8, alpha=0.4
        )
        a_path = along and len(rows) > 1 and not rows[along].duplicated().any()
        axes.plot(
            rows[x], rows[metric], color=palette[i], ms=6, lw=1.2,
            ls=LINES[i % len(LINES)] if a_path else "",
            # Colours alone do not tell classes apart.
            marker=shapes[j if marked else i],
        )  # fmt: skip
        if a_path and along != x:
            for at in zip(rows[x], rows[metric], rows[along], strict=True):
                axes.annotate(
                    f"{at[2]:g}", at[:2], xytext=(5, 5), textcoords="offset points",
                    fontsize="small", color=palette[i],
                )  # fmt: skip
    axes.set(xlabel=_label(x), ylabel=_label(metric))
    if table[metric].between(0, 1).all():
        axes.set_ylim(bottom=0)
    entries = []
    if len(colours) > 1:
        entries += [(", ".join(map(_label, others or methods)), {})]
        for i, name in enumerate(colours):
            entries += [(name, {"color": palette[i], "marker": "o" if marked else shapes[i]})]
    if marked:
        entries += [("method", {})]
        entries += [(n, {"color": "0.35", "marker": shapes[j]}) for j, n in enumerate(markers)]
    if along and along != x:
        entries += [(f"numbers: {_label(along)}", {})]
    if entries:
        _legend(figure, entries)
    return figure


def _legend(figure: Figure, entries: list[tuple[str, dict]]) -> None:
    """Name what is drawn; an entry without a look is a heading."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], ls="", label=label, **look) for label, look in entries]
    legend = figure.legend(handles=handles, loc="outside right upper", fontsize="small")
    for (_, look), text in zip(entries, legend.get_texts(), strict=True):
        if not look:
            text.set_fontweight("bold")


def readable(value: Any, as_text: bool = False) -> Any:
    """A value for a table or a name: the element of a list of one, 1 for 1.0."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        return "+".join(readable(part, True) for part in value)
    if as_text:
        return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return value


def _metric(results: pd.DataFrame) -> str | None:
    """The usual metric, else the first with an interval, else the first number."""
    numeric = list(results.select_dtypes("number"))
    with_interval = [name for name in numeric if f"{name}_low" in numeric]
    return next((name for name in [METRIC, *with_interval, *numeric] if name in numeric), None)


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _spread(rows: pd.DataFrame, name: str) -> list | None:
    """Lengths of the bars, where there are ends of an interval."""
    if f"{name}_low" not in rows or f"{name}_high" not in rows:
        return None
    # Rounding may leave the end of an interval a hair inside its point.
    spread = rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]
    return [length.clip(lower=0) for length in spread]


def _label(name: str) -> str:
    name = name.removeprefix("grid_").replace("_", " ").replace("max ", "maximum ")
    return "perplexity of the text under the judging model" if name == "perplexity" else name
