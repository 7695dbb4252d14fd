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

With ENGINE=ray every cell is a task of Ray, on this machine or the cluster of RAY_ADDRESS: on one
GPU where there are any (or ACTOR_GPUS), else on a JOBS-th of the CPUs, of one machine at most.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep_cells import ENGINE, run, run_cell
from sweep_table import conclude, readable

import notebooks

if TYPE_CHECKING:
    from sasa_lib.engine.cluster import Pool

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
        The notebooks that every cell runs, in this order.
    cells : mapping from the name of a cell to its parameters
    jobs : int or None
        Cells that run at the same time; None is one for two CPU cores, or for each GPU of Ray's.
    pool : sasa_lib.engine.cluster.Pool or None
        Ray's machines; None is this one, without Ray.
    table, metric : str or None
        The file to collect and the column to draw; None leaves the choice.
    """

    name: str
    chain: list[str]
    cells: dict[str, dict[str, Any]]
    jobs: int | None
    pool: Pool | None
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
    defaults = {k: v for name in chain for k, v in notebooks.defaults(name).items() if k != "run"}
    for axis in axes:
        if axis not in defaults:
            known = ", ".join(sorted(defaults)).upper()
            sys.exit(f"unknown parameter {axis.upper()!r} of {', '.join(chain)}; known are {known}")
    cells = grid({axis: _parse(axis, values, defaults[axis]) for axis, values in axes.items()})
    stem = Path(options["GRID"]).stem if options.get("GRID") else chain[-1]
    name = options.get("NAME", f"{stem}-{profile}")
    if not re.fullmatch(r"[\w.+-]+", name):
        sys.exit(f"NAME is the name of a folder, such as mine; got {name!r}")
    jobs, pool = _jobs(options.get("JOBS")), _pool(options.get("ENGINE"))
    sweep = Sweep(name, chain, cells, jobs, pool, options.get("TABLE"), options.get("METRIC"))
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
    """The notebooks to run, each after those that it says must have run first."""
    known = notebooks.names()
    named = named.split(",") if isinstance(named, str) else named or []
    unknown = [name for name in named if name not in known]
    if unknown or not named:
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
        comma = r",(?![^\[]*\])" if isinstance(default, list) else ","
        values = [part.strip() for part in re.split(comma, values)]
    elif not isinstance(values, list):
        values = [values]
    if not values or (len(values) > 1 and "" in values):
        needed = f"{axis.upper()} needs at least one value, and none empty, such as {default}"
        sys.exit(f"{needed}; got {values}")
    return [notebooks.parse(axis, value, default) for value in values]


def _jobs(given: str | None) -> int | None:
    if given is not None and (not given.isdecimal() or int(given) < 1):
        sys.exit(f"JOBS is how many cells run at the same time, at least 1; got {given!r}")
    return None if given is None else int(given)


def _pool(engine: str | None) -> Pool | None:
    """Ray's machines, if that is the engine that is named here or by the environment."""
    if (engine or os.environ.get(ENGINE) or "local") == "local":
        return None
    from sasa_lib.engine import cluster

    try:
        return cluster.pool(engine or None)
    except (ValueError, ImportError) as error:
        sys.exit(str(error))


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
