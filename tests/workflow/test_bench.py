"""The cost bench: ratios within a repetition, their table and their figure."""

import bench
import pandas as pd
import pytest

import sasa_lib as sl


def seconds(**methods):
    """Rows of two settings; the machine is twice as slow in the second repetition."""
    rows = []
    for setting in (bench.BASE, bench.BASE | {"k": 50}):
        for repetition, slowness in enumerate((1.0, 2.0, 1.0)):
            for method, of in methods.items():
                row = {"model": "m", "method": method, "repetition": repetition, **setting}
                rows.append(row | {"seconds": slowness * of * (setting["k"] / 10)})
    rows[-1]["seconds"] *= 2  # one slow call
    return pd.DataFrame(rows)


def test_a_ratio_is_taken_within_its_repetition():
    table = bench.ratios(seconds(plain=4.0, margin=5.0))
    margin = table[table["method"] == "margin"].set_index("k")
    assert margin.loc[10, ["ratio", "ratio_low", "ratio_high"]].tolist() == pytest.approx(
        [0.8, 0.8, 0.8]
    )
    assert margin.loc[50, ["ratio", "ratio_low", "ratio_high"]].tolist() == pytest.approx(
        [0.8, 0.4, 0.8]
    )
    assert margin.loc[10, "milliseconds"] == pytest.approx(1000 * 5 / 20)


def test_the_table_has_a_row_a_setting_and_method():
    lines = bench.markdown(bench.ratios(seconds(plain=4.0, margin=5.0, posterior=4.0))).splitlines()
    assert lines[0] == "| sequences | k | prompt | new | method | m |"
    assert lines[2] == "| 25 | 10 | 16 | 20 | margin | 0.80 (0.80 to 0.80) |"
    assert len(lines) == 2 + 4


def test_the_figure_shows_time_over_plain_sampling():
    rows = [seconds(plain=4.0, margin=5.0, posterior=4.0)]
    for sequences in (1, 100):
        rows.append(rows[0].assign(sequences=sequences, k=10).drop_duplicates(["method"]))
    figure = sl.plots.cost(bench.ratios(pd.concat(rows)))
    assert len(figure.axes) == 2
    line = figure.axes[0].containers[0].lines[0]
    assert list(line.get_xdata()) == [10, 50]
    assert list(line.get_ydata()) == pytest.approx([1.25, 1.25])
