"""KL from plain sampling a token: against distributions that are enumerated step by step."""

import numpy as np
import pytest
import torch
from tiny_lm import tiny_boundary, tiny_lm
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

import sasa_lib as sl
from sasa_lib.decoding import PlainSampling
from sasa_lib.decoding.baselines import MeanDifference, SelfDebiasing, StaticBias

OPTIONS = dict(do_sample=True, top_k=8, top_p=0.95, max_new_tokens=6, num_return_sequences=5)
FILTERS = LogitsProcessorList([TopKLogitsWarper(8), TopPLogitsWarper(0.95)])


def by_hand(model, boundary, prompt, sequence, beta, margin_of):
    """Mean KL over the steps of a sequence, every candidate in a whole forward pass."""
    steps = []
    for at in range(len(prompt), len(sequence)):
        before = torch.tensor([sequence[:at]])
        with torch.no_grad():
            scores = FILTERS(before, model(before).logits[:, -1])[0]
        p = scores.log_softmax(-1)
        kept = (p > -torch.inf).nonzero()[:, 0].tolist()
        margins = torch.zeros_like(p)
        for token in kept:
            margins[token] = margin_of(sequence[:at], token)
        q = (scores + beta * margins).log_softmax(-1)
        steps.append(float((q.exp() * (q - p))[kept].sum()))
        if sequence[at] == model.generation_config.eos_token_id:
            break
    return np.mean(steps)


@pytest.mark.parametrize("kind", ["sasa", "static"])
def test_it_is_that_of_the_enumerated_distributions(kind):
    model, tokenizer = tiny_lm()
    boundary = tiny_boundary()
    ids = tokenizer("the cat sees", return_tensors="pt")["input_ids"]
    begin = model.config.bos_token_id

    def margin_of(before, token):
        phrase = [*before, token] if kind == "sasa" else [begin, token]
        with torch.no_grad():
            states = model(torch.tensor([phrase]), output_hidden_states=True).hidden_states
        return float(boundary.margins(states[boundary.layer][0, -1].numpy(), scaled=True))

    makes = {"sasa": sl.SASA, "static": StaticBias}
    method = makes[kind](boundary, 2.0, seed=3)
    found = method.divergence_per_token(model, ids, **OPTIONS)
    sequences = model.generate(ids, custom_generate=method, **OPTIONS).tolist()
    expected = [
        by_hand(model, boundary, ids[0].tolist(), sequence, 2.0, margin_of)
        for sequence in sequences
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert min(found) > 0 and len({len(s) for s in sequences}) == 1


def test_plain_sampling_has_none_and_other_methods_say_so():
    model, tokenizer = tiny_lm()
    ids = tokenizer("the cat sees", return_tensors="pt")["input_ids"]
    assert PlainSampling().divergence_per_token(model, ids, **OPTIONS).tolist() == [0.0] * 5
    zero = sl.SASA(tiny_boundary(), 0.0, seed=1).divergence_per_token(model, ids, **OPTIONS)
    np.testing.assert_allclose(zero, 0, atol=1e-6)
    for method in (SelfDebiasing(tokenizer), MeanDifference(np.ones(32), 1, 1.0)):
        assert method.divergence_per_token(model, ids, **OPTIONS) is None


def test_prompts_of_several_lengths_may_be_padded():
    model, tokenizer = tiny_lm()
    tokenizer.padding_side = "left"
    prompts = ["the cat sees", "a dog", "the bird and the cat see a dog"]
    for method in (sl.SASA(tiny_boundary(), 2.0, seed=3), StaticBias(tiny_boundary(), 2.0, seed=3)):
        padded = method.divergence_per_token(
            model, **tokenizer(prompts, return_tensors="pt", padding=True), **OPTIONS
        )
        ids = [tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in prompts]
        alone = [method.divergence_per_token(model, one, **OPTIONS) for one in ids]
        np.testing.assert_allclose(padded, np.concatenate(alone), atol=1e-5)
