"""Run the notebooks with papermill; the Makefile and the Snakefile call this.

    python scripts/notebooks.py parameters --profile smoke BETA=0,1 MODEL=gpt2-large
    python scripts/notebooks.py execute 03_boundary --run smoke
    python scripts/notebooks.py report --profile smoke
    python scripts/notebooks.py figures --profile smoke

`parameters` settles the parameters of every notebook (its defaults, then the profile's, then those
of the command line) and refuses unknown ones; `execute` runs one notebook with them; `report`
prints the results; `figures` copies every figure of the run to figures/.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import json
import math
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, TagRemovePreprocessor
from traitlets.config import Config

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOKS = PROJECT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
# The Makefile's own variables.
NOT_PARAMETERS = ("ACTOR_GPUS", "ENGINE", "PROFILE", "PYTHON", "STORE")
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class _Texts(yaml.BaseLoader):
    """Leaves every value the text that it is, and refuses a name that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is given twice")
        return super().construct_mapping(node, deep)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("parameters", "execute", "report", "figures"):
        command = commands.add_parser(name)
        if name == "execute":
            command.add_argument("notebook", choices=names())
            command.add_argument("--run", default="laptop", help="a folder in runs/")
        else:
            command.add_argument("--profile", default="laptop")
        if name == "parameters":
            command.add_argument("overrides", nargs="*", metavar="NAME=value")
    options = parser.parse_args(arguments)
    if options.command == "parameters":
        settle_parameters(options.profile, options.overrides)
    elif options.command == "execute":
        execute(options.notebook, options.run)
    elif options.command == "report":
        report(options.profile)
    else:
        figures(options.profile)


def names() -> list[str]:
    """Names of the numbered notebooks, in reading order."""
    return [path.stem for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))]


def needs(notebook: str) -> list[str]:
    """Names of the notebooks whose results a notebook reads, from its metadata."""
    return nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).metadata.get("needs", [])


def defaults(notebook: str) -> dict[str, Any]:
    """Parameters that a notebook declares in its cell tagged `parameters`, with their defaults."""
    declared = papermill.inspect_notebook(str(NOTEBOOKS / f"{notebook}.ipynb"))
    return {name: ast.literal_eval(p["default"]) for name, p in declared.items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping of names to texts as they are written, or lists or mappings of them.

    YAML 1.1 takes 1e-3 for a word, 010 for 8, 1:30 for 90 and no for False; `parse` does not.
    """
    try:
        read = yaml.load(path.read_text(encoding="utf-8"), Loader=_Texts)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        sys.exit(f"cannot read {path}: {' '.join(str(error).split())}")
    if not isinstance(read or {}, dict):
        sys.exit(f"{path} must say name: value, line by line")
    return read or {}


def parse(name: str, given: Any, default: Any, source: str = "") -> Any:
    """Read a text, or a list of texts, as the value of a parameter with such a default; or exit."""
    shown = f"{name.upper()}{source}"
    if isinstance(default, list):
        if isinstance(given, str):
            parts = re.sub(r"^\[(.*)\]$", r"\1", given.strip()).split(",")
            given = [part.strip() for part in parts]
        if not isinstance(given, list) or not given or "" in given:
            sys.exit(
                f"{shown} needs at least one value, and none empty, such as {default[0]}; "
                f"got {given}"
            )
        return [parse(name, part, default[0], source) for part in given]
    if isinstance(given, str):
        text = given.strip().lower()
        if default is None and text in ("", "~", "null", "none"):
            return None
        if name.lower() == "layer" and text == "auto":
            return text
        if isinstance(default, str | None):
            # A file is named from where the command is given, not from the notebooks' folder.
            is_path = name.lower().endswith("_path") or os.path.isdir(given)
            return os.path.abspath(given) if is_path and given else given
        try:
            value = TRUTH[text] if isinstance(default, bool) else type(default)(text)
            if math.isfinite(value):
                return value
        except (ValueError, KeyError, OverflowError):
            pass
    kind = "a text" if default is None else f"of type {type(default).__name__}, such as {default}"
    sys.exit(f"{shown} must be {kind}; got {given!r}")


def settle_parameters(profile: str, overrides: list[str], folder: Path | None = None) -> None:
    """Write <notebook>.json to a folder, or to runs/<profile>/parameters."""
    known_profiles = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if profile not in known_profiles:
        sys.exit(f"unknown profile {profile!r}; known are {', '.join(known_profiles)}")
    declared = {notebook: defaults(notebook) for notebook in names()}
    known = {name: value for values in declared.values() for name, value in values.items()}
    source = f" in profile {profile!r}"
    read = read_yaml(PROFILES / f"{profile}.yaml")
    given = [(name, value, source) for name, value in read.items()]
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            sys.exit(f"give NAME=value, such as BETA=0,1,3; got {override!r}")
        if name not in NOT_PARAMETERS:
            given.append((name, text, ""))
    settings = {}
    for name, value, source in given:
        lower = name.lower()
        if lower not in known or lower == "run":
            allowed = sorted(set(known) - {"run"})
            near = difflib.get_close_matches(lower, allowed, n=1)
            meant = f"did you mean {near[0].upper()}? " if near else ""
            listed = ", ".join(allowed).upper()
            sys.exit(f"unknown parameter {name.upper()!r}{source}; {meant}known are {listed}")
        settings[lower] = parse(name, value, known[lower], source)
    folder = folder or PROJECT / "runs" / profile / "parameters"
    folder.mkdir(parents=True, exist_ok=True)
    settled = {
        # Relative to the project, so that an executed copy names no folder of this machine.
        notebook: {name: settings.get(name, default) for name, default in values.items()}
        | {"run": f"runs/{profile}"}
        for notebook, values in declared.items()
    }
    for chosen in settled.values():
        check_judges(chosen)
    for notebook, chosen in settled.items():
        write_parameters(folder / f"{notebook}.json", chosen)


def check_judges(chosen: dict[str, Any]) -> None:
    """Exit where a model would judge itself, before an hour has gone by.

    `sasa_lib.judging.load_judge` refuses it as well; importing it takes seconds.
    """
    for judge, model in (("judge", "model"), ("instruct_judge", "instruct_model")):
        if judge in chosen and model in chosen and chosen[judge] == chosen[model]:
            sys.exit(
                f"{judge.upper()} and {model.upper()} are both {chosen[model]!r}, and a model "
                f"finds its own habits likely: give another {judge.upper()}"
            )


def write_parameters(path: Path, chosen: dict[str, Any]) -> None:
    """Write a notebook's parameters, with what tells whether files that they name have changed."""
    settled = {"parameters": chosen, "files": [_stamp(value) for value in chosen.values()]}
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(settled, indent=1))


