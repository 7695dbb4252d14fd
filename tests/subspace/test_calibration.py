"""Margins of growing phrases: in the decoder, on given texts, and calibrated."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.optimize import minimize
from scipy.special import expit, log_expit

import sasa_lib as sl
from tests.decoding.test_sasa import left_padded_prompts, random_boundary, states_at, tiny_model
from tests.tiny_lm import tiny_boundary, tiny_lm

PHRASES = [("candidate", 1.0), ("response", 1.0), ("response", 0.6), ("text", 1.0), ("text", 0.6)]
TEXTS = Dataset.from_dict(
    {
        "prompt": ["the cat sees", "", "it", "she finds a house and"],
        "response": ["a bird and the tree", "he likes it", "leaves", "leaves it or not"],
        "toxicity": [0.9, 0.1, 0.2, 0.8],
    }
)


def naive_margins(model, boundary, prompt, response, phrase, decay):
    """One token after the other: the margin of the weighted mean of the states so far."""
    output = model(torch.tensor([prompt + response]), output_hidden_states=True)
    states = states_at(model, output, boundary.layer)[0].double().detach().numpy()
    # The first position of a sequence is in no mean.
    begin = max(len(prompt), 1) if phrase != "text" else 1
    margins = []
    for end in range(max(len(prompt), 1), len(prompt + response)):
        first = end if phrase == "candidate" else begin
        weights = decay ** np.arange(end - first, -1, -1.0)
        mean = weights @ states[first : end + 1] / weights.sum()
        margins.append((mean - boundary.midpoint) @ boundary.normal)
    return np.array(margins)


@pytest.mark.parametrize(("phrase", "decay"), PHRASES)
@pytest.mark.parametrize("family", ["llama", "mamba"])
@pytest.mark.filterwarnings("ignore:.*cannot be placed side by side")
def test_the_decoder_sees_the_margin_of_the_phrase(family, phrase, decay):
    model = tiny_model(family)
    model.generation_config.eos_token_id = None
    pairs = [(random_boundary(model, 2), 1.0), (random_boundary(model, 1, seed=1), 2.0)]
    inputs = left_padded_prompts()
    for boundary, beta in (pairs, pairs[::-1]):
        sasa = sl.SASA([boundary, beta], scaled=False, phrase=phrase, decay=decay, record=True)
        output = model.generate(
            **inputs, custom_generate=sasa, do_sample=True, top_k=7, max_new_tokens=8,
            num_return_sequences=2,
        )  # fmt: skip
        drawn = sasa.trace.query("drawn").pivot(index="sequence", columns="step", values="margin")
        for sequence, tokens in enumerate(output.tolist()):
            padding = int((inputs["attention_mask"][sequence // 2] == 0).sum())
            texts = tokens[padding:6], tokens[6:]
            expected = naive_margins(model, boundary[0], *texts, phrase, decay)
            np.testing.assert_allclose(drawn.loc[sequence], expected, atol=1e-5)


@pytest.mark.parametrize(("phrase", "decay"), PHRASES[1:])
def test_with_a_phrase_too_candidates_that_cannot_win_are_left_out(phrase, decay):
    model = tiny_model("llama")
    boundary = replace(random_boundary(model, 1), slope=2.0, intercept=-0.5)
    options = dict(do_sample=True, top_k=12, max_new_tokens=12, num_return_sequences=5)
    texts = []
    for record in (True, False):
        sasa = sl.SASA(
            boundary, beta=9.0, form="posterior", seed=3, record=record, phrase=phrase, decay=decay
        )
        texts.append(model.generate(**left_padded_prompts(), custom_generate=sasa, **options))
    torch.testing.assert_close(*texts)


@pytest.mark.parametrize(("phrase", "decay"), PHRASES)
def test_margins_of_given_texts_are_those_of_a_naive_loop(phrase, decay):
    model, tokenizer = tiny_lm()
    boundary = replace(tiny_boundary(), midpoint=np.full(32, 0.01, np.float32))
    found = boundary.phrase_margins(model, tokenizer, TEXTS, phrase=phrase, decay=decay)
    for row, margins in zip(TEXTS, found, strict=True):
        ids = (tokenizer(row[part])["input_ids"] for part in ("prompt", "response"))
        expected = naive_margins(model, boundary, *ids, phrase, decay)
        np.testing.assert_allclose(margins, expected, atol=1e-6)


def test_the_whole_phrase_is_the_texts_embedding():
    model, tokenizer = tiny_lm()
    for pooling, phrase in (("mean", "response"), ("last", "candidate")):
        boundary = replace(tiny_boundary(), pooling=pooling)
        margins = boundary.phrase_margins(model, tokenizer, TEXTS, phrase=phrase)
        expected = boundary.score_texts(model, tokenizer, TEXTS)
        np.testing.assert_allclose([of_text[-1] for of_text in margins], expected, atol=1e-6)


@pytest.mark.parametrize(("phrase", "decay"), PHRASES)
def test_calibration_is_the_likeliest_sigmoid(phrase, decay):
    model, tokenizer = tiny_lm()
    generator = np.random.default_rng(1)
    words = [w for w in tokenizer.get_vocab() if w.isalpha()]
    texts = [" ".join(generator.choice(words, generator.integers(3, 9))) for _ in range(60)]
    boundary = replace(tiny_boundary(), scale=0.02)
    margins = boundary.phrase_margins(
        model, tokenizer, texts, phrase=phrase, decay=decay, scaled=True
    )
    means = np.array([of_text.mean() for of_text in margins])
    toxic = means + generator.normal(scale=means.std(), size=60) < np.quantile(means, 0.3)
    corpus = Dataset.from_dict(
        {"prompt": [""] * 60, "response": texts, "toxicity": toxic.astype(float)}
    )

    def loss(parameters):
        total = 0.0
        for of_text, is_toxic in zip(margins, toxic, strict=True):
            log_odds = parameters[0] * of_text + parameters[1]
            of_class = (toxic == is_toxic).mean()
            # Platt's targets: a class of n texts counts as n + 1 of n + 2.
            sure = ((toxic == is_toxic).sum() + 1) / ((toxic == is_toxic).sum() + 2)
            right, wrong = (-log_odds, log_odds) if is_toxic else (log_odds, -log_odds)
            of_tokens = sure * log_expit(right) + (1 - sure) * log_expit(wrong)
            total -= of_tokens.mean() / of_class
        return total

    expected = minimize(loss, [1.0, 0.0]).x
    found = boundary.calibrated(model, tokenizer, corpus, phrase=phrase, decay=decay)
    np.testing.assert_allclose([found.slope, found.intercept], expected, rtol=2e-3, atol=2e-3)
    assert found.metadata["calibration"]["phrase"] == phrase
    assert found.fingerprint() != boundary.fingerprint()
    with pytest.raises(ValueError, match="does not rise"):
        turned = replace(boundary, normal=-boundary.normal)
        turned.calibrated(model, tokenizer, corpus, phrase=phrase, decay=decay)


def test_the_posterior_form_takes_the_boundarys_calibration(tmp_path):
    model, _ = tiny_lm()
    boundary = replace(tiny_boundary(), scale=0.5, slope=1.7, intercept=-0.4)
    boundary.save(tmp_path / "boundary.safetensors")
    boundary = sl.Boundary.load(tmp_path / "boundary.safetensors")
    for scaled in (True, False):
        sasa = sl.SASA(boundary, beta=2.0, form="posterior", scaled=scaled, record=True)
        model.generate(
            torch.tensor([[5, 9]]), custom_generate=sasa, do_sample=True, top_k=9, max_new_tokens=1
        )
        margins = sasa.trace["margin"] / (1 if scaled else 0.5)
        weights = np.exp(sasa.trace["reference_logprob"]) * expit(1.7 * margins - 0.4) ** 2
        np.testing.assert_allclose(
            np.exp(sasa.trace["new_logprob"]), weights / weights.sum(), atol=1e-6
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(phrase="prompt"), "known are candidate, response, text"),
        (dict(phrase="response", decay=0.0), "above 0 and at most 1"),
        (dict(phrase="text", decay=1.1), "above 0 and at most 1"),
        (dict(decay=0.5), "give phrase='response' or 'text'"),
    ],
)
def test_phrases_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sl.SASA(tiny_boundary(), 1.0, **arguments)


def test_another_budget_leaves_everything_else_as_it_was():
    sasa = sl.SASA(
        tiny_boundary(), 1.0, form="posterior", scaled=False, phrase="text", decay=0.5,
        max_candidates=7, seed=3,
    )  # fmt: skip
    assert sasa.with_max_kl(0.1).describe() == sasa.describe() | {"max_kl": 0.1}
    assert sasa.with_max_kl(0.1).with_max_kl(None).describe() == sasa.describe()


def test_a_prefix_is_judged_by_what_was_read_of_it():
    generator = np.random.default_rng(0)
    margins = [generator.normal(size=length) for length in generator.integers(1, 9, size=40)]
    toxic = np.arange(40) % 3 == 0
    found = sl.quality.prefix_auc(margins, toxic, tokens=(1, 4, 20))
    for read, auc in found.itertuples(index=False):
        seen = np.array([of_text[:read][-1] for of_text in margins])
        # The share of pairs of a nontoxic and a toxic text that are in the right order.
        expected = (seen[~toxic][:, None] > seen[toxic]).mean()
        assert auc == pytest.approx(expected)
    assert found["tokens"].tolist() == [1, 4, 20]
