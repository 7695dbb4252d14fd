"""Throw-away notebooks under the Snakefile: what runs again, sweeps, failures, kills."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
SCRIPTS = PROJECT / "scripts"
sys.path.insert(0, str(SCRIPTS))
import sweep  # noqa: E402

import notebooks  # noqa: E402

FIRST = """
import os, signal, time
from pathlib import Path
run = Path(run)
if not Path("repaired").exists():
    if (model, beta) == ("b", [2.0]):
        raise ValueError("no such model,\\nnot at all")
    if (model, beta) == ("a", [2.0]):
        os._exit(1)
    if (model, beta) == ("a", [3.0]):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
with open(run / "executed.txt", "a") as file:
    file.write("first\\n")
"""
SECOND = """
import os
from pathlib import Path
run = Path(run)
if not (run / "executed.txt").exists():
    raise FileNotFoundError("run 01_first first")
rows = ["method,beta,perplexity,expected_max_toxicity,threads,engine"]
here = f"{os.environ['OMP_NUM_THREADS']},{os.environ.get('SASA_ENGINE')}"
rows += [f"plain,0,10,0.9,{here}"]
rows += [f"sasa,{beta[0]},{10 + beta[0]},{0.9 - beta[0] / 10},{here}"]
(run / "results.csv").write_text("\\n".join(rows))
with open(run / "executed.txt", "a") as file:
    file.write("second\\n")
"""
WAIT = """
import os, time
from pathlib import Path
run = Path(run)
(run / "kernel.txt").write_text(str(os.getpid()))
while seed and not Path("go").exists():
    time.sleep(0.05)
with open(run / "executed.txt", "a") as file:
    file.write("wait\\n")
