"""The notebooks, their profiles and the commands that run them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from sasa_lib.course import exercises

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "scripts"))
import sweep  # noqa: E402

import notebooks  # noqa: E402

PROFILES = ("smoke", "laptop", "table", "paper")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Runs are written to a folder of the test."""
    monkeypatch.setattr(notebooks, "PROJECT", tmp_path)
    return tmp_path


def chosen(folder, profile, notebook):
    return json.loads((folder / "runs" / profile / "parameters" / f"{notebook}.json").read_text())[
        "parameters"
    ]


def test_they_are_numbered_and_need_what_comes_before():
    numbers = [int(name[:2]) for name in notebooks.names()]
    assert numbers == list(range(len(numbers))) and len(numbers) >= 9
    for place, name in enumerate(notebooks.names()):
        assert set(notebooks.needs(name)) <= set(notebooks.names()[:place])


@pytest.mark.parametrize("name", notebooks.names())
def test_a_notebook_that_misses_a_result_names_the_one_that_it_needs(name):
    notebook = nbformat.read(PROJECT / "notebooks" / f"{name}.ipynb", as_version=4)
    (begin,) = [cell.source for cell in notebook.cells if "sl.workspace.begin(" in cell.source]
    assert sorted(set(re.findall(r'"(\d\d_\w+)"', begin))) == notebooks.needs(name)


def test_no_notebook_writes_over_a_table_of_another():
    written = [
        table
        for name in notebooks.names()
        for table in re.findall(
            r'to_(?:csv|parquet)\(run / \\"([\w.]+)',
            (PROJECT / f"notebooks/{name}.ipynb").read_text(),
        )
    ]
    assert len(written) > 5 and sorted(written) == sorted(set(written))


