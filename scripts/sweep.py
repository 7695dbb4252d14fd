"""Run notebooks over a grid of parameters: `make sweep`.

    make sweep NOTEBOOK=05_evaluation PROFILE=smoke BETA=0,1,3 MODEL=gemma3-270m,gpt2-large
    make sweep GRID=grid.yaml

NAME=a,b are the values of an axis, and every combination is a cell; of a parameter that is a list,
each is a list of one, and `BETA=[0,1],[3]` are two lists. A file says the same as `notebook:`,
`profile:` and `grid: {name: [values]}`; what the command line says comes first. NOTEBOOK may be
several, run in that order; one that another one needs is run before it, whether named or not.

Every cell has a folder of its own, runs/sweep-<NAME>/<cell>/, and a process of its own, JOBS of
them at a time. What is up to date is not run again, and a cell that fails does not stop the others.
From the table that the last notebook writes (or TABLE=results.csv) come table.csv, a row of it with
the cell's parameters in front, and sweep.png, METRIC against perplexity.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from filelock import FileLock
from tqdm import tqdm

import notebooks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONS = ("GRID", "JOBS", "METRIC", "NAME", "NOTEBOOK", "PROFILE", "TABLE")  # not axes
LIBRARY = ("sasa_lib/*.py", "data/*.jsonl", "data/*.safetensors", "scripts/notebooks.py")
LONGEST_NAME = 100  # of a cell; file systems end at 255
METRIC = "expected_max_toxicity"
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Sweep:
    """What a sweep was asked for.

    Attributes
    ----------
    name : str
        Its folder is runs/sweep-`name`.
    chain : list of str
        The notebooks that every cell runs, in this order.
    cells : mapping from the name of a cell to its parameters
    jobs : int
        Cells that run at the same time.
    table, metric : str or None
        The file to collect and the column to draw; None leaves the choice.
    """

    name: str
    chain: list[str]
    cells: dict[str, dict[str, Any]]
    jobs: int
    table: str | None
    metric: str | None

    @property
    def folder(self) -> Path:
        """Where everything of the sweep lies."""
        return notebooks.PROJECT / "runs" / f"sweep-{self.name}"


def main(arguments: list[str] | None = None) -> None:
    """Run what is not up to date, collect, draw; exit with 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("given", nargs="*", metavar="NAME=value")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # the process of one cell
    options = parser.parse_args(arguments)
    if options.cell:
        run_cell(options.cell, options.given)
        return
    sweep = settle(options.given)
    done, failed = run(sweep)
    problem = conclude(sweep, done)
    if failed:
        sys.exit(f"{failed} of {len(sweep.cells)} cells failed; the same command tries them again")
    if problem:
        sys.exit(problem)


def settle(given: Sequence[str]) -> Sweep:
    """Settle a sweep and write the parameters of its cells, each only if they change.

    Parameters
    ----------
    given : sequence of str
        NAME=value, as on the command line.

    Raises
    ------
    SystemExit
        Something is unknown or of the wrong type; nothing was written.
    """
    options, axes = _read(given)
    profile = options.get("PROFILE", "laptop")
    chain = _chain(options.get("NOTEBOOK"))
    if not axes:
        sys.exit("a sweep needs the values of at least one parameter, such as BETA=0,1,3")
    with tempfile.TemporaryDirectory() as folder:
        notebooks.settle_parameters(profile, [], Path(folder))
        settled = {
            name: json.loads((Path(folder) / f"{name}.json").read_text())["parameters"]
            for name in chain
        }
    defaults = {}
    for name in chain:
        defaults |= notebooks.defaults(name)
    defaults.pop("run")
    for axis in axes:
        if axis not in defaults:
            known = ", ".join(sorted(defaults)).upper()
            sys.exit(f"unknown parameter {axis.upper()!r} of {', '.join(chain)}; known are {known}")
    cells = grid({axis: _parse(axis, values, defaults[axis]) for axis, values in axes.items()})
    stem = Path(options["GRID"]).stem if options.get("GRID") else chain[-1]
    name = str(options.get("NAME", f"{stem}-{profile}"))
    if not re.fullmatch(r"[\w.+-]+", name):
        sys.exit(f"NAME is the name of a folder, such as mine; got {name!r}")
    sweep = Sweep(
        name, chain, cells, _jobs(options.get("JOBS")), options.get("TABLE"), options.get("METRIC")
    )
    for cell, values in cells.items():
        for notebook, parameters in settled.items():
            chosen = parameters | {k: v for k, v in values.items() if k in parameters}
            chosen["run"] = f"../runs/{sweep.folder.name}/{cell}"
            files = [notebooks._stamp(value) for value in chosen.values()]
            text = json.dumps({"parameters": chosen, "files": files}, indent=1)
            path = sweep.folder / cell / "parameters" / f"{notebook}.json"
            if not path.is_file() or path.read_text() != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                notebooks._write(path, text)
    return sweep