(run / "numbers.csv").write_text(f"seconds\\n{seed + 0.5}\\n")
"""
PARAMETERS = 'run = "runs/laptop"\nmodel = "a"\nbeta = [1.0]\nseed = 0\nscorers = ["x"]'
GRID = ["NOTEBOOK=02_second", "PROFILE=smoke", "MODEL=a,b", "BETA=0.5,2,3", "JOBS=2"]
DONE = {("a", 0.5), ("b", 0.5), ("b", 3.0)}


def write_project(folder):
    """A project of three notebooks that need no library."""
    cell = nbformat.v4.new_code_cell
    for name, source in (("01_first", FIRST), ("02_second", SECOND), ("03_wait", WAIT)):
        cells = [cell(PARAMETERS, metadata={"tags": ["parameters"]}), cell(source)]
        kernel = {"name": "python3", "display_name": "python3", "language": "python"}
        needs = {"needs": ["01_first"]} if name == "02_second" else {}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel} | needs)
        (folder / "notebooks" / "profiles").mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    (folder / "notebooks" / "profiles" / "laptop.yaml").write_text("")
    (folder / "notebooks" / "profiles" / "smoke.yaml").write_text("seed: 7\n")
    (folder / "scripts").mkdir()
    for script in (SCRIPTS / "notebooks.py", *SCRIPTS.glob("sweep*.py")):
        shutil.copy(script, folder / "scripts")
    shutil.copy(PROJECT / "Snakefile", folder)
    (folder / "sasa_lib").mkdir()
    (folder / "sasa_lib" / "sasa.py").write_text("form = 1")


def enter(folder, monkeypatch):
    monkeypatch.setattr(notebooks, "PROJECT", folder)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", folder / "notebooks")
    monkeypatch.setattr(notebooks, "PROFILES", folder / "notebooks" / "profiles")
    for name in ("OMP_NUM_THREADS", "SASA_ENGINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def project(tmp_path, monkeypatch):
    write_project(tmp_path)
    enter(tmp_path, monkeypatch)
    return tmp_path


def run(*given):
    """Run a sweep; return what it ended with and what it printed."""
    status, printed = 0, io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        try:
            sweep.main(list(given))
        except SystemExit as error:
            status = error.code
    return status, printed.getvalue()


def executed(folder):
    """How often which notebook came to its end, cell by cell."""
    return {path.parent.name: path.read_text().split() for path in folder.glob("*/executed.txt")}


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/*.ipynb")}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep in which three of six cells fail, and the same again once the cause is removed."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    place = folder / "runs" / "sweep-02_second-smoke"
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        status, printed = run(*GRID)
        seen = SimpleNamespace(folder=place, status=status, printed=printed)
        seen.table = pd.read_csv(place / "table.csv")
        seen.executed, seen.times = executed(place), times(place)
        seen.figures = {name: (place / name).read_bytes() for name in ("sweep.png", "sweep.svg")}
        (folder / "repaired").touch()
        seen.second_status, _ = run(*GRID)
        seen.second_executed, seen.second_times = executed(place), times(place)
        seen.second_table = pd.read_csv(place / "table.csv")
        seen.third_status, seen.third_printed = run(*GRID)
        seen.third_times = times(place)
    return seen


def failures(printed):
    """What is said of which cell that failed."""
    lines = (line.partition("FAILED ")[2] for line in printed.splitlines())
    return dict(line.split(": ", 1) for line in lines if line)


def test_a_failing_cell_is_reported_and_the_others_are_not_stopped(swept):
    assert swept.status == "3 of 6 cells failed; the same command tries them again"
    reported = failures(swept.printed)
    assert len(reported) == 3
    folder = "(see runs/sweep-02_second-smoke/beta={},model={}/)"
    raised = reported["model = b, beta = 2"]
    assert raised.startswith("01_first stopped: ValueError: no such model, not at all")
    assert raised.endswith(folder.format(2, "b"))
    assert reported["model = a, beta = 2"].startswith("01_first stopped: its kernel died")
    assert reported["model = a, beta = 3"].endswith(folder.format(3, "a"))
    done = {(model, beta) for model, beta in swept.table[["model", "grid_beta"]].to_numpy()}
    assert done == DONE


def test_a_second_sweep_runs_what_failed_and_nothing_else(swept):
    assert len(swept.executed) == 3 and swept.second_status == 0
    assert len(swept.second_executed) == 6
    assert set(map(tuple, swept.second_executed.values())) == {("first", "second")}
    assert len(swept.times) >= 6
    finished = {p: t for p, t in swept.times.items() if p.parent.name in swept.executed}
    assert finished.items() <= swept.second_times.items()
    assert len(swept.second_table) == 12


def test_what_is_up_to_date_is_not_run_again(swept):
    assert swept.third_status == 0
    assert swept.third_times == swept.second_times


def test_the_table_has_a_row_a_row_and_the_parameters_first(swept):
    table = swept.table
    columns = ["model", "grid_beta", "method", "beta", "perplexity"]
    assert list(table) == [*columns, "expected_max_toxicity", "threads", "engine"]
    assert table["method"].tolist() == ["plain", "sasa"] * 3
    sasa = table[table["method"] == "sasa"]
    assert sasa["model"].tolist() == ["a", "b", "b"]
    assert sasa["beta"].tolist() == sasa["grid_beta"].tolist() == [0.5, 0.5, 3.0]
    assert sasa["perplexity"].tolist() == [10.5, 10.5, 13.0]


def test_the_figure_is_made(swept):
    assert swept.figures["sweep.png"].startswith(b"\x89PNG")
    assert b"</svg>" in swept.figures["sweep.svg"]


def test_the_cells_share_the_cores(swept):
    assert set(swept.table["threads"]) == {max(1, os.cpu_count() // 2)}


def test_an_executed_copy_has_the_parameters_of_its_cell(swept):
    path = swept.folder / "beta=0.5,model=b" / "02_second.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    (injected,) = [c for c in cells if "injected-parameters" in c.metadata.get("tags", [])]
    given = {}
    exec(injected.source, given)
    assert given["model"] == "b" and given["beta"] == [0.5] and given["seed"] == 7
    assert cells[1].source == "Executed with: `model = 'b', beta = [0.5], seed = 7`"


@pytest.fixture
def start(project):
    """Start a sweep as the Makefile does; none is left when the test ends."""
    started = []
    command = [sys.executable, str(project / "scripts" / "sweep.py")]
    with open(project / "log.txt", "wb") as log:

        def begin(*given):
            started.append(
                subprocess.Popen(
                    [*command, *given], stdout=log, stderr=log, start_new_session=True,
                    # A test that a shell has started in the background ignores interrupts.
                    preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
                )
            )  # fmt: skip
            return started[-1]

        yield begin
        for process in started:
            process.kill()
            process.wait()


def wait_until(condition, what, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.1)


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A process that has ended and was not waited for is dead as well.
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_killed_sweep_takes_its_kernels_along_and_goes_on_where_it_stopped(project, start):
    given = ["NOTEBOOK=03_wait", "SEED=0,1", "NAME=mine", "JOBS=2"]
    place = project / "runs" / "sweep-mine"
    kernel = place / "seed=1" / "kernel.txt"
    for how in (signal.SIGKILL, signal.SIGINT):
        process = start(*given)
        wait_until(lambda: kernel.exists() and kernel.read_text(), "the second cell")
        wait_until((place / "seed=0" / "03_wait.html").exists, "the end of the first cell")
        time.sleep(3)  # in which Snakemake notes it; what it has not noted runs again
        os.killpg(process.pid, how)  # as a terminal or a container does
        assert process.wait(timeout=300) != 0
        wait_until(lambda: not is_alive(int(kernel.read_text())), "the end of the kernel")
        assert executed(place) == {"seed=0": ["wait"]} and not (place / "table.csv").exists()
        kernel.unlink()
    before = times(place)[place / "seed=0" / "03_wait.ipynb"]
    (project / "go").touch()
    assert start(*given).wait(timeout=300) == 0
    assert executed(place) == {"seed=0": ["wait"], "seed=1": ["wait"]}
    assert times(place)[place / "seed=0" / "03_wait.ipynb"] == before
    table = pd.read_csv(place / "table.csv")
    assert table.to_dict("list") == {"seed": [0, 1], "seconds": [0.5, 1.5]}


def snakemake(project, *targets, more=()):
    """Make notebooks of the folder runs/cell; return what was printed."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--nolock"]
    command += ["--scheduler", "greedy"]
    command += ["--rerun-triggers", "params", "input", "mtime", *more, "--"]
    files = [f"runs/cell/{name}.ipynb" for name in targets]
    done = subprocess.run(
        [*command, *files], cwd=project, check=True, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def would_run(project, *targets):
    """Which notebooks would be executed; nothing is."""
    said = snakemake(project, *targets, more=["--dry-run"])
    return sorted(set(re.findall(r"output: runs/cell/(\w+)\.ipynb", said)))


def edit(path):
    path.write_text(path.read_text().replace("form = 1", "form = 2").replace("first", "First"))


def test_a_notebook_runs_again_only_if_what_it_is_made_of_has_changed(project):
    (project / "repaired").touch()
    parameters = project / "runs" / "cell" / "parameters"

    def settle(**changed):
        for name in notebooks.names():
            chosen = notebooks.defaults(name) | {"run": "runs/cell"} | changed
            notebooks.write_parameters(parameters / f"{name}.json", chosen)

    settle()
    assert would_run(project, "02_second") == ["01_first", "02_second"]
    snakemake(project, "02_second")
    assert executed(project / "runs") == {"cell": ["first", "second"]}
    for part in ("notebooks/*.ipynb", "sasa_lib/*", "runs/cell/parameters/*"):
        for path in project.glob(part):
            path.touch()
    settle()
    assert would_run(project, "02_second") == []
    assert would_run(project, "02_second", "03_wait") == ["03_wait"]
    settle(seed=1)
    assert would_run(project, "02_second") == ["01_first", "02_second"]
    settle()
    assert would_run(project, "02_second") == []
    for place in ("sasa_lib/sasa.py", "notebooks/01_first.ipynb"):
        before = (project / place).read_text()
        edit(project / place)
        assert would_run(project, "02_second") == ["01_first", "02_second"]
        (project / place).write_text(before)
    (project / "runs" / "cell" / "02_second.ipynb").unlink()
    assert would_run(project, "02_second") == ["02_second"]
    snakemake(project, "02_second")
    assert executed(project / "runs") == {"cell": ["first", "second", "second"]}
    # All that has changed runs again in one call, whatever else is missing.
    edit(project / "sasa_lib/sasa.py")
    everything = ["01_first", "02_second", "03_wait"]
    assert would_run(project, *everything) == everything


def test_every_combination_is_a_cell_with_its_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "PROJECT", tmp_path)
    given = ["NOTEBOOK=05_evaluation", "PROFILE=smoke", "BETA=0,1,3", "MODEL=gpt2-large,org/lm"]
    settled = sweep.settle(given)
    assert settled.chain == ["05_evaluation"]
    assert [(cell["beta"], cell["model"]) for cell in settled.cells.values()] == [
        ([beta], model) for beta in (0.0, 1.0, 3.0) for model in ("gpt2-large", "org/lm")
    ]
    assert list(settled.cells)[2] == "beta=1,model=gpt2-large"
    for name, values in settled.cells.items():
        folder = tmp_path / "runs" / "sweep-05_evaluation-smoke" / name / "parameters"
        first, last = (
            json.loads((folder / f"{notebook}.json").read_text())["parameters"]
            for notebook in ("03_boundary", "05_evaluation")
        )
        assert values.items() <= last.items() and first["model"] == values["model"]
        assert "beta" not in first
        assert last["n_prompts"] == 3 and last["judge"] == "gemma3-270m"
        assert last["run"] == f"runs/sweep-05_evaluation-smoke/{name}"


