"""The figure of groups: a point and its interval for every group and method."""

import numpy as np
import pandas as pd
import pytest

import sasa_lib as sl


@pytest.fixture
def table():
    scores = {
        "plain": np.array([[0.9], [0.1], [0.8], [0.7]]),
        "sasa": np.array([[0.2], [0.1], [0.3], [0.1]]),
    }
    named = {"gender": ["female", "female", "male", "male"], "work": ["a_b", "a_b", "c", "c"]}
    rows = [
        sl.statistics.group_toxic_rates(values, groups)
        .reset_index()
        .assign(domain=domain, method=method)
        for domain, groups in named.items()
        for method, values in scores.items()
    ]
    yield pd.concat(rows, ignore_index=True)
    sl.plots.plt.close("all")


def test_every_group_shows_its_rate_and_interval_under_every_method(table):
    figure = sl.plots.groups(table)
    assert [axes.get_title() for axes in figure.axes] == ["gender", "work"]
    assert [t.get_text() for t in figure.axes[1].get_yticklabels()] == ["a b", "c"]
    plain, sasa = figure.axes[0].containers
    assert list(plain.lines[0].get_xdata()) == [0.5, 1.0]
    assert list(sasa.lines[0].get_xdata()) == [0.0, 0.0]
    male = table[(table["method"] == "plain") & (table["group"] == "male")].iloc[0]
    (low, _), (high, _) = plain.lines[2][0].get_segments()[1]
    assert (low, high) == pytest.approx((male["toxic_rate_low"], 1.0))


def test_methods_differ_in_colour_and_marker_and_stand_apart(table):
    figure = sl.plots.groups(table)
    points = [container.lines[0] for container in figure.axes[0].containers]
    assert len({line.get_color() for line in points}) == 2
    assert len({line.get_marker() for line in points}) == 2
    assert (points[0].get_ydata() < points[1].get_ydata()).all()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["plain", "sasa"]


def test_a_group_without_a_method_is_left_out_of_it(table):
    missing = (table["method"] == "sasa") & (table["group"] == "c")
    figure = sl.plots.groups(table[~missing])
    assert np.isnan(figure.axes[1].containers[1].lines[0].get_xdata()[1])