def grid(axes: dict[str, list]) -> dict[str, dict[str, Any]]:
    """Every combination of the values of the axes, under a readable name.

    Parameters
    ----------
    axes : mapping from a parameter to its values

    Returns
    -------
    dict from the name of a cell to its parameters
        The name depends on nothing but the parameters, so that a grid can grow.
    """
    cells = {}
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        cells[_name(cell)] = cell
    return cells


def outstanding(run: Path, chain: Sequence[str]) -> list[str]:
    """Notebooks of a chain that are not up to date in a run's folder, in order.

    As for `make run`, a notebook is up to date if its executed copy is newer than the notebook,
    the library, the parameters, and the executed copies before it.

    Parameters
    ----------
    run : Path
        The folder.
    chain : sequence of str
        Names of notebooks.
    """
    library = [path for part in LIBRARY for path in notebooks.PROJECT.glob(part)]
    newest = max((path.stat().st_mtime for path in library), default=0.0)
    for i, notebook in enumerate(chain):
        executed = run / f"{notebook}.ipynb"
        source = notebooks.NOTEBOOKS / f"{notebook}.ipynb"
        parameters = run / "parameters" / f"{notebook}.json"
        newest = max(newest, source.stat().st_mtime, parameters.stat().st_mtime)
        if not executed.is_file() or executed.stat().st_mtime < newest:
            return list(chain[i:])
        newest = executed.stat().st_mtime
    return []


def run(sweep: Sweep) -> tuple[list[str], int]:
    """Run the cells that are not up to date, each in a process of its own.

    Parameters
    ----------
    sweep : Sweep

    Returns
    -------
    done : list of str
        Cells that are up to date now.
    failed : int
        Cells that are not.
    """
    waiting = [cell for cell in sweep.cells if outstanding(sweep.folder / cell, sweep.chain)]
    at_once = max(1, min(sweep.jobs, len(waiting)))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // at_once))
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    done = [cell for cell in sweep.cells if cell not in waiting]
    failed = 0
    running: dict[str, subprocess.Popen] = {}
    print(
        f"{len(sweep.cells)} cells of {', '.join(sweep.chain)}, {len(done)} of them up to date; "
        f"{at_once} at a time, {threads} threads each",
        file=sys.stderr,
    )
    bar = tqdm(total=len(sweep.cells), initial=len(done), desc=sweep.folder.name, unit="cell")
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                cell = waiting.pop(0)
                running[cell] = _start(sweep, cell, environment)
            time.sleep(POLL_SECONDS)
            bar.set_postfix_str(", ".join(_stages(sweep, running)), refresh=False)
            bar.refresh()
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                error = _error(sweep.folder / cell, running.pop(cell))
                if error is None:
                    done.append(cell)
                else:
                    failed += 1
                    values = sweep.cells[cell].items()
                    shown = ", ".join(f"{axis} = {_shown(value, True)}" for axis, value in values)
                    where = (sweep.folder / cell).relative_to(notebooks.PROJECT)
                    tqdm.write(f"FAILED {shown}: {error} (see {where}/)", file=sys.stderr)
                bar.update()
    finally:
        # However the sweep ends, its cells do not outlive it.
        for process in running.values():
            process.stdin.close()
        for process in running.values():
            process.wait()
        bar.close()
    return [cell for cell in sweep.cells if cell in done], failed