@pytest.mark.parametrize("name", notebooks.names())
def test_a_source_is_stripped_and_declares_its_parameters_first(name):
    notebook = nbformat.read(PROJECT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "parameters" in code[0].metadata.tags
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for part in ("The question of this notebook", "What we saw", "Exercises"):
        assert part in prose
    if name != "00_start":
        assert "What you need to know" in prose and "Where this breaks" in prose
    assert "SEEN" not in prose
    assert len(notebook.cells) <= 30
    for cell in notebook.cells:  # plumbing is hidden, ideas fit into twenty lines
        hidden = {"parameters", "hide-input"} & {*cell.metadata.get("tags", [])}
        if cell.cell_type == "code" and not hidden:
            assert len(cell.source.splitlines()) <= 20, cell.source
        number = name.partition("_")[0]
        assert set(re.findall(r'figures", "(\d+)_', cell.source)) <= {number}
        for check in re.findall(r"exercises\.(check_\w+)\(", cell.source):
            assert getattr(exercises, check).__doc__.startswith(f"{number}: ")
    assert f'sl.recorded.compare(run, "{name}", claims)' in "".join(c.source for c in code)


def test_no_progress_bar_and_no_warning_stands_in_an_executed_copy():
    copies = sorted((PROJECT / "runs" / "smoke").glob("[0-9]*.ipynb"))
    if not copies:
        pytest.skip("runs/smoke has not been made")
    for path in copies:
        cells = nbformat.read(path, as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.get("name") == "stderr"], path.name


@pytest.mark.parametrize("run", ["laptop", "smoke"])
def test_recorded_numbers_are_those_of_an_executed_notebook(run):
    numbers = notebooks.recorded(PROJECT / "runs" / run)
    if run == "laptop" and len(numbers) and not notebooks.has_defaults(PROJECT / "runs" / run):
        pytest.skip("runs/laptop was made with other parameters")
    if run == "smoke" and len(numbers):  # what reads a table and not this run
        numbers = numbers[numbers["notebook"] == "07_fronts"]
    if not len(numbers):
        pytest.skip(f"runs/{run} has not been made")
    parted = numbers[numbers["parts"]]
    assert not len(parted), parted.to_string()


@pytest.mark.parametrize("name", notebooks.names())
def test_texts_are_masked_unless_one_parameter_says_otherwise(name):
    source = (PROJECT / "notebooks" / f"{name}.ipynb").read_text()
    shows = re.findall(r"\bmask\(|\(mask\)|masked=masked|if masked else word", source)
    assert notebooks.defaults(name).get("masked", None) is (True if shows else None)
    assert "mask_text(" not in source


def test_a_parameter_has_one_default_wherever_it_stands():
    defaults = {}
    for name in notebooks.names():
        for parameter, value in notebooks.defaults(name).items():
            assert defaults.setdefault(parameter, value) == value, parameter


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_accepted(elsewhere, profile):
    notebooks.settle_parameters(profile, [])
    settings = yaml.safe_load((notebooks.PROFILES / f"{profile}.yaml").read_text()) or {}
    settled = {}
    for name in notebooks.names():
        settled |= chosen(elsewhere, profile, name)
    assert {name: settled[name] for name in settings} == settings
    evaluation = chosen(elsewhere, profile, "05_evaluation")
    assert evaluation["run"] == f"runs/{profile}"
    assert evaluation["model"] == settings.get("model", "smollm2-135m-instruct")


def test_the_command_line_reaches_the_notebooks(elsewhere):
    overrides = ["MODEL=gpt2-large", "BETA=0,1,3", "N_PROMPTS=7", "TOP_P=1", "PROMPTS_PATH=p.csv"]
    overrides += ["LAYER=-1", "PROFILE=smoke", "START_PROMPT= Oh, 010 "]
    notebooks.settle_parameters("smoke", overrides)
    assert chosen(elsewhere, "smoke", "00_start")["start_prompt"] == " Oh, 010 "
    evaluation = chosen(elsewhere, "smoke", "05_evaluation")
    assert evaluation["model"] == "gpt2-large" and evaluation["beta"] == [0.0, 1.0, 3.0]
    assert evaluation["n_prompts"] == 7 and evaluation["top_p"] == 1.0
    assert evaluation["prompts_path"] == str(Path.cwd() / "p.csv")
    assert chosen(elsewhere, "smoke", "03_boundary")["layer"] == -1


def test_a_model_that_would_judge_itself_is_refused_before_anything_runs(elsewhere):
    for given in (["MODEL=gemma3-270m"], ["INSTRUCT_JUDGE=smollm2-135m-instruct"]):
        with pytest.raises(SystemExit, match=r"give another .*JUDGE"):
            notebooks.settle_parameters("laptop", given)
    with pytest.raises(SystemExit, match="JUDGE and MODEL are both 'gemma3-270m'"):
        sweep.settle(["NOTEBOOK=05_evaluation", "PROFILE=smoke", "MODEL=x,gemma3-270m"])
    assert not (elsewhere / "runs").exists() or not list((elsewhere / "runs").rglob("*.json"))
    notebooks.settle_parameters("laptop", ["MODEL=gemma3-270m", "JUDGE=smollm2-135m-instruct"])
    assert chosen(elsewhere, "laptop", "05_evaluation")["judge"] == "smollm2-135m-instruct"


def test_parameters_can_be_settled_in_another_folder(elsewhere):
    notebooks.settle_parameters("smoke", ["BETA=3"], elsewhere / "mine")
    settled = json.loads((elsewhere / "mine" / "05_evaluation.json").read_text())
    assert settled["parameters"]["beta"] == [3.0]
    assert not (elsewhere / "runs").exists()


@pytest.mark.parametrize(
    ("profile", "override", "message"),
    [
        ("huge", "BETA=1", "unknown profile 'huge'; known are laptop, paper, smoke, table"),
        (
            "smoke",
            "BETTA=1",
            "unknown parameter 'BETTA'; did you mean BETA\\? known are AT_MOST, ATTRIBUTE",
        ),
        ("smoke", "N_PROMPTS=many", "N_PROMPTS must be of type int, such as 16; got 'many'"),
        ("smoke", "BETA=0,high", "BETA must be of type float"),
        ("smoke", "BETA=1,,2", "BETA needs at least one value, and none empty, such as 1.0"),
        ("smoke", "BETA", "give NAME=value, such as BETA=0,1,3; got 'BETA'"),
    ],
)
def test_what_is_unknown_is_refused_with_what_is_known(elsewhere, profile, override, message):
    with pytest.raises(SystemExit, match=message):
        notebooks.settle_parameters(profile, [override])
    assert not (elsewhere / "runs").exists()


REFUSED = "refused"
SPELLINGS = [
    (16, "7", 7),
    (16, "010", 10),  # YAML 1.1: 8
    (16, "-1", -1),
    (16, "1:30", REFUSED),  # YAML 1.1: 90
    (16, "0x10", REFUSED),
    (16, "1e3", REFUSED),
    (16, "16.0", REFUSED),
    (16, "yes", REFUSED),
    (0.5, "1e-3", 0.001),  # YAML 1.1: a word
    (0.5, "1E3", 1000.0),
    (0.5, ".5", 0.5),
    (0.5, "1", 1.0),
    (0.5, "010", 10.0),
    (0.5, "1:30", REFUSED),
    (0.5, "nan", REFUSED),
    (0.5, ".inf", REFUSED),
    (0.5, "-inf", REFUSED),
    (0.5, "1e999", REFUSED),
    (0.5, "true", REFUSED),
    (0.5, "null", REFUSED),
    (True, "no", False),
    (True, "FALSE", False),
    (False, "Yes", True),
    (False, "1", True),
    (True, "off", REFUSED),
    (True, "2", REFUSED),
    ("word", "no", "no"),  # YAML 1.1: False
    ("word", "010", "010"),
    ("word", "1e-3", "1e-3"),
    ("word", "1:30", "1:30"),
    ("word", "2024-01-01", "2024-01-01"),
    ("word", "null", "null"),
    (None, "null", None),
    (None, "no", "no"),
    ([1.0], "[1e-3, 010]", [0.001, 10.0]),
    ([1.0], "3", [3.0]),
    ([1.0], "[1, no]", REFUSED),
    ([1.0], "[1, [2]]", REFUSED),
    ([1.0], "[]", REFUSED),
    ([0], "[010, 1]", [10, 1]),
    ([0], "[1:30]", REFUSED),
    (["word"], "[no, 010]", ["no", "010"]),
]


@pytest.mark.parametrize("place", ["command line", "profile", "sweep", "sweep's file"])
@pytest.mark.parametrize(("default", "text", "expected"), SPELLINGS)
def test_a_value_is_read_as_meant_or_refused_wherever_it_stands(
    elsewhere, monkeypatch, place, default, text, expected
):
    cell = nbformat.v4.new_code_cell(f"run = '.'\nvalue = {default!r}")
    cell.metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
    nbformat.write(notebook, elsewhere / "00_only.ipynb")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", elsewhere)
    monkeypatch.setattr(notebooks, "PROFILES", elsewhere)
    (elsewhere / "laptop.yaml").write_text(f"value: {text}\n" if place == "profile" else "")
    (elsewhere / "grid.yaml").write_text(f"notebook: 00_only\ngrid:\n  value:\n  - {text}\n")

    def value():
        if place.startswith("sweep"):
            given = [f"GRID={elsewhere / 'grid.yaml'}"]
            if place == "sweep":
                given = ["NOTEBOOK=00_only", f"VALUE={text}"]
            (cell,) = sweep.settle(given).cells.values()
            return cell["value"]
        notebooks.settle_parameters("laptop", [f"VALUE={text}"] if place == "command line" else [])
        return chosen(elsewhere, "laptop", "00_only")["value"]

    if expected is REFUSED:
        with pytest.raises(SystemExit, match=r"^VALUE.* (must be|needs at least)") as refused:
            value()
        assert ("in profile 'laptop'" in refused.value.code) == (place == "profile")
    else:
        assert repr(value()) == repr(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_prompt: 3", "unknown parameter 'N_PROMPT' in profile 'mine'; did you mean N_PROMPTS"),
        ("run: here", "unknown parameter 'RUN' in profile 'mine'"),
        (
            "n_prompts: many",
            "N_PROMPTS in profile 'mine' must be of type int, such as 16; got 'man",
        ),
        ("n_prompts: [3]", "N_PROMPTS in profile 'mine' must be of type int, such as 16; got .'3'"),
        ("model: {a: b}", "MODEL in profile 'mine' must be of type str, such as smollm2"),
        ("beta: {a: b}", "BETA in profile 'mine' needs at least one value"),
        ("beta: [[1]]", "BETA in profile 'mine' must be of type float"),
        ("beta: 1\nbeta: 2", "cannot read .*mine.yaml: 'beta' is given twice"),
        ("- beta", "mine.yaml must say name: value"),
        ("beta: [1", "cannot read .*mine.yaml: while parsing a flow sequence"),
    ],
)
def test_a_profile_is_checked_as_the_command_line_is(elsewhere, monkeypatch, text, message):
    monkeypatch.setattr(notebooks, "PROFILES", elsewhere)
    (elsewhere / "mine.yaml").write_text(text)
    with pytest.raises(SystemExit, match=message):
        notebooks.settle_parameters("mine", [])
    assert not (elsewhere / "runs").exists()