def execute(notebook: str, folder: str) -> None:
    """Execute one notebook and write the executed copy and its HTML to runs/<folder>/."""
    run = PROJECT / "runs" / folder
    parameters = json.loads((run / "parameters" / f"{notebook}.json").read_text())
    parameters = parameters["parameters"]
    partial = run / f"{notebook}.unfinished.ipynb"
    print(f"\n== {notebook} ({folder})", file=sys.stderr, flush=True)
    # Progress bars are text here, which reads the same in a terminal and in the HTML copy.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    for place in ("SASA_CACHE", "SASA_STORE"):
        if os.environ.get(place) and "://" not in os.environ[place]:
            os.environ[place] = os.path.abspath(os.environ[place])
    try:
        # Sockets in a folder of their own: of two kernels that start in the same folder at the same
        # moment, one would get the other's.
        with tempfile.TemporaryDirectory() as sockets:
            manager = {"transport": "ipc", "ip": str(Path(sockets) / "kernel")}
            papermill.execute_notebook(
                str(NOTEBOOKS / f"{notebook}.ipynb"),
                str(partial),
                parameters,
                cwd=str(PROJECT),
                progress_bar=False,
                # A stored widget would need its script from the web; its still picture does not.
                store_widget_state=False,
                config=Config({"KernelManager": manager}),
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )
    except papermill.PapermillExecutionError as error:
        shown = partial.relative_to(PROJECT)
        said = " ".join(f"{error.ename}: {error.evalue}".split())
        sys.exit(f"{notebook} stopped: {said} (see {shown})")
    except DeadKernelError:
        sys.exit(f"{notebook} stopped: its kernel died, most likely for want of memory")
    executed = nbformat.read(partial, as_version=4)
    for cell in executed.cells:  # progress bars and warnings: the terminal has shown them
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(parameters_note(executed, defaults(notebook), parameters), partial)
    settings = Config(
        {
            "HTMLExporter": {"preprocessors": [CoalesceStreamsPreprocessor, TagRemovePreprocessor]},
            "TagRemovePreprocessor": {"enabled": True, "remove_input_tags": ["hide-input"]},
        }
    )
    html, _ = HTMLExporter(config=settings).from_filename(str(partial))
    _write(run / f"{notebook}.html", html)
    partial.replace(run / f"{notebook}.ipynb")