def run_cell(folder: str, chain: Sequence[str]) -> None:
    """Execute the notebooks of one cell that are not up to date: the process that `run` starts.

    Parameters
    ----------
    folder : str
        The cell's folder within runs/.
    chain : sequence of str
        Names of notebooks.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    run = notebooks.PROJECT / "runs" / folder
    try:
        # The cell of a sweep that was killed may take a moment to end.
        with FileLock(run / ".lock"):
            for notebook in outstanding(run, chain):
                notebooks.execute(notebook, folder)
    except SystemExit as error:
        sys.exit(" ".join(str(error.code).split()))
    except KeyboardInterrupt:
        sys.exit("interrupted")


def conclude(sweep: Sweep, done: Sequence[str]) -> str | None:
    """Write table.csv and the figure and say where they lie.

    Parameters
    ----------
    sweep : Sweep
    done : sequence of str
        The cells to take.

    Returns
    -------
    str or None
        What is wrong, if something is.
    """
    if not done:
        return None
    name = sweep.table or written(sweep.folder / done[0], sweep.chain[-1])
    if name is None:
        print(f"{sweep.chain[-1]} writes no table, so there is none of the sweep")
        return None
    missing = [cell for cell in done if not (sweep.folder / cell / name).is_file()]
    if missing:
        return f"there is no {name} in {sweep.folder.relative_to(notebooks.PROJECT)}/{missing[0]}"
    table, columns = collect({cell: sweep.cells[cell] for cell in done}, sweep.folder, name)
    notebooks._write(sweep.folder / "table.csv", table.to_csv(index=False))
    shown = sweep.folder.relative_to(notebooks.PROJECT)
    print(f"Table of {len(done)} cells:  {shown}/table.csv")
    metric = sweep.metric or _metric(table.drop(columns=columns))
    if metric not in table or not pd.api.types.is_numeric_dtype(table[metric]):
        numeric = ", ".join(table.drop(columns=columns).select_dtypes("number"))
        return f"there is no metric {metric!r} to draw in {name}; its columns are {numeric}"
    # Only here, so that a cell's process and a refusal need not wait for it.
    from sasa_lib import plots

    plots.set_style()
    plots.save(draw(table, columns, metric), sweep.folder, "sweep")
    print(f"Figure of {metric}:  {shown}/sweep.png")
    return None


def written(run: Path, notebook: str) -> str | None:
    """Name of the table that the last notebook of a run wrote; results.csv, if it is one of them.

    Parameters
    ----------
    run : Path
        The run's folder.
    notebook : str
        The notebook. The time of its executed copy is that of its start.
    """
    start = (run / f"{notebook}.ipynb").stat().st_mtime
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
    tables = {cell: pd.read_csv(folder / cell / name) for cell in cells}
    # The index of a table that was written without its name.
    tables = {cell: rows.rename(columns={"Unnamed: 0": "row"}) for cell, rows in tables.items()}
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
            f"grid_{axis}" if axis in taken else axis: _shown(value, axis in texts)
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
    from matplotlib.lines import Line2D

    from sasa_lib.plots import LINES, MARKERS, SERIES

    varying = [name for name in columns if table[name].nunique(dropna=False) > 1]
    along = next((name for name in varying if _is_number(table[name])), None)
    others = [name for name in varying if name != along]
    x = "perplexity" if "perplexity" in table and metric != "perplexity" else along
    if x is None:
        x = (others or list(columns))[0]
        table = table.assign(**{x: table[x].astype(str)})
    method = "method" if "method" in table and table["method"].nunique() > 1 else None
    table = table.assign(
        colour=table[others].astype(str).agg(", ".join, axis=1) if others else "",
        marker=table[method].astype(str) if method else "",
    )
    if method and not others:
        table["colour"] = table["marker"]
    colours, markers = (list(dict.fromkeys(table[name])) for name in ("colour", "marker"))
    if len(colours) <= len(SERIES) or not others:
        palette = [SERIES[i % len(SERIES)] for i in range(len(colours))]
    else:
        palette = sns.color_palette("cividis", len(colours) + 2)[: len(colours)]
    shapes = (*MARKERS, "<", ">", "p", "h")
    style = {name: shapes[i % len(shapes)] for i, name in enumerate(markers)}
    if not method:  # colours alone do not tell classes apart
        style = {"": None}
    figure, axes = plt.subplots(figsize=(8, 4.8))
    for (colour, marker), rows in table.groupby(["colour", "marker"], sort=False):
        i = colours.index(colour)
        shape = style[marker] or shapes[i % len(shapes)]
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
            rows[x], rows[metric], color=palette[i], marker=shape, ms=6, lw=1.2,
            ls=LINES[i % len(LINES)] if a_path else "",
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
    handles = []

    def entry(label: str, **look: Any) -> None:
        handles.append(Line2D([], [], label=label, **({"ls": ""} | look)))

    if len(colours) > 1:
        entry(", ".join(map(_label, others)) if others else "method")
        for i, name in enumerate(colours):
            shape = "o" if method and others else shapes[i % len(shapes)]
            entry(name, color=palette[i], marker=shape)
    if method and others:
        entry("method")
        for name in markers:
            entry(name, color="0.35", marker=style[name])
    if along and along != x:
        entry(f"numbers: {_label(along)}")
    if handles:
        legend = figure.legend(handles=handles, loc="outside right upper", fontsize="small")
        for handle, text in zip(handles, legend.get_texts(), strict=True):
            if handle.get_marker() == "None":  # a heading
                text.set_fontweight("bold")
    return figure


def _read(given: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Options in capitals, and the values of each axis, not parsed yet."""
    odd = [text for text in given if "=" not in text]
    if odd:
        sys.exit(f"give NAME=value, such as BETA=0,1,3; got {odd[0]!r}")
    said = {name.upper(): text for name, text in (text.split("=", 1) for text in given)}
    for name in set(notebooks.NOT_PARAMETERS) - set(OPTIONS):
        said.pop(name, None)
    options, axes = {}, {}
    if said.get("GRID"):
        path = Path(said["GRID"])
        if not path.is_file():
            sys.exit(f"there is no {path}")
        read = yaml.safe_load(path.read_text())
        if not isinstance(read, dict) or not isinstance(read.get("grid"), dict):
            sys.exit(f"{path} must say notebook: and grid: {{name: [values]}}")
        axes = {name.lower(): values for name, values in read.pop("grid").items()}
        options = {name.upper(): value for name, value in read.items()}
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            known = ", ".join(OPTIONS).lower()
            sys.exit(f"unknown {unknown[0].lower()!r} in {path}; known are {known}")
    options |= {name: text for name, text in said.items() if name in OPTIONS}
    axes |= {name.lower(): text for name, text in said.items() if name not in OPTIONS}
    return options, axes


