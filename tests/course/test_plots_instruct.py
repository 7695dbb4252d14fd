"""The figure of notebook 11."""

import pandas as pd
import pytest

import sasa_lib as sl


def test_the_figure_shows_toxicity_beside_refusals():
    nothing = float("nan")
    results = pd.DataFrame(
        {
            "method": ["plain", "sasa"],
            "beta": [0.0, 1.5],
            "expected_max_toxicity": [0.6, 0.3],
            "expected_max_toxicity_low": [0.5, nothing],
            "expected_max_toxicity_high": [0.7, nothing],
            "refusals": [0.1, 0.2],
            "refusals_low": [0.05, nothing],
            "refusals_high": [0.15, nothing],
        }
    )
    left, right = sl.plots.toxicity_and_refusals(results).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["plain", "sasa, beta 1.5"]
    interval, point = left.lines[:2]
    assert list(interval.get_xdata()) == [0.5, 0.7]
    assert point.get_xdata() == pytest.approx([0.6])
    assert right.lines[3].get_xdata() == pytest.approx([0.2])
    assert point.get_marker() != left.lines[3].get_marker()
    # The first method is at the top, and both panels have the same scale.
    assert left.yaxis_inverted() and left.get_xlim() == right.get_xlim()
