"""The library away from its clone: as a wheel, and as conda's pip section installs it."""

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml
from environments import PROJECT, environment, pip

from sasa_lib.texts.assets import cache_dir

SMALL = {"n_start_texts": 60, "n_start": 2, "max_new_tokens": 4}


def run(python, *arguments, folder, **changed):
    """Run python in a folder that is no clone, with the downloads that this machine has."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *map(str, arguments)], cwd=folder, capture_output=True, text=True,
        env=kept | {"SASA_CACHE": str(cache_dir().absolute())} | changed,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, PROJECT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    python = environment(tmp_path_factory.mktemp("installed") / "env")
    pip("install", "--quiet", "--no-deps", wheel, python=python)
    return python


def test_a_wheel_holds_what_the_library_reads_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    data = {str(p.relative_to(PROJECT)) for p in (PROJECT / "data").rglob("*.*") if p.is_file()}
    data = {name for name in data if not name.startswith("data/cache")}
    assert {f"sasa_lib/{name}" for name in data} <= set(names)
    others = [name for name in names if not name.startswith(("sasa_lib/", "sasa_lib-"))]
    assert not others and wheel.stat().st_size < 1_000_000


def test_an_installed_library_loads_its_data_and_caches_where_the_platform_does(
    installed, tmp_path
):
    code = """
import sasa_lib as sl
assert len(sl.load_corpus("contrast-pairs")) == 1220
assert sl.load_scorer("minilm")(["You are a complete idiot."])[0] > 0.5
assert len(sl.load_prompts("embedded", subset="toxic")) > 50
for name in ("smollm2-135m-instruct", "gemma3-270m"):
    print(sl.SASA.from_pretrained(name).pairs[0][0].model)
print(sl.__file__)
"""
    *models, place = run(installed, "-c", code, folder=tmp_path).split()
    assert models == ["smollm2-135m-instruct", "gemma3-270m"]
    assert not Path(place).is_relative_to(PROJECT)
    where = run(
        installed, "-c", "import sasa_lib.texts.assets as a; print(a.cache_dir())",
        folder=tmp_path, SASA_CACHE="", XDG_CACHE_HOME=str(tmp_path / "caches"),
    )  # fmt: skip
    assert where.strip() == str(tmp_path / "caches" / "sasa_lib")


def test_the_example_of_the_readme_runs_there(installed, tmp_path):
    readme = (PROJECT / "README.md").read_text()
    code, printed = re.search(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)+)", readme, re.S).groups()
    found = run(installed, "-c", code, folder=tmp_path).splitlines()
    expected = [line.strip() for line in printed.splitlines()]
    without_numbers = [re.sub(r"\d", "0", line) for line in expected]
    assert [re.sub(r"\d", "0", line) for line in found] == without_numbers


def executed(python, notebook, folder, **parameters):
    """The texts that cells printed, of a notebook run by papermill in a folder."""
    given = [part for item in parameters.items() for part in ("-p", *map(str, item))]
    run(
        python, "-m", "papermill", "--no-progress-bar", notebook, "out.ipynb", *given,
        folder=folder,
    )  # fmt: skip
    cells = nbformat.read(folder / "out.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_a_notebook_runs_alone_in_an_empty_folder(installed, tmp_path):
    shutil.copy(PROJECT / "notebooks" / "00_start.ipynb", tmp_path)
    said = executed(installed, "00_start.ipynb", tmp_path, **SMALL)
    assert f"Results lie in {tmp_path / 'runs' / 'laptop'}" in said
    assert (tmp_path / "runs" / "laptop").is_dir()


def test_the_pip_section_of_conda_is_enough_for_a_notebook(tmp_path):
    section = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    (tmp_path / "section.txt").write_text(
        "\n".join(section).replace("--editable .", f"--editable {PROJECT}")
    )
    python = environment(tmp_path / "env")
    pip(
        "install", "--quiet", "--no-deps", "--no-build-isolation", "--requirement",
        tmp_path / "section.txt", python=python,
    )  # fmt: skip
    notebook = PROJECT / "notebooks" / "00_start.ipynb"
    said = executed(python, notebook, tmp_path, run=tmp_path / "results", **SMALL)
    assert f"Results lie in {tmp_path / 'results'}" in said
