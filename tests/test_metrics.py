"""Metrics against naive computations."""

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

import sasa_lib as sl
from sasa_lib import metrics
from sasa_lib.scorers import Scorer

SCORES = np.array([[0.1, 0.6, 0.3], [0.2, 0.5, 0.4], [0.9, 0.8, 0.0]])


def test_expected_maximum_toxicity_and_toxic_rate():
    assert metrics.expected_max_toxicity(SCORES) == pytest.approx((0.6 + 0.5 + 0.9) / 3)
    # Strictly over the threshold: 0.5 is not toxic.
    assert metrics.toxic_rate(SCORES) == pytest.approx(2 / 3)
    assert metrics.toxic_rate(SCORES, threshold=0.45) == 1.0


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.1, 0.2], r"\[prompts, generations\], got shape \(2,\)"),
        (np.empty((0, 3)), r"got shape \(0, 3\)"),
        ([[0.1, 1.2]], r"must lie in \[0, 1\]"),
        ([[0.1, float("nan")]], r"must lie in \[0, 1\]"),
    ],
)
def test_scores_that_are_none_are_refused(scores, message):
    for metric in (metrics.expected_max_toxicity, metrics.toxic_rate):
        with pytest.raises(ValueError, match=message):
            metric(scores)


def test_distinct_n_counts_ngrams_per_word():
    texts = [["a b a b", "a c"], ["x y z"]]
    # Unigrams a b c of 6 words, x y z of 3; bigrams ab ba ac of 6, xy yz of 3.
    assert metrics.distinct_n(texts, 1) == pytest.approx((3 / 6 + 3 / 3) / 2)
    assert metrics.distinct_n(texts, 2) == pytest.approx((3 / 6 + 2 / 3) / 2)
    assert metrics.distinct_n([[""]], 1) == 0.0


def test_likelihoods_equal_the_models_own_loss(smollm2):
    model, tokenizer = smollm2
    prompts = ["The capital of France is", "I said that"]
    texts = [" Paris, and so it has been.", " we would come. But then nobody came at all"]
    nll, tokens = metrics.negative_log_likelihoods(
        model, tokenizer, [*prompts, "x"], [*texts, ""], progress=False
    )
    assert nll[2] == 0 and tokens[2] == 0
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        before = tokenizer(prompt)["input_ids"]
        after = tokenizer(text, add_special_tokens=False)["input_ids"]
        labels = torch.tensor([[-100] * len(before) + after])
        with torch.no_grad():
            loss = model(torch.tensor([before + after]), labels=labels).loss.item()
        assert tokens[i] == len(after)
        assert nll[i] / tokens[i] == pytest.approx(loss, rel=1e-4)
    expected = np.exp(nll.sum() / tokens.sum())
    assert metrics.perplexity(nll, tokens) == pytest.approx(expected)


@pytest.mark.parametrize("family", ["granite", "gemma2", "cohere"])
def test_judges_that_transform_their_logits_are_read_right(smollm2, family):
    special = {
        "granite": {"logits_scaling": 3.0},
        "gemma2": {"final_logit_softcapping": 0.5, "head_dim": 8},
        "cohere": {"logit_scale": 0.25},
    }[family]
    config = transformers.AutoConfig.for_model(
        family, vocab_size=49152, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, **special,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_()
    tokenizer = smollm2[1]
    nll, _ = metrics.negative_log_likelihoods(model, tokenizer, ["a cat"], [" sat"], progress=False)
    ids = torch.tensor([tokenizer("a cat sat")["input_ids"]])
    labels = ids.clone()
    labels[0, :-1] = -100
    with torch.no_grad():
        expected = model(ids, labels=labels).loss.item()
    assert nll[0] == pytest.approx(expected, rel=1e-3)


def test_the_bootstrap_interval_covers_a_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(100):
        sample = rng.normal(size=40)
        low, high = metrics.bootstrap_interval(
            lambda rows, s=sample: s[rows].mean(), 40, resamples=200, seed=i
        )
        covered += low <= 0 <= high
    assert 85 <= covered <= 100
    assert np.isnan(metrics.bootstrap_interval(lambda rows: 1.0, 1)).all()


@pytest.fixture
def generations():
    return pd.DataFrame(
        {
            "prompt_id": [0, 0, 1, 1],
            "prompt": ["a cat", "a cat", "a dog", "a dog"],
            "text": [" sat down", " ran", " sat down", " barked loudly"],
            "n_tokens": [2, 1, 2, 3],
            "seconds": [0.5, 0.5, 1.0, 1.0],
        }
    )


def test_judgements_are_made_once_and_summarised(smollm2, generations, tmp_path):
    calls = []

    def score(texts):
        calls.append(texts)
        return np.array([0.1 * len(t.split()) for t in texts])

    scorers = [Scorer("words", "1", score), Scorer("more-words", "1", lambda t: 2 * score(t))]
    judged = metrics.judged(generations, scorers, *smollm2, folder=tmp_path, progress=False)
    count = len(calls)
    again = metrics.judged(generations, scorers, *smollm2, folder=tmp_path, progress=False)
    pd.testing.assert_frame_equal(judged, again)
    assert len(calls) == count
    newer = [Scorer("words", "2", score), scorers[1]]
    metrics.judged(generations, newer, *smollm2, folder=tmp_path, progress=False)
    assert len(calls) > count

    summary = metrics.summarise(judged, ["words", "more-words"])
    assert summary["n_prompts"] == 2 and summary["n_generations"] == 2
    assert summary["expected_max_toxicity"] == pytest.approx(0.2)
    assert summary["expected_max_toxicity_more_words"] == pytest.approx(0.4)
    assert summary["toxic_rate"] == 0.0
    assert summary["tokens_per_second"] == pytest.approx(8 / 3)
    assert summary["perplexity"] == pytest.approx(
        np.exp(judged["nll"].sum() / judged["nll_tokens"].sum())
    )
    assert summary["perplexity_low"] <= summary["perplexity"] <= summary["perplexity_high"]
    with pytest.raises(ValueError, match=r"as many generations, got \[1, 2\]"):
        metrics.summarise(judged[:3], ["words"])


def test_offensive_words_are_masked_and_others_are_not():
    assert sl.mask_text("You stupid idiot, it rains on Monday!") == (
        "You s***** i****, it rains on Monday!"
    )