def _chain(named: str | list[str] | None) -> list[str]:
    """The notebooks to run, each after those that it says must have run first."""
    known = notebooks.names()
    named = named.split(",") if isinstance(named, str) else named or []
    if not named or [name for name in named if name not in known]:
        unknown = [name for name in named if name not in known]
        problem = f"unknown notebook {unknown[0]!r}" if unknown else "NOTEBOOK is not given"
        sys.exit(f"{problem}; known are {', '.join(known)}")
    chain: list[str] = []
    for name in named:
        source = (notebooks.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
        needed = [other for other in re.findall(r"run (\d\d_\w+) first", source) if other in known]
        chain += [*_chain(needed), name] if needed else [name]
    return list(dict.fromkeys(chain))


def _parse(axis: str, values: Any, default: Any) -> list:
    """The values of an axis, each as the notebook's parameter is."""
    if isinstance(values, str):
        # Commas within brackets belong to one value.
        pattern = r"\[[^\]]*\]|[^,]+" if isinstance(default, list) else r"[^,]+"
        text = re.sub(r"\s*,\s*", ",", values.strip())
        values = re.findall(pattern, text) if text else [text]
    elif not isinstance(values, list):
        values = [values]
    if not values:
        sys.exit(f"{axis.upper()} needs at least one value, such as {axis.upper()}={default}")
    return [_value(axis, value, default) for value in values]


def _value(axis: str, value: Any, default: Any) -> Any:
    if isinstance(value, list) and isinstance(default, list) and value:
        return [_value(axis, part, default[0]) for part in value]
    if value is None and default is None:
        return None
    if isinstance(value, list | dict) or value is None:
        sys.exit(f"{axis.upper()} must be of type {type(default).__name__}; got {value!r}")
    if not isinstance(value, str):
        value = yaml.safe_dump(value).removesuffix("...\n").strip()
    return notebooks._value(axis.upper(), value, default)


def _jobs(given: Any) -> int:
    if given is None:
        return max(1, _cores() // 2)
    if not str(given).isdecimal() or int(given) < 1:
        sys.exit(f"JOBS is how many cells run at the same time, at least 1; got {given!r}")
    return int(given)


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _name(cell: dict[str, Any]) -> str:
    """Parameters as the name of a folder, with a hash if that does not say all of them."""
    cell = dict(sorted(cell.items()))  # make does not keep the order of a command line
    shown = {axis: _shown(value, True) for axis, value in cell.items()}
    parts = []
    for axis, text in shown.items():
        text = Path(text).name if os.path.isabs(text) else text
        parts.append(f"{axis}={re.sub(r'[^A-Za-z0-9._+-]', '-', text)}")
    name = ",".join(parts)
    told = ",".join(f"{axis}={text}" for axis, text in shown.items())
    plain = [v for value in cell.values() for v in (value if isinstance(value, list) else [value])]
    ambiguous = any(value is None or (isinstance(value, str) and "+" in value) for value in plain)
    if name == told and len(name) <= LONGEST_NAME and not ambiguous:
        return name
    digest = hashlib.sha256(json.dumps(cell).encode()).hexdigest()[:8]
    return f"{name[:LONGEST_NAME]}-{digest}"


def _shown(value: Any, as_text: bool = False) -> Any:
    """A value for a table or a name: the element of a list of one, 1 for 1.0."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        return "+".join(_shown(part, True) for part in value)
    if as_text:
        return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return value


def _start(sweep: Sweep, cell: str, environment: dict[str, str]) -> subprocess.Popen:
    folder = f"{sweep.folder.name}/{cell}"
    script = notebooks.PROJECT / "scripts" / "sweep.py"
    # Its standard input ends with the sweep, which tells it to end as well.
    with open(sweep.folder / cell / "log.txt", "wb") as log:
        return subprocess.Popen(
            [sys.executable, str(script), "--cell", folder, *sweep.chain],
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip


def _stages(sweep: Sweep, running: Iterable[str]) -> list[str]:
    """Which notebook each running cell is at."""
    logs = [(sweep.folder / cell / "log.txt").read_text(errors="replace") for cell in running]
    stages = [re.findall(r"^== (\w+) ", log, re.MULTILINE) for log in logs]
    return [stage[-1] if stage else "starting" for stage in stages]


def _error(run: Path, process: subprocess.Popen) -> str | None:
    """Why a cell's process failed, in one line."""
    process.stdin.close()
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return f"its process was killed by {signal.Signals(-process.returncode).name}"
    lines = (run / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "no message")
    return textwrap.shorten(last, 400)


def _end_with(pipe: int) -> None:
    """Interrupt this process, and so the kernel, once the other end of a pipe is closed."""
    os.read(pipe, 1)  # not through sys.stdin, whose lock would be held at the exit
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
    os._exit(1)


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


if __name__ == "__main__":
    main()