def test_conda_and_pip_install_the_same():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    pins = (PROJECT / "requirements.txt").read_text().splitlines()
    pins = [line for line in pins if not line.startswith("#")]
    # Conda users have the library as well, so that the notebooks run as they are.
    assert environment["dependencies"][-1] == {"pip": [*pins, "--editable ."]}
    assert "python=3.11" in environment["dependencies"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^+\s]+", pin) for pin in pins)
    assert "torch==2.13.0" in pins
    # What is installed here is what is locked.
    command = [sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"]
    frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    installed = {line.partition("+")[0].lower() for line in frozen.splitlines()}
    assert {pin.lower() for pin in pins} <= installed


def test_an_executed_notebook_says_below_its_title_what_it_was_given():
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("beta = 1.0")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    declared = {"run": "runs/laptop", "beta": 1.0, "model": "one"}
    given = declared | {"run": "runs/smoke", "beta": 3.0}
    noted = notebooks.parameters_note(notebook, declared, given)
    assert noted.cells[1].source == "Executed with: `beta = 3.0`"
    assert [noted.cells[0], noted.cells[2]] == notebook.cells and len(notebook.cells) == 2
    untouched = notebooks.parameters_note(notebook, declared, declared)
    assert untouched.cells[1].source == "Executed with: its default parameters"


def test_the_figures_of_a_run_are_copied_as_png_and_svg(elsewhere, capsys):
    with pytest.raises(SystemExit, match="runs/smoke has no figures: `make run PROFILE=smoke`"):
        notebooks.main(["figures", "--profile", "smoke"])
    for folder, name in (("smoke/figures", "01_layers"), ("bench", "cost"), ("bench", "other")):
        (elsewhere / "runs" / folder).mkdir(parents=True, exist_ok=True)
        for ending in ("png", "svg"):
            (elsewhere / "runs" / folder / f"{name}.{ending}").write_text(name)
    notebooks.main(["figures", "--profile", "smoke"])
    copied = sorted(path.name for path in (elsewhere / "figures").iterdir())
    assert copied == ["01_layers.png", "01_layers.svg", "cost.png", "cost.svg"]
    assert "2 files of runs/smoke" in capsys.readouterr().out