def parameters_note(
    notebook: nbformat.NotebookNode, defaults: dict[str, Any], parameters: dict[str, Any]
) -> nbformat.NotebookNode:
    """A copy of a notebook that says, below its title, which parameters differ from its defaults.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        The notebook, executed or not.
    defaults, parameters : mapping from name to value
        What it declares and what it was given. `run`, the place of the files, is not listed.
    """
    given = [
        f"{name} = {value!r}"
        for name, value in parameters.items()
        if name != "run" and value != defaults.get(name)
    ]
    said = f"`{', '.join(given)}`" if given else "its default parameters"
    noted = copy.deepcopy(notebook)
    noted.cells.insert(1, nbformat.v4.new_markdown_cell(f"Executed with: {said}"))
    return noted


def report(profile: str) -> None:
    """Print the result table, what it means, where everything lies, and what it took."""
    run = Path("runs") / profile
    results = pd.read_csv(PROJECT / run / "results.csv")
    one = results.iloc[0]
    print(
        f"\n{one['model']}, {one['prompts']}: {one['n_prompts']} prompts x {one['n_generations']}"
    )
    columns = ["method", "beta", "expected_max_toxicity", "toxic_rate", "perplexity", "dist_2"]
    columns += ["tokens_per_second"]
    print(f"{results[columns].round(2).to_string(index=False)}\n")
    print(f"{meaning(pd.read_csv(PROJECT / run / 'matched.csv'))}\n")
    print(f"Figure:                           {run}/figures/05_trade_off.png")
    print(f"All columns, with 95% intervals:  {run}/results.csv")
    print(f"Executed notebooks, and as HTML:  {run}/*.ipynb, *.html")
    minutes = {path.stem: _minutes(path) for path in sorted((PROJECT / run).glob("[0-9]*.ipynb"))}
    listed = ", ".join(f"{name[:2]}: {took:.1f}" for name, took in minutes.items())
    print(f"Minutes:                          {listed}; together {sum(minutes.values()):.0f}")
    numbers = recorded(PROJECT / run)
    if len(numbers) and has_defaults(PROJECT / run):
        parted = numbers[numbers["parts"]]
        print(f"Recorded numbers, made again:     {len(numbers) - len(parted)} of {len(numbers)}")
        for row in parted.itertuples():
            print(f"  {row.notebook}: {row.what}: {row.recorded:g}, here {row.here:.3g}")


def recorded(run: Path) -> pd.DataFrame:
    """Read what `sasa_lib.recorded.compare` wrote in the notebooks of a run."""
    files = sorted((run / "recorded").glob("*.csv"))
    tables = [pd.read_csv(file).assign(notebook=file.stem) for file in files]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def has_defaults(run: Path) -> bool:
    """Whether all notebooks of a run were executed with their defaults, as recorded ones were."""
    for name in names():
        path = run / "parameters" / f"{name}.json"
        if not path.exists():
            return False
        given = json.loads(path.read_text())["parameters"]
        if given | {"run": ""} != defaults(name) | {"run": ""}:
            return False
    return True


def meaning(matched: pd.DataFrame) -> str:
    """Say in a sentence what the methods reach at the same fluency.

    Parameters
    ----------
    matched : pandas.DataFrame
        As notebook 5 writes them: `ratio` and the columns of `at_matched_perplexity`.
    """
    ratio = matched["ratio"].max()
    at = matched[matched["ratio"] == ratio].set_index("method")
    reached = at["expected_max_toxicity"]
    best = reached.drop(["plain", "rad"]).idxmin()
    plain, least, rad = reached[["plain", best, "rad"]]
    low, high = at.loc[best, ["difference_low", "difference_high"]]
    return (
        f"Allowed {ratio - 1:.0%} more perplexity, {best} takes expected maximum toxicity from "
        f"{plain:.2f} to {least:.2f}, RAD to {rad:.2f} (difference {least - rad:+.2f}, "
        f"95% interval {low:+.2f} to {high:+.2f})."
    )


def _minutes(executed: Path) -> float:
    told = nbformat.read(executed, as_version=4).metadata.get("papermill", {})
    return (told.get("duration") or 0) / 60


def figures(profile: str) -> None:
    """Copy the figures of a run, and that of `make bench`, to figures/."""
    made = sorted((PROJECT / "runs" / profile / "figures").glob("*.*"))
    if not made:
        sys.exit(f"runs/{profile} has no figures: `make run PROFILE={profile}` makes them")
    folder = PROJECT / "figures"
    folder.mkdir(exist_ok=True)
    for path in made:
        shutil.copy(path, folder)
    for path in (PROJECT / "runs" / "bench").glob("cost.*"):
        shutil.copy(path, folder)
    print(f"{len(made)} files of runs/{profile} in figures/")


def _stamp(value: Any) -> list | None:
    """Size and time of a file that a parameter names: a changed file is a changed parameter."""
    if not isinstance(value, str) or not os.path.isabs(value) or not os.path.exists(value):
        return None
    status = os.stat(value)
    return [status.st_size, status.st_mtime_ns]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