def test_a_file_says_the_same_as_the_command_line(project):
    (project / "grid.yaml").write_text(
        yaml.safe_dump(
            {
                "notebook": ["01_first", "03_wait"],
                "profile": "smoke",
                "grid": {"beta": [[0, 1], 1e-05], "scorers": [["x", "y"]], "seed": [3]},
            }
        )
    )
    settled = sweep.settle([f"GRID={project / 'grid.yaml'}", "SEED=1,2"])
    assert settled.chain == ["01_first", "03_wait"] and settled.name == "grid-smoke"
    assert list(settled.cells.values()) == [
        {"beta": beta, "scorers": ["x", "y"], "seed": seed}
        for beta in ([0.0, 1.0], [1e-05])
        for seed in (1, 2)
    ]
    assert next(iter(settled.cells)) == "beta=0+1,scorers=x+y,seed=1"
    again = sweep.settle(
        ["NOTEBOOK=01_first", "BETA=[0,1],2", "SCORERS=[x, y],z", "MODEL=a", "NAME=n"]
    )
    assert [cell["beta"] for cell in again.cells.values()] == [[0.0, 1.0]] * 2 + [[2.0]] * 2
    assert [cell["scorers"] for cell in again.cells.values()] == [["x", "y"], ["z"]] * 2


