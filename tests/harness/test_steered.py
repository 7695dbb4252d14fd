"""A model and its method as a harness names them, asked in whatever batches."""

import pytest
import torch

import sasa_lib as sl
from sasa_lib.decoding import PlainSampling
from sasa_lib.harness.steered import Steered, load_steered

MODEL = "smollm2-135m-instruct"
SAMPLED = {"do_sample": True, "top_k": 10, "top_p": 0.9, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def lm():
    return sl.load_lm(MODEL)


def test_arguments_name_methods():
    assert isinstance(load_steered(MODEL, beta=0).method, PlainSampling)
    sasa = load_steered(MODEL, beta=2, form="margin", seed=3).method
    assert (sasa.beta, sasa.form, sasa.seed) == (2.0, "margin", 3)
    recommended = load_steered(MODEL).method
    assert recommended.describe() == sl.SASA.from_pretrained(MODEL, seed=0).describe()
    accept = load_steered(MODEL, accept=0.5, beta=0).method
    assert isinstance(accept, sl.Accept) and isinstance(accept.then, PlainSampling)
    best = load_steered(MODEL, best_of=3, beta=2).method
    assert isinstance(best, sl.BestOf) and best.draws == 3 and best.then.beta == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"betta": 1}, "there is no model argument 'betta'; there are boundary, accept, .*beta"),
        ({"accept": 0.0, "best_of": 2}, "give accept or best_of, not both"),
        ({"beta": -1}, "beta must be"),
        ({"best_of": 0}, "must be a whole number"),
        (
            {"name": "gpt2", "beta": 1},
            "no ready boundary for 'gpt2': give boundary=FOLDER, .*beta=0",
        ),
    ],
)
def test_arguments_that_name_none_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_steered(**{"name": MODEL} | arguments)


@pytest.mark.parametrize("kind", ["plain", "sasa", "accept", "best-of"])
def test_the_nth_continuation_of_a_prompt_is_the_same_in_any_batches(lm, kind):
    model, tokenizer = lm
    sasa = sl.SASA.from_pretrained(MODEL, seed=1)
    boundary = sasa.pairs[0][0]
    method = {
        "plain": PlainSampling(1),
        "sasa": sasa,
        "accept": sl.Accept(boundary, -1.0, then=sasa),
        "best-of": sl.BestOf(boundary, 2, then=sasa),
    }[kind]
    prompts = ["The old man said", "It was a dark and"] * 4

    def continued(*sizes):
        steered, texts, start = Steered(model, tokenizer, method), [], 0
        for size in sizes:
            some = tokenizer(prompts[start : start + size], return_tensors="pt", padding=True)
            sequences = steered.generate(**some, **SAMPLED)
            texts += sl.continuations(tokenizer, some["input_ids"], sequences)
            start += size
        return texts

    at_once = continued(8)
    assert len(set(at_once[::2])) > 2  # draws of one prompt differ
    assert continued(1, 3, 4) == at_once
    # Where a harness says which continuation it wants, others need not have been drawn.
    later = tokenizer(prompts[:2], return_tensors="pt", padding=True)
    steered = Steered(model, tokenizer, method)
    for _ in range(2):  # asked once more, it is the same
        sequences = steered.generate(**later, given=[3, 1], **SAMPLED)
        assert sl.continuations(tokenizer, later["input_ids"], sequences) == [
            at_once[6],
            at_once[3],
        ]
    # As one call of `generate` draws several sequences of a prompt.
    inputs = tokenizer(prompts[:1], return_tensors="pt")
    together = model.generate(**inputs, **SAMPLED, num_return_sequences=4, custom_generate=method)
    assert sl.continuations(tokenizer, inputs["input_ids"], together) == at_once[::2]


def test_padding_is_no_part_of_a_prompt(lm):
    steered = Steered(*lm, PlainSampling(1))
    tokenizer = lm[1]
    short = tokenizer(["It was"], return_tensors="pt")
    longer = tokenizer(["It was", "It was a long time ago"], return_tensors="pt", padding=True)
    first = steered.generate(**short, **SAMPLED)[0, -5:]
    again = steered.generate(**longer, **SAMPLED)[0, -5:]
    assert not torch.equal(first, again)  # the second draw of that prompt
    fresh = Steered(*lm, PlainSampling(1))
    assert torch.equal(first, fresh.generate(**longer, **SAMPLED)[0, -5:])
