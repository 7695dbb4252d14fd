"""Budgets from a wanted perplexity ratio: recomputed naively, searched, refused, resumed."""

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_lm import tiny_boundary, tiny_lm

import sasa_lib as sl
from sasa_lib.evaluation import budget

PROMPTS = ["the cat", "she sees a dog", "it", "he likes the bird", "a tree or", "the dog and"]
SAMPLING = sl.runs.Sampling(generations=12, max_new_tokens=8, seed=4)


@pytest.fixture(scope="module")
def tiny():
    return tiny_lm()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where what one test generated serves the next."""
    return tmp_path_factory.mktemp("budgets")


def sasa(beta=30.0, **options):
    return sl.SASA(tiny_boundary(), beta=beta, seed=4, **options)


def calibrate(tiny, folder, target, steered=None, **options):
    return budget.calibrate(
        steered or sasa(), *tiny, options.pop("prompts", PROMPTS), sampling=SAMPLING,
        folder=folder, target_perplexity_ratio=target, progress=False, **options,
    )  # fmt: skip


@torch.no_grad()
def naive_perplexity(model, tokenizer, decoder, judge):
    """One prompt, then one text at a time, without batches, runs or metrics."""
    losses = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        output = model.generate(
            **ids, custom_generate=decoder, do_sample=True, top_k=SAMPLING.top_k,
            top_p=SAMPLING.top_p, max_new_tokens=8, num_return_sequences=12,
        )  # fmt: skip
        start = ids["input_ids"].shape[1]
        for sequence in output:
            words = [t for t in sequence[start:].tolist() if t > 2]  # a text has no special ones
            whole = ids["input_ids"][0].tolist() + words
            logprobs = judge(torch.tensor([whole])).logits[0].log_softmax(-1)
            losses += [-logprobs[at - 1, whole[at]].item() for at in range(start, len(whole))]
    return np.exp(np.mean(losses))


@pytest.mark.parametrize("other", [False, True])
def test_the_budget_found_has_the_ratio_that_a_naive_loop_finds(tiny, folder, other):
    model, tokenizer = tiny
    judge, options = model, {}
    if other:
        judge = copy.deepcopy(model)
        judge.lm_head.weight.data += 0.1 * torch.randn(
            judge.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)
        )
        options = {"judge": judge, "judge_tokenizer": tokenizer}
    target = 1.15
    found, table = calibrate(tiny, folder, target, tolerance=0.02, **options)
    (row,) = table[table["chosen"]].to_dict("records")
    assert row["max_kl"] == found.max_kl
    plain = naive_perplexity(model, tokenizer, sasa(beta=0.0), judge)
    steered = naive_perplexity(model, tokenizer, sasa(max_kl=found.max_kl), judge)
    np.testing.assert_allclose(table["perplexity"][0], plain, rtol=1e-4)
    np.testing.assert_allclose(row["perplexity"], steered, rtol=1e-4)
    np.testing.assert_allclose(row["ratio"], steered / plain, rtol=1e-4)
    assert target - 0.02 <= row["ratio"] <= target
    assert row["ratio_low"] < row["ratio"] < row["ratio_high"]
    assert found.describe() == sasa(max_kl=found.max_kl).describe()


def test_a_larger_target_gives_a_budget_at_least_as_large(tiny, folder):
    targets = [1.05, 1.15, 1.2, 3.0]
    budgets = [calibrate(tiny, folder, target, tolerance=0.02)[0].max_kl for target in targets]
    budgets = [np.inf if max_kl is None else max_kl for max_kl in budgets]
    assert budgets == sorted(budgets) and len(set(budgets)) == 4
    assert budgets[-1] == np.inf


def test_without_a_budget_it_is_within_the_target_already(tiny, folder):
    found, table = calibrate(tiny, folder, 1.5, sasa(max_kl=0.01))
    assert found.max_kl is None
    assert table["max_kl"].tolist() == [0, np.inf] and table["chosen"].tolist() == [False, True]
    none, table = calibrate(tiny, folder, 1.0001, sasa(beta=0.0))
    assert none.max_kl is None and table["ratio"].tolist() == [1, 1]


def test_one_prompt_has_no_interval(tiny, folder):
    _, table = calibrate(tiny, folder, 3.0, prompts=PROMPTS[:1])
    assert table[["ratio_low", "ratio_high"]].isna().all(axis=None)


def test_a_killed_calibration_goes_on(tiny, tmp_path, monkeypatch):
    calls, last = [], []
    decode = sl.SASA.__call__

    def counted(self, *arguments, **options):
        if len(calls) in last:
            raise KeyboardInterrupt
        calls.append(self.max_kl)
        return decode(self, *arguments, **options)

    monkeypatch.setattr(sl.SASA, "__call__", counted)
    whole, expected = calibrate(tiny, tmp_path / "whole", 1.15, steps=3)
    made = calls.copy()
    assert len(made) == len(set(made)) == len(expected) - 1 >= 3  # a batch a budget

    calls.clear()
    last.append(2)
    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny, tmp_path / "killed", 1.15, steps=3)
    shards = {f: f.stat().st_mtime_ns for f in (tmp_path / "killed").glob("*/shard-*")}
    assert len(shards) == 3
    last.clear()
    resumed, table = calibrate(tiny, tmp_path / "killed", 1.15, steps=3)
    assert calls == made and resumed.max_kl == whole.max_kl
    assert all(file.stat().st_mtime_ns == time for file, time in shards.items())
    pd.testing.assert_frame_equal(table, expected)
    calibrate(tiny, tmp_path / "killed", 1.15, steps=3)
    assert calls == made


@pytest.fixture
def response(monkeypatch):
    """Let perplexity be a function of the budget: 0 for plain sampling, infinity for none."""

    def pretend(perplexity):  # NaN where all texts are empty
        def generate(*arguments, custom_generate, **options):
            steered = isinstance(custom_generate, sl.SASA)
            found = perplexity((custom_generate.max_kl or np.inf) if steered else 0)
            tokens = np.array([10, 20, 30]) * (not np.isnan(found))
            nll = tokens * np.log(np.nan_to_num(found, nan=1))
            texts = {"prompt_id": range(3), "prompt": ["a", "b", "c"]}
            return pd.DataFrame(texts | {"nll": nll, "nll_tokens": tokens})

        monkeypatch.setattr(budget.runs, "generate", generate)
        monkeypatch.setattr(budget.judging, "judged", lambda texts, *rest, **options: texts)

    return pretend


@pytest.mark.parametrize("crossing", [0.002, 0.08, 0.5, 7.0])
def test_the_search_finds_where_the_ratio_crosses_the_target(response, crossing):
    response(lambda max_kl: 8 * (1 + 0.1 * np.sqrt(min(max_kl, 9) / crossing)))
    found, table = calibrate((None, None), "none", 1.1, tolerance=0, steps=7)
    assert found.max_kl <= crossing <= 1.08 * found.max_kl
    assert len(table) <= 2 + 7 and table["max_kl"].is_monotonic_increasing
    ratio = 1 + 0.1 * np.sqrt(np.minimum(table["max_kl"], 9) / crossing)
    for name in ("ratio", "ratio_low", "ratio_high"):
        np.testing.assert_allclose(table[name], ratio)
    assert table["chosen"].sum() == 1
    # With a tolerance it is content sooner, with what is still within the target.
    sooner, short = calibrate((None, None), "none", 1.1, tolerance=0.05)
    assert sooner.max_kl <= found.max_kl and len(short) < len(table)
    assert 1.05 <= short.loc[short["chosen"], "ratio"].item() <= 1.1


def test_a_ratio_that_falls_is_told(response):
    response(lambda x: 8 * {0: 1, 0.1: 1.04, np.inf: 1.3}.get(x, 1.01 if x < 0.3 else 1.2))
    with pytest.warns(UserWarning, match="a larger budget has a clearly lower perplexity"):
        found, table = calibrate((None, None), "none", 1.1)
    chosen = table.index[table["chosen"]].item()
    assert found.max_kl < 0.3 and (table["ratio"][: chosen + 1] <= 1.1).all()
    assert (table["ratio"][chosen + 1 :] > 1.1).all()
    with warnings.catch_warnings():  # what the tolerance allows is no news
        warnings.simplefilter("error")
        calibrate((None, None), "none", 1.1, tolerance=0.05)


@pytest.mark.filterwarnings("ignore:The BCa confidence interval")
def test_where_no_budget_or_no_text_is_found_that_is_said(response):
    response(lambda max_kl: 8 * (1 if max_kl == 0 else 1.2))
    with pytest.raises(ValueError, match=r"even with max_kl=0.00107 the perplexity is 1.2 times"):
        calibrate((None, None), "none", 1.1)
    response(lambda max_kl: 8 if max_kl < 0.2 else np.nan)
    assert calibrate((None, None), "none", 1.1)[0].max_kl < 0.2
    response(lambda max_kl: np.nan)
    with pytest.raises(ValueError, match="nothing but empty texts"):
        calibrate((None, None), "none", 1.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1}, "target_perplexity_ratio must be a finite number above 1, got 1"),
        ({"target": 0.9}, "above 1, got 0.9"),
        ({"target": float("nan")}, "above 1, got nan"),
        ({"target": float("inf")}, "above 1, got inf"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": "the cat"}, "expected a list of prompts"),
        ({"steered": sl.SASA(tiny_boundary(), beta=1.0)}, r"needs a seed, SASA\(..., seed=0\)"),
        ({"tolerance": -0.1}, "tolerance must be a finite number of at least 0, got -0.1"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"judge": "model"}, "give judge and judge_tokenizer both, or neither"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(tiny, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        calibrate(tiny, tmp_path, **{"target": 1.1} | options)
    assert not list(tmp_path.rglob("shard-*"))


def test_a_ratio_needs_the_same_prompts():
    texts = pd.DataFrame({"prompt_id": [0, 0, 1], "prompt": ["a", "a", "b"], "nll": [1.0, 2, 3]})
    texts["nll_tokens"] = [1, 2, 3]
    twice = budget.relative_perplexity(texts.assign(nll=texts["nll"] + np.log(2)), texts)
    np.testing.assert_allclose(twice["perplexity"], np.exp(1 + np.log(2) / 2))
    np.testing.assert_allclose(twice["ratio"], np.exp(np.log(2) / 2))
    # Prompt 0 alone, or prompt 1 alone, are the furthest that can be drawn.
    np.testing.assert_allclose(twice["ratio_high"], np.exp(2 * np.log(2) / 3))
    np.testing.assert_allclose(twice["ratio_low"], np.exp(np.log(2) / 3))
    with pytest.raises(ValueError, match="the same prompts"):
        budget.relative_perplexity(texts, texts.assign(prompt=["a", "a", "c"]))
