"""Best of n: its law against enumeration, its choice against scores computed from the texts."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import chisquare, entropy
from tiny_lm import tiny_boundary, tiny_lm
from transformers import TextStreamer

import sasa_lib as sl
from sasa_lib.decoding import PlainSampling, best_of, responses

PROMPT = "the cat sees"
SAMPLING = {"do_sample": True, "top_k": 4, "top_p": 1.0}


@pytest.fixture
def tiny():
    return tiny_lm()


def naive_margin(model, boundary, prompt, response):
    """Scaled margin of a response, from the hidden states of a whole forward pass."""
    output = model(torch.tensor([[*prompt, *response]]), output_hidden_states=True)
    states = output.hidden_states[boundary.layer][0, len(prompt) :].double()
    pooled = states[-1] if boundary.pooling == "last" else states.mean(0)
    return boundary.margins(pooled[None].numpy(), scaled=True)[0]


@pytest.mark.parametrize("n", [1, 3])
@torch.no_grad()
def test_the_law_is_that_of_the_largest_of_n_margins_and_within_its_bound(tiny, n):
    model, tokenizer = tiny
    model.generation_config.eos_token_id = None
    boundary = tiny_boundary()
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    prompt = ids[0].tolist()
    pairs, probabilities = [], []
    first = model(ids).logits[0, -1].topk(4)
    for token, p in zip(first.indices.tolist(), first.values.softmax(-1).tolist(), strict=True):
        second = model(torch.tensor([[*prompt, token]])).logits[0, -1].topk(4)
        pairs += [(token, other) for other in second.indices.tolist()]
        probabilities += [p * q for q in second.values.double().softmax(-1).tolist()]
    probabilities = np.array(probabilities) / sum(probabilities)
    margins = np.array([naive_margin(model, boundary, prompt, pair) for pair in pairs])
    below = np.array([probabilities[margins < margin].sum() for margin in margins])
    law = (below + probabilities) ** n - below**n  # the largest of n is here, not all below

    output = model.generate(
        ids,
        custom_generate=sl.BestOf(boundary, n, seed=0),
        max_new_tokens=2,
        num_return_sequences=10_000,
        **SAMPLING,
    )
    found = Counter(map(tuple, output[:, ids.shape[1] :].tolist()))
    assert set(found) <= set(pairs)
    assert chisquare([found[pair] for pair in pairs], law / law.sum() * 10_000).pvalue > 1e-3
    assert entropy(law, probabilities) <= math.log(n) - (n - 1) / n + 1e-9


def test_what_is_kept_is_the_best_of_the_draws_of_plain_sampling(smollm2, texts):
    model, tokenizer = smollm2
    fit = {"layer": 0.4, "pooling": "mean", "covariance": "ledoit_wolf", "progress": False}
    boundary = sl.Boundary.fit(model, tokenizer, texts, **fit)
    prompts = ["He told her that", "You are such a"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    options = SAMPLING | {"top_k": 10, "max_new_tokens": 6}
    width = inputs["input_ids"].shape[1]

    def continued(decoder, number):
        output = model.generate(
            **inputs, custom_generate=decoder, num_return_sequences=number, **options
        )
        return tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)

    draws = continued(PlainSampling(seed=1), 8)
    kept = continued(sl.BestOf(boundary, 4, seed=1), 2)
    owners = [prompt for prompt in prompts for _ in range(8)]
    scores = boundary.score_texts(
        model, tokenizer, Dataset.from_dict({"prompt": owners, "response": draws})
    ).reshape(4, 4)
    assert kept == [draws[4 * group + best] for group, best in enumerate(scores.argmax(1))]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_several_values_are_weighed_and_any_decoder_may_draw(tiny, pooling):
    model, tokenizer = tiny
    one = replace(tiny_boundary(), pooling=pooling)
    other = replace(one, normal=one.normal[::-1].copy(), scale=0.5, layer=2).of(model)
    sasa = sl.SASA(one, 1.0, seed=3)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    options = SAMPLING | {"max_new_tokens": 5}
    draws = model.generate(ids, custom_generate=sasa, num_return_sequences=6, **options)
    best = sl.BestOf([(one, 1.0), (other, -2.0)], 3, then=sasa)
    kept = model.generate(ids, custom_generate=best, num_return_sequences=2, **options)
    prompt = ids[0].tolist()
    responses = [
        [token for token in row if token not in (1, 2)] for row in draws[:, len(prompt) :].tolist()
    ]
    with torch.no_grad():
        totals = [
            naive_margin(model, one, prompt, r) - 2 * naive_margin(model, other, prompt, r)
            if r
            else -np.inf
            for r in responses
        ]
    chosen = np.reshape(totals, (2, 3)).argmax(1) + 3 * np.arange(2)
    torch.testing.assert_close(kept, draws[torch.from_numpy(chosen)])


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("form", ["margin", "posterior"])
def test_margins_had_while_drawing_are_those_of_reading_again(tiny, monkeypatch, form, scaled):
    model, tokenizer = tiny
    ids = tokenizer([PROMPT, PROMPT], return_tensors="pt")["input_ids"]
    with torch.no_grad():  # so that some responses end at once
        model.generation_config.eos_token_id = int(model(ids).logits[0, -1].argmax())
    one = replace(tiny_boundary(), scale=0.5)
    other = replace(one, normal=one.normal[::-1].copy(), layer=2).of(model)
    sasa = sl.SASA([(one, 1.0), (other, 0.5)], form=form, scaled=scaled, seed=3)
    best = sl.BestOf([(other, 1.0), (one, -2.0)], 30, then=sasa)
    again, had = responses.read_margins, []
    monkeypatch.setattr(responses, "read_margins", None)  # nothing is read again
    margins_of = best_of.margins_of
    monkeypatch.setattr(
        best_of, "margins_of", lambda *given: had.append(margins_of(*given)) or had[-1]
    )
    model.generate(ids, custom_generate=best, **SAMPLING | {"top_k": 20, "max_new_tokens": 6})
    (margins,) = had
    # The same draws once more, as tokens.
    draws = model.generate(
        ids, custom_generate=sasa, num_return_sequences=30,
        **SAMPLING | {"top_k": 20, "max_new_tokens": 6},
    )  # fmt: skip
    end, at = model.generation_config.eos_token_id, ids.shape[1]
    drawn = [row[: row.index(end)] if end in row else row for row in draws[:, at:].tolist()]
    expected = again(model, [other, one], [ids[0].tolist()] * len(drawn), drawn)
    assert np.isneginf(expected).any() and len({len(response) for response in drawn}) > 2
    np.testing.assert_allclose(margins, expected, atol=1e-5)


def test_an_empty_response_is_kept_only_where_all_are_empty(tiny):
    model, tokenizer = tiny
    model.generation_config.eos_token_id = tokenizer("the")["input_ids"][0]
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    options = SAMPLING | {"top_k": 20, "max_new_tokens": 2}
    draws = model.generate(
        ids, custom_generate=PlainSampling(seed=0), num_return_sequences=600, **options
    )
    kept = model.generate(
        ids, custom_generate=sl.BestOf(tiny_boundary(), 2, seed=0), num_return_sequences=300,
        **options,
    )  # fmt: skip
    end, at = model.generation_config.eos_token_id, ids.shape[1]
    empty = (draws[:, at] == end).reshape(300, 2)
    assert empty.any(1).sum() > empty.all(1).sum()
    torch.testing.assert_close(kept[:, at] == end, empty.all(1))


def test_a_run_does_not_depend_on_its_batches(tiny, tmp_path):
    model, tokenizer = tiny
    sampling = sl.runs.Sampling(generations=3, max_new_tokens=5, top_k=4, top_p=1.0, seed=0)
    prompts = [PROMPT, "a dog", "she likes the bird and it"]
    runs = [
        sl.runs.generate(
            model, tokenizer, prompts, sampling, folder=tmp_path / str(size), method="best-of",
            custom_generate=sl.BestOf(tiny_boundary(), 3, then=sl.SASA(tiny_boundary(), 1.0)),
            batch_sequences=size, progress=False,
        )
        for size in (3, 100)
    ]  # fmt: skip
    assert runs[0]["text"].tolist() == runs[1]["text"].tolist()


def test_scores_and_streamed_text_are_those_of_what_is_kept(tiny, capsys):
    model, tokenizer = tiny
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    options = SAMPLING | {
        "max_new_tokens": 4,
        "custom_generate": sl.BestOf(tiny_boundary(), seed=5),
    }
    kept = model.generate(ids, **options)
    output = model.generate(ids, return_dict_in_generate=True, output_scores=True, **options)
    torch.testing.assert_close(output.sequences, kept)
    for step, token in zip(output.scores, kept[0, ids.shape[1] :], strict=False):
        assert step.shape == (1, len(tokenizer)) and step[0, token] > float("-inf")
    model.generate(
        ids, streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True), **options
    )
    expected = tokenizer.decode(kept[0, ids.shape[1] :], skip_special_tokens=True)
    assert capsys.readouterr().out.split() == expected.split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(boundary=[]), "at least one boundary"),
        (dict(n=0), "n must be a whole number of at least 1, got 0"),
        (dict(n=2.0), "n must be a whole number"),
        (dict(boundary=[(tiny_boundary(), float("nan"))]), "weight must be a finite number"),
        (dict(then=PlainSampling(), seed=1), "give the seed to the decoder that draws"),
    ],
)
def test_bad_parameters_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        sl.BestOf(**{"boundary": tiny_boundary(), **arguments})


def test_what_it_cannot_do_is_refused_in_one_sentence(tiny):
    model, tokenizer = tiny
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    best = sl.BestOf(tiny_boundary(), 2)
    with pytest.raises(ValueError, match="give do_sample=True"):
        model.generate(ids, custom_generate=best, max_new_tokens=2)
    with pytest.raises(ValueError, match="does not return hidden states"):
        model.generate(
            ids, custom_generate=best, max_new_tokens=2, output_hidden_states=True,
            return_dict_in_generate=True, **SAMPLING,
        )  # fmt: skip
    other = replace(tiny_boundary(), states=-tiny_boundary().states)
    with pytest.raises(ValueError, match="has other hidden states"):
        model.generate(ids, custom_generate=sl.BestOf(other, 2), max_new_tokens=2, **SAMPLING)


def test_it_is_keyed_if_what_draws_is_however_deep(tiny, tmp_path):
    model, tokenizer = tiny
    widths = []

    class Watched(PlainSampling):
        def __call__(self, model, input_ids, *arguments, **options):
            widths.append(len(input_ids))
            return super().__call__(model, input_ids, *arguments, **options)

    def width(then):
        widths.clear()
        sl.runs.generate(
            model, tokenizer, [PROMPT, "a dog", "it"], sl.runs.Sampling(2, 3),
            folder=tmp_path / str(len(list(tmp_path.iterdir()))), method="m", progress=False,
            custom_generate=sl.BestOf(tiny_boundary(), 2, then=then),
        )  # fmt: skip
        return widths

    words = sl.baselines.WordFilter
    assert width(words(tokenizer, ["cat"], then=Watched(0))) == [12]
    assert width(words(tokenizer, ["cat"], then=words(tokenizer, ["dog"], then=Watched()))) == [12]
    sasa = sl.SASA(tiny_boundary(), 1.0)
    for then, keyed in ((sasa, True), (words(tokenizer, ["a"]), False)):
        assert words(tokenizer, ["cat"], then=then).is_keyed == keyed
        assert sl.BestOf(tiny_boundary(), 2, then=words(tokenizer, ["b"], then=then)).is_keyed == (
            keyed
        )


def test_a_batch_is_as_large_with_the_draws_that_are_not_kept(tiny, tmp_path):
    model, tokenizer = tiny
    widths = []

    class Watched(PlainSampling):
        def __call__(self, model, input_ids, *arguments, **options):
            widths.append(len(input_ids))
            return super().__call__(model, input_ids, *arguments, **options)

    prompts = [f"{one} {two}" for one in ("he", "she", "it") for two in ("sees", "eats", "likes")]
    method = sl.BestOf(tiny_boundary(), 3, then=sl.BestOf(tiny_boundary(), 2, then=Watched(0)))
    for size, expected in ((None, [96, 12]), (36, [36, 36, 36]), (5, [12] * 9)):
        widths.clear()
        sl.runs.generate(
            model, tokenizer, prompts, sl.runs.Sampling(2, 3), folder=tmp_path / str(size),
            method="m", custom_generate=method, batch_sequences=size, progress=False,
        )  # fmt: skip
        assert widths == expected
