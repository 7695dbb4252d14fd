"""Where a notebook works: the same folder from anywhere in a clone, the current one elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from tiny_lm import tiny_boundary

from sasa_lib.course import workspace
from sasa_lib.texts.corpora import fingerprint


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "clone" / "notebooks" / "solutions").mkdir(parents=True)
    (tmp_path / "clone" / "notebooks" / "00_start.ipynb").touch()
    return tmp_path / "clone"


@pytest.mark.parametrize("inside", ["", "notebooks", "notebooks/solutions"])
def test_a_relative_path_is_from_the_clone_wherever_in_it(clone, inside, monkeypatch, capsys):
    monkeypatch.chdir(clone / inside)
    for _ in range(2):  # a cell may be run again
        run, store = workspace.begin("runs/laptop")
        assert Path.cwd() == clone and run.is_dir()
    assert run.absolute() == store.absolute() == clone / "runs" / "laptop"
    assert capsys.readouterr().out == 2 * "Results lie in runs/laptop\n"


def test_elsewhere_it_is_from_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run, _ = workspace.begin("runs/laptop")
    assert run.absolute() == tmp_path / "runs" / "laptop" and run.is_dir()
    assert capsys.readouterr().out == f"Results lie in {tmp_path / 'runs' / 'laptop'}\n"


def test_what_another_notebook_writes_is_named_with_the_command(clone, tmp_path, monkeypatch):
    needs = {"a.csv": "03_boundary", "b.csv": "04_generation"}
    monkeypatch.chdir(clone / "notebooks")
    with pytest.raises(FileNotFoundError, match=r"has no a.csv.* `make runs/x/03_boundary.ipynb`"):
        workspace.begin("runs/x", needs)
    assert not (clone / "runs").exists()
    (clone / "runs" / "x").mkdir(parents=True)
    (clone / "runs" / "x" / "a.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"has no b.csv, which notebook 04_generation"):
        workspace.begin("runs/x", needs)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"papermill 03_boundary\.ipynb .* -p run runs/y`"):
        workspace.begin("runs/y", needs)


def test_a_boundary_of_other_texts_or_another_value_is_refused():
    texts = Dataset.from_dict(
        {"prompt": [""] * 5, "response": list("abcde"), "group": [""] * 5}
        | {"toxicity": [0.0, 0.0, 0.0, 1.0, 1.0], "threat": [0.0, 1.0, 0.0, 1.0, 1.0]}
    )
    of = {"attribute": "toxicity", "threshold": 0.5, "data_fingerprint": fingerprint(texts)}
    boundary = replace(tiny_boundary(), metadata=of)
    workspace.check_fitted_on(boundary, texts)
    with pytest.raises(ValueError, match="was fitted for 'toxicity', not for 'threat': run noteb"):
        workspace.check_fitted_on(boundary, texts, "threat")
    with pytest.raises(ValueError, match="was fitted on other texts than this corpus: run noteb"):
        workspace.check_fitted_on(boundary, texts.select([0, 1, 3, 4]))