def test_names_are_short_and_tell_cells_apart():
    long = [f"{'x' * 90}/{i}" for i in range(3)]
    axes = {
        "scorers": [["a+b"], ["a", "b"]],
        "model": ["a/b", "a-b", *long],
        "path": [None, "None"],
    }
    cells = sweep.grid(axes)
    assert len(cells) == 2 * 5 * 2
    assert all(len(name) <= 120 and "/" not in name for name in cells)
    assert [*sweep.grid({"a": [1], "b": [2]})] == [*sweep.grid({"b": [2], "a": [1]})] == ["a=1,b=2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["BETTA=1"],
            "unknown parameter 'BETTA' of 01_first, 02_second; known are BETA, MODEL, SC",
        ),
        (["RUN=here"], "unknown parameter 'RUN'"),
        (["BETA=0,high"], "BETA must be of type float"),
        (["SEED=1,[2]"], "SEED must be of type int"),
        (["BETA="], "BETA needs at least one value"),
        (["BETA=1,,2"], "BETA needs at least one value, and none empty, such as [1.0]; got ['1', "),
        ([], "a sweep needs the values of at least one parameter"),
        (["BETA=1", "NOTEBOOK=07_no"], "unknown notebook '07_no'; known are 01_first, 02_second"),
        (["BETA=1", "PROFILE=huge"], "unknown profile 'huge'; known are laptop, smoke"),
        (["BETA=1", "JOBS=0"], "JOBS is how many cells run at the same time, at least 1; got '0'"),
        (["BETA=1", "NAME=../up"], "NAME is the name of a folder"),
        (["BETA=1", "here"], "give NAME=value"),
        (["GRID=none.yaml"], "there is no none.yaml"),
    ],
)
def test_what_is_unknown_is_refused_before_anything_starts(project, given, message):
    with pytest.raises(SystemExit) as refused:
        sweep.main(["NOTEBOOK=02_second", *given])
    assert refused.value.code.startswith(message)
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"notebook": "01_first"}, "must say notebook: and grid:"),
        ({"grid": {"beta": [1]}, "job": 2}, "unknown 'job' in"),
        (
            {"notebook": "01_first", "grid": {"seed": [[1]]}},
            "SEED must be of type int, such as 0; got ['1']",
        ),
        ({"notebook": "01_first", "grid": {"beta": []}}, "BETA needs at least one value"),
        ({"grid": {"beta": [1]}, "table": ["x"]}, "table in "),
        ({"grid": {"beta": [{"a": 1}]}, "notebook": "01_first"}, "BETA needs at least one value"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(project, said, message):
    (project / "grid.yaml").write_text(yaml.safe_dump(said))
    with pytest.raises(SystemExit) as refused:
        sweep.main([f"GRID={project / 'grid.yaml'}"])
    assert message in refused.value.code
    assert not (project / "runs").exists()
