"""The figures of notebooks 6 and 7 show what their tables say."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from sasa_lib.course import plots


@pytest.fixture(autouse=True)
def style():
    plots.set_style()


def test_layers_show_every_choice_and_mark_the_chosen_one(tmp_path):
    rows = [
        (layer, pooling, covariance, 0.5 + 0.01 * layer, 0.01, (layer, pooling) == (4, "mean"))
        for layer in (2, 4, 6)
        for pooling in ("mean", "last")
        for covariance in ("empirical", "ledoit_wolf")
    ]
    columns = ["layer", "pooling", "covariance", "auc", "standard_error", "chosen"]
    tried = pd.DataFrame(rows, columns=columns)
    figure = plots.layers(tried)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["pooling: mean", "pooling: last"]
    marked = figure.axes[0].lines[-1]
    assert marked.get_xydata().tolist() == [[4, 0.54]]
    assert len(figure.axes[1].containers) == 2
    plots.save(figure, tmp_path, "layers")
    assert (tmp_path / "layers.png").stat().st_size > 10_000


def test_prefixes_are_a_curve_a_phrase():
    table = pd.DataFrame(
        {
            "phrase": ["candidate"] * 3 + ["response"] * 3,
            "tokens": [1, 4, 16] * 2,
            "auc": [0.6, 0.7, 0.8, 0.6, 0.8, 0.9],
        }
    )
    axes = plots.prefixes(table).axes[0]
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [0.6, 0.8, 0.9])
    assert axes.get_legend() is None  # every curve bears its name, in its colour
    assert {text.get_text(): text.get_color() for text in axes.texts} == {
        line.get_label(): line.get_color() for line in axes.lines
    }


def test_labels_at_the_ends_of_curves_do_not_cover_each_other(tmp_path):
    names = [f"phrase {i}" for i in range(5)]
    table = pd.DataFrame(
        [(name, tokens, 0.8 + 0.001 * tokens) for name in names for tokens in (1, 4, 16)],
        columns=["phrase", "tokens", "auc"],
    )
    figure = plots.prefixes(table)
    plots.save(figure, tmp_path, "prefixes")  # at another resolution than they were placed at
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda b: b.y0)
    assert len(boxes) == 5
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
    ends = figure.axes[0].transData.transform((16, 0.816))
    assert all(box.x0 > ends[0] for box in boxes)


def test_fronts_have_a_row_a_model_and_prompt_set_and_keep_a_methods_colour(tmp_path):
    metrics = {"expected_max_toxicity": 0.5, "perplexity": 12.0, "kl": 0.1}
    metrics |= {f"{name}_low": value * 0.9 for name, value in metrics.items()} | {
        f"{name}_high": value * 1.1 for name, value in metrics.items()
    }
    nowhere = dict.fromkeys(("kl", "kl_low", "kl_high"), np.nan)
    results = pd.DataFrame(
        [
            {"model": model, "prompts": prompts, "method": method, "beta": beta}
            | metrics
            | (nowhere if method == "rad" else {})
            for model, prompts in (("one", "toxic"), ("other", "nontoxic"))
            for method, beta in (
                ("plain", 0.0),
                ("rad", 1.0),
                ("sasa", 1.0),
                ("sasa", 1.5),
                ("sasa", 2.0),
            )
            if prompts == "toxic" or method != "rad"
        ]
    )
    figure = plots.fronts(results)
    titles = ["one, toxic prompts"] * 2 + ["other, nontoxic prompts"] * 2
    assert [axes.get_title() for axes in figure.axes] == titles
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == [
        "perplexity under the judging model", "KL (nats a token)",
    ]  # fmt: skip
    colours = [
        {line.get_color() for line in axes.lines if line.get_label() == "SASA, margin"}
        for axes in figure.axes
    ]
    assert all(one == colours[0] and len(one) == 1 for one in colours)
    # RAD has a perplexity and no divergence: it is in one panel and not in the other.
    labels = [sorted(t.get_text() for t in axes.texts) for axes in figure.axes]
    assert labels == [["1", "1", "2"], ["1", "2"], ["1", "2"], ["1", "2"]]
    only = plots.fronts(results, ["sasa"])
    assert sorted(t.get_text() for t in only.axes[0].texts) == ["1", "2"]
    plots.save(figure, tmp_path, "fronts")
    assert (tmp_path / "fronts.png").stat().st_size > 10_000


def test_calibration_shows_the_sigmoid_that_made_the_labels():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=4000)
    toxic = rng.random(4000) > 1 / (1 + np.exp(-(1.5 * margins + 0.5)))
    even = np.log(toxic.sum() / (~toxic).sum())
    truth = (1.5, 0.5 + even)  # where both classes weigh the same
    figure = plots.calibration({"candidate": margins[:, None]}, toxic, {"candidate": truth})
    (axes,) = figure.axes
    bars = [line.get_xydata() for line in axes.lines if len(set(line.get_xdata())) == 1]
    bars = [bar for bar in bars if len(bar) == 2]
    assert len(bars) == 8
    inside = [low <= truth[0] * at + truth[1] <= high for (at, low), (_, high) in bars]
    assert sum(inside) >= 6
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"calibrated: 1.5 m {truth[1]:+.1f}"
    ]
