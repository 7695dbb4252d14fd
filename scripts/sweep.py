"""Run notebooks over a grid of parameters: `make sweep`.

    make sweep NOTEBOOK=05_evaluation PROFILE=smoke BETA=0,1,3 TOP_K=5,10
    make sweep GRID=grid.yaml

NAME=a,b are the values of an axis, and every combination is a cell; of a parameter that is a list,
each is a list of one, and `BETA=[0,1],[3]` are two lists. A file says the same as `notebook:`,
`profile:` and `grid: {name: [values]}`; what the command line says comes first. NOTEBOOK may be
several, run in that order; one that another one needs is run before it, whether named or not.

Every cell has a folder of its own, runs/sweep-<NAME>/<cell>/, in which Snakemake runs the notebooks
that are not up to date, JOBS cells at a time; a cell that fails is named and does not stop the
others. From the table that the last notebook writes (or TABLE=results.csv) come table.csv, a row
of it with the cell's parameters in front, and sweep.png, METRIC against perplexity.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep_table import conclude, readable

import notebooks

OPTIONS = ("ENGINE", "GRID", "JOBS", "METRIC", "NAME", "NOTEBOOK", "PROFILE", "TABLE")  # not axes
LONGEST_NAME = 100  # of a cell; file systems end at 255


@dataclass(frozen=True)
class Sweep:
    """What a sweep was asked for.

    Attributes
    ----------
    name : str
        Its folder is runs/sweep-`name`.
    chain : list of str
        The notebooks that are asked for, in this order; they run after those that they need.
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
    sweep = settle(parser.parse_args(arguments).given)
    done = run(sweep)
    cells = {cell: sweep.cells[cell] for cell in done}
    problem = conclude(sweep.folder, cells, sweep.chain[-1], sweep.table, sweep.metric)
    if failed := len(sweep.cells) - len(done):
        sys.exit(f"{failed} of {len(sweep.cells)} cells failed; the same command tries them again")
    if problem:
        sys.exit(problem)


