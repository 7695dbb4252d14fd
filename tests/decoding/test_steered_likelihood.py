"""The likelihood of texts under SASA, against a loop that reads every candidate anew."""

import numpy as np
import pytest
import torch
from tiny_lm import tiny_boundary, tiny_lm

import sasa_lib as sl
from sasa_lib.decoding.steered_likelihood import steered_likelihood
from sasa_lib.subspace.embeddings import hidden_states

CONTEXTS = [[3, 7, 9], [4, 8, 5, 6, 12, 9], [5]]
TEXTS = [[8, 13, 15], [10], [6, 14, 3, 7]]
VOCABULARY = 21


def weights(sasa, model, phrase):
    """What each token of the vocabulary is multiplied by behind a phrase, as logarithms."""
    boundary, beta = sasa.pairs[0]
    states = hidden_states(model, [[*phrase, x] for x in range(VOCABULARY)], [boundary.layer])
    margins = boundary.margins(states[:, 0, -1].float().numpy(), scaled=True)
    if sasa.form == "posterior":
        margins = -np.logaddexp(0, -(boundary.slope * margins + boundary.intercept))
    return torch.tensor(beta * margins)


@torch.no_grad()
def naive(sasa, model, context, text, candidates):
    total, likeliest = 0.0, True
    for step, token in enumerate(text):
        phrase = [*context, *text[:step]]
        plain = model(torch.tensor([phrase])).logits[0, -1].double().log_softmax(-1)
        weighted = plain + weights(sasa, model, phrase)
        judged = sorted({*plain.topk(candidates).indices.tolist(), token})
        normaliser = weighted[judged].logsumexp(-1) - plain[judged].logsumexp(-1)
        total += float(weighted[token] - normaliser)
        others = [float(plain[x]) for x in range(VOCABULARY) if x not in judged]
        best = max([float((weighted[judged] - normaliser).max()), *others])
        likeliest &= float(weighted[token] - normaliser) >= best - 1e-9
    return total, likeliest


@pytest.mark.parametrize("candidates", [3, VOCABULARY])
@pytest.mark.parametrize("form", ["margin", "posterior"])
def test_it_is_that_of_a_loop(form, candidates):
    model, tokenizer = tiny_lm()
    sasa = sl.SASA(tiny_boundary(), 2.0, form=form)
    found, likeliest = steered_likelihood(
        sasa, model, tokenizer, CONTEXTS, TEXTS, candidates=candidates
    )
    for row, (context, text) in enumerate(zip(CONTEXTS, TEXTS, strict=True)):
        expected = naive(sasa, model, context, text, candidates)
        assert found[row].item() == pytest.approx(expected[0], abs=1e-4)
        assert bool(likeliest[row]) is expected[1]


def test_over_a_vocabulary_it_sums_to_one_and_at_beta_0_is_the_models():
    model, tokenizer = tiny_lm()
    every = [[x] for x in range(VOCABULARY)]
    sasa = sl.SASA(tiny_boundary(), 2.0, form="posterior")
    options = {"candidates": VOCABULARY}
    found, likeliest = steered_likelihood(
        sasa, model, tokenizer, CONTEXTS[:1] * VOCABULARY, every, **options
    )
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert likeliest.sum() == 1 and likeliest[found.argmax()]
    plain, _ = steered_likelihood(
        sl.SASA(tiny_boundary(), 0.0), model, tokenizer, CONTEXTS[:1] * VOCABULARY, every
    )
    with torch.no_grad():
        expected = model(torch.tensor(CONTEXTS[:1])).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(plain, expected, atol=1e-5, rtol=0)
    assert (found - plain).abs().max() > 0.1


def test_nothing_has_no_likelihood():
    model, tokenizer = tiny_lm()
    with pytest.raises(ValueError, match="must have at least one token each"):
        steered_likelihood(sl.SASA(tiny_boundary(), 1.0), model, tokenizer, [[3]], [[]])
