"""Peak memory, and the figures of the notebooks on word filtering and cost."""

import math
import time

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_lm import tiny_boundary, tiny_lm

import sasa_lib as sl
from sasa_lib.evaluation import cost

MEGABYTES = 200


def hold():
    """Need so much memory, and give it back."""
    torch.ones(MEGABYTES * 10**6 // 4)


@pytest.mark.skipif(not cost.PEAK_RESET.exists(), reason="needs Linux's /proc")
def test_peak_memory_is_that_of_the_call_alone():
    before = cost.peak_memory(lambda: None)
    assert cost.peak_memory(hold) - before == pytest.approx(MEGABYTES, abs=30)
    assert cost.peak_memory(lambda: None) - before == pytest.approx(0, abs=30)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_of_a_gpu_is_what_torch_allocated():
    before = cost.peak_memory(lambda: None, "cuda")
    peak = cost.peak_memory(lambda: torch.ones(50_000_000, device="cuda"), "cuda")
    assert peak - before == pytest.approx(200, abs=5)


def test_where_the_system_does_not_tell_the_call_is_made_all_the_same(tmp_path, monkeypatch):
    calls = []
    assert math.isnan(cost.peak_memory(lambda: calls.append(1), "mps"))
    monkeypatch.setattr(cost, "PEAK_RESET", tmp_path / "no" / "clear_refs")  # as on macOS
    assert math.isnan(cost.peak_memory(lambda: calls.append(2)))
    assert calls == [1, 2]


def test_the_cost_of_a_call_is_that_of_so_many_tokens(monkeypatch):
    model, tokenizer = tiny_lm()
    outputs, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda *a, **k: outputs.append(generate(*a, **k)))
    sasa = sl.SASA(tiny_boundary(), beta=1.0, seed=0)
    options = {"do_sample": True, "top_k": 5, "num_return_sequences": 3, "custom_generate": sasa}
    found = cost.cost(model, tokenizer, "the cat sees", 4, **options)
    (output,) = outputs
    assert output.shape == (3, 3 + 4) and (output != 2).all()  # none of them has ended
    start = time.perf_counter()
    again = cost.cost(model, tokenizer, "the cat sees", 8, **options)
    assert 0 < again["seconds"] < time.perf_counter() - start
    assert outputs[1].shape == (3, 3 + 8)
    if cost.PEAK_RESET.exists():
        assert found["megabytes"] == pytest.approx(cost.peak_memory(lambda: None), abs=50)


@pytest.mark.skipif(not cost.PEAK_RESET.exists(), reason="needs Linux's /proc")
def test_the_memory_of_a_call_is_part_of_its_cost():
    model, tokenizer = tiny_lm()

    def greedy(model, input_ids, *arguments, **options):
        hold()
        return model._sample(input_ids, *arguments, **options)

    options = {"do_sample": False}
    without = cost.cost(model, tokenizer, "the cat", 2, **options)
    found = cost.cost(model, tokenizer, "the cat", 2, custom_generate=greedy, **options)
    assert found["megabytes"] - without["megabytes"] == pytest.approx(MEGABYTES, abs=30)


def test_the_cost_figure_has_a_row_a_method_and_its_range():
    table = pd.DataFrame(
        {
            "time": [1.0, 3.0], "time_low": [1.0, 2.5], "time_high": [1.0, 4.0],
            "memory": [1.0, math.nan], "memory_low": [1.0, math.nan], "memory_high": [1, math.nan],
        },
        index=["plain", "rad"],
    )  # fmt: skip
    figure = sl.plots.method_cost(table)
    time, _ = figure.axes
    assert [label.get_text() for label in time.get_yticklabels()] == ["plain", "rad"]
    segments = time.containers[0].lines[2][0].get_segments()
    assert segments[1][:, 0].tolist() == pytest.approx([2.5, 4.0])


def test_the_figure_of_what_is_explained_stacks_the_reasons():
    index = pd.MultiIndex.from_product([["one", "two"], ["plain", "word-filter"]])
    shares = pd.DataFrame({"listed": [0.2, 0, 0.1, 0], "not": [0.3, 0.4, 0.2, 0.1]}, index=index)
    figure = sl.plots.explained(shares)
    listed, other = figure.axes[0].containers
    assert [bar.get_width() for bar in listed] == pytest.approx([0.2, 0])
    assert [bar.get_x() for bar in other] == pytest.approx([0.2, 0])
    assert [axes.get_title() for axes in figure.axes] == ["one", "two"]


def test_the_figure_of_listed_words_shows_the_share_in_every_bin():
    values = np.repeat([0.05, 0.95], 4)
    table = pd.DataFrame({"corpus": "c", "value": values, "Mild": [0, 0, 0, 1, 1, 1, 0, 0]})
    figure = sl.plots.listed_words(table.astype({"Mild": bool}))
    line = figure.axes[0].containers[0].lines[0]
    x, y = (np.ma.filled(values, np.nan) for values in line.get_data())
    assert x[[0, 9]] == pytest.approx([0.05, 0.95]) and y[[0, 9]] == pytest.approx([0.25, 0.5])
    assert np.isnan(y[1:9]).all()  # no line leads across bins without a text