def run(sweep: Sweep) -> list[str]:
    """Let Snakemake run the cells that are not up to date; return those that are now.

    A job that fails leaves no output, so what is there is up to date.
    """
    targets = {
        cell: [sweep.folder / cell / f"{name}.ipynb" for name in sweep.chain]
        for cell in sweep.cells
    }
    print(
        f"{len(sweep.cells)} cells of {', '.join(sweep.chain)}, {sweep.jobs} at a time",
        file=sys.stderr,
    )
    threads = int(os.environ.get("OMP_NUM_THREADS") or (os.cpu_count() or 1) // sweep.jobs) or 1
    cores = str(sweep.jobs * threads)
    snakemake = [
        *(sys.executable, "-m", "snakemake", "--cores", cores, "--keep-going"),
        *("--nolock", "--rerun-incomplete", "--scheduler", "greedy", "--quiet", "all"),
        *("--rerun-triggers", "params", "input", "mtime", "--config", "log=1"),
        *(f"threads={threads}", "--"),
    ]
    files = [path.relative_to(notebooks.PROJECT) for paths in targets.values() for path in paths]
    subprocess.run(
        [*snakemake, *map(str, files)],
        cwd=notebooks.PROJECT, check=False,
    )  # fmt: skip
    done = [cell for cell, paths in targets.items() if all(path.is_file() for path in paths)]
    for cell in sweep.cells.keys() - set(done):
        values = sweep.cells[cell].items()
        told = ", ".join(f"{axis} = {readable(value, True)}" for axis, value in values)
        shown = (sweep.folder / cell).relative_to(notebooks.PROJECT)
        print(f"FAILED {told}: {_reason(sweep.folder / cell)} (see {shown}/)", file=sys.stderr)
    return done


def _reason(cell: Path) -> str:
    """The last line that a cell's notebooks wrote."""
    log = cell / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")


def settle(given: Sequence[str]) -> Sweep:
    """Settle a sweep and write the parameters of its cells.

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
    every = list(dict.fromkeys([*(n for name in chain for n in notebooks.needs(name)), *chain]))
    with tempfile.TemporaryDirectory() as folder:
        notebooks.settle_parameters(profile, [], Path(folder))
        settled = {
            name: json.loads((Path(folder) / f"{name}.json").read_text())["parameters"]
            for name in every
        }
    defaults = {k: v for name in every for k, v in notebooks.defaults(name).items() if k != "run"}
    for axis in axes:
        if axis not in defaults:
            known = ", ".join(sorted(defaults)).upper()
            sys.exit(f"unknown parameter {axis.upper()!r} of {', '.join(every)}; known are {known}")
    cells = grid({axis: _parse(axis, values, defaults[axis]) for axis, values in axes.items()})
    stem = Path(options["GRID"]).stem if options.get("GRID") else chain[-1]
    name = options.get("NAME", f"{stem}-{profile}")
    if not re.fullmatch(r"[\w.+-]+", name):
        sys.exit(f"NAME is the name of a folder, such as mine; got {name!r}")
    jobs = _jobs(options.get("JOBS"))
    sweep = Sweep(name, chain, cells, jobs, options.get("TABLE"), options.get("METRIC"))
    written = {}
    for cell, values in cells.items():
        for notebook, parameters in settled.items():
            chosen = parameters | {k: v for k, v in values.items() if k in parameters}
            notebooks.check_judges(chosen)
            chosen["run"] = f"runs/{sweep.folder.name}/{cell}"
            written[sweep.folder / cell / "parameters" / f"{notebook}.json"] = chosen
    for path, chosen in written.items():
        notebooks.write_parameters(path, chosen)
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
    cells = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    return {_name(cell): cell for cell in cells}


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
        read = notebooks.read_yaml(path)
        if not isinstance(read.get("grid"), dict):
            sys.exit(f"{path} must say notebook: and grid: {{name: [values]}}")
        axes = {name.lower(): values for name, values in read.pop("grid").items()}
        options = {name.upper(): value for name, value in read.items() if value not in ("", "null")}
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            known = ", ".join(OPTIONS).lower()
            sys.exit(f"unknown {unknown[0].lower()!r} in {path}; known are {known}")
        for name, value in options.items():
            if not isinstance(value, str) and (name, type(value)) != ("NOTEBOOK", list):
                sys.exit(f"{name.lower()} in {path} must be a text; got {value!r}")
    options |= {name: text for name, text in said.items() if name in OPTIONS}
    axes |= {name.lower(): text for name, text in said.items() if name not in OPTIONS}
    return options, axes


def _chain(named: str | list[str] | None) -> list[str]:
    """The notebooks that are named."""
    known = notebooks.names()
    named = named.split(",") if isinstance(named, str) else named or []
    unknown = [name for name in named if name not in known]
    if unknown or not named:
        problem = f"unknown notebook {unknown[0]!r}" if unknown else "NOTEBOOK is not given"
        sys.exit(f"{problem}; known are {', '.join(known)}")
    return list(dict.fromkeys(named))


def _parse(axis: str, values: Any, default: Any) -> list:
    """The values of an axis, each as the notebook's parameter is."""
    if isinstance(values, str):
        # Commas within brackets belong to one value.
        comma = r",(?![^\[]*\])" if isinstance(default, list) else ","
        values = [part.strip() for part in re.split(comma, values)]
    elif not isinstance(values, list):
        values = [values]
    if not values or (len(values) > 1 and "" in values):
        needed = f"{axis.upper()} needs at least one value, and none empty, such as {default}"
        sys.exit(f"{needed}; got {values}")
    return [notebooks.parse(axis, value, default) for value in values]


def _jobs(given: str | None) -> int:
    if given is not None and (not given.isdecimal() or int(given) < 1):
        sys.exit(f"JOBS is how many cells run at the same time, at least 1; got {given!r}")
    return int(given) if given else max(1, (os.cpu_count() or 1) // 2)


def _name(cell: dict[str, Any]) -> str:
    """Parameters as the name of a folder, with a hash if that does not say all of them."""
    cell = dict(sorted(cell.items()))  # make does not keep the order of a command line
    told = {axis: readable(value, True) for axis, value in cell.items()}
    short = {axis: Path(text).name if os.path.isabs(text) else text for axis, text in told.items()}
    plainly = (f"{axis}={re.sub(r'[^A-Za-z0-9._+-]', '-', text)}" for axis, text in short.items())
    name = ",".join(plainly)
    whole = name == ",".join(f"{axis}={text}" for axis, text in told.items())
    plain = [v for value in cell.values() for v in (value if isinstance(value, list) else [value])]
    ambiguous = any(value is None or (isinstance(value, str) and "+" in value) for value in plain)
    if whole and len(name) <= LONGEST_NAME and not ambiguous:
        return name
    digest = hashlib.sha256(json.dumps(cell).encode()).hexdigest()[:8]
    return f"{name[:LONGEST_NAME]}-{digest}"


if __name__ == "__main__":
    main()
