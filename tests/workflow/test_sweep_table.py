"""Tables and figures of sweeps, from cells that are made up."""

import os
from datetime import UTC, datetime

import nbformat
import numpy as np
import pandas as pd
import pytest
import sweep
import sweep_table
from matplotlib.colors import to_hex
from test_sweep import enter, write_project

import sasa_lib as sl


@pytest.fixture
def project(tmp_path, monkeypatch):
    write_project(tmp_path)
    enter(tmp_path, monkeypatch)
    return tmp_path


def test_the_table_is_the_one_that_the_last_notebook_wrote(tmp_path):
    start = datetime.fromtimestamp(20, UTC).isoformat()
    executed = nbformat.v4.new_notebook(metadata={"papermill": {"start_time": start}})
    nbformat.write(executed, tmp_path / "02_second.ipynb")
    for name, at in (("old.csv", 10), ("cost.csv", 30)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    assert sweep_table.written(tmp_path, "02_second") == "cost.csv"
    (tmp_path / "results.csv").touch()
    assert sweep_table.written(tmp_path, "02_second") == "results.csv"
    for path in tmp_path.glob("*.csv"):
        os.utime(path, (10, 10))
    assert sweep_table.written(tmp_path, "02_second") is None


def finished(project, **columns):
    """A sweep of one cell that has written a table."""
    settled = sweep.settle(["NOTEBOOK=02_second", "BETA=1", "NAME=x"])
    (cell,) = settled.cells
    start = datetime.fromtimestamp(20, UTC).isoformat()
    executed = nbformat.v4.new_notebook(metadata={"papermill": {"start_time": start}})
    nbformat.write(executed, settled.folder / cell / "02_second.ipynb")
    pd.DataFrame(columns).to_csv(settled.folder / cell / "cost.csv", index=False)
    return settled.folder, settled.cells


def test_what_cannot_be_drawn_leaves_the_table(project):
    folder, cells = finished(project, seconds=[1.0], text=["x"])
    assert sweep_table.conclude(folder, cells, "02_second", metric="text") == (
        "there is no metric 'text' to draw in cost.csv; its columns are seconds"
    )
    assert (folder / "table.csv").exists()
    assert (
        sweep_table.conclude(folder, cells, "02_second", "other.csv")
        == "there is no other.csv in runs/sweep-x/beta=1"
    )
    assert not (folder / "sweep.png").exists()


def test_a_table_is_collected_as_it_was_written(project):
    numbers = [0.1 + 0.2, 1e-300, np.pi, 1 / 3]
    written = {"method": ["null", "NA", "None", "plain"], "seconds": numbers, "gap": np.nan}
    folder, cells = finished(project, **written)
    table, _ = sweep_table.collect(cells, folder, "cost.csv")
    assert table["method"].tolist() == written["method"]
    assert table["seconds"].tolist() == numbers and table["gap"].isna().all()


def test_a_table_without_toxicity_is_drawn_by_its_first_metric(project, capsys):
    folder, cells = finished(project, n=[1], seconds=[1.0], seconds_low=[0.5], seconds_high=[2.0])
    assert sweep_table.conclude(folder, cells, "02_second") is None
    assert "Figure of seconds:" in capsys.readouterr().out
    assert (folder / "sweep.svg").exists()


def results():
    rows = []
    for model, shift in (("small", 0.0), ("large", 5.0)):
        for beta in (0.0, 1.0, 3.0):
            for method in ("plain", "sasa"):
                at = beta if method == "sasa" else 0.0
                row = {"model": model, "grid_beta": beta, "method": method, "beta": at}
                row |= {"perplexity": 10 + shift + at, "toxicity": 0.9 - at / 10}
                rows.append(row | {"toxicity_low": 0.5, "toxicity_high": 0.95})
    return pd.DataFrame(rows)


def curves(figure):
    lines = figure.axes[0].lines
    return {
        (to_hex(line.get_color()), line.get_marker()): line.get_xydata().tolist() for line in lines
    }


def test_the_figure_shows_every_point_in_the_colour_of_its_axis():
    figure = sweep_table.draw(results(), ["model", "grid_beta"], "toxicity")
    axes = figure.axes[0]
    assert axes.get_xlabel().startswith("perplexity") and axes.get_ylabel() == "toxicity"
    blue, orange = sl.plots.SERIES[:2]
    circle, square = sl.plots.MARKERS[:2]
    drawn = curves(figure)
    assert drawn[blue.lower(), circle] == [[10, 0.9]]  # plain sampling, once
    assert drawn[blue.lower(), square] == [[10, 0.9], [11, 0.8], [13, pytest.approx(0.6)]]
    assert drawn[orange.lower(), square] == [[15, 0.9], [16, 0.8], [18, pytest.approx(0.6)]]
    assert [text.get_text() for text in axes.texts] == ["0", "1", "3"] * 2
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["model", "small", "large", "method", "plain", "sasa", "numbers: beta"]
    bars = [segment for bar in axes.collections for segment in bar.get_segments()]
    assert {tuple(segment[:, 1]) for segment in bars} == {(0.5, 0.95)} and len(bars) == 8


def test_without_perplexity_the_first_numeric_axis_is_horizontal():
    table = results().drop(columns=["perplexity", "toxicity_low"])
    table = table[table["method"] == "sasa"]
    figure = sweep_table.draw(table, ["model", "grid_beta"], "toxicity")
    axes = figure.axes[0]
    assert axes.get_xlabel() == "beta" and not axes.collections and not axes.texts
    points = [[0, 0.9], [1, 0.8], [3, pytest.approx(0.6)]]
    drawn = [line.get_xydata().tolist() for line in axes.lines]
    assert drawn == [points, points]


def test_an_axis_of_words_is_horizontal_where_there_is_no_number():
    table = results().drop(columns="perplexity")
    table = table[(table["method"] == "sasa") & (table["grid_beta"] == 1)]
    axes = sweep_table.draw(table, ["model", "grid_beta"], "toxicity").axes[0]
    axes.figure.canvas.draw()
    assert axes.get_xlabel() == "model"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["small", "large"]
