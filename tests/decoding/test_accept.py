"""Accept: its law against enumeration, its draws against those of the method that draws."""

import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from test_best_of import PROMPT, SAMPLING, naive_margin
from tiny_lm import tiny_boundary, tiny_lm

import sasa_lib as sl
from sasa_lib.decoding import PlainSampling
from sasa_lib.decoding.accept import ANEW
from sasa_lib.decoding.noise import at_places


@pytest.fixture
def tiny():
    model, tokenizer = tiny_lm()
    model.generation_config.eos_token_id = None
    return model, tokenizer, tokenizer(PROMPT, return_tensors="pt")["input_ids"]


@torch.no_grad()
def enumerated(model, ids, boundary, beta=0.0):
    """All responses of two tokens, their probabilities under SASA, and their margins."""
    prompt, pairs, probabilities = ids[0].tolist(), [], []

    def step(phrase):
        scores, tokens = model(torch.tensor([phrase])).logits[0, -1].double().topk(4)
        margins = [naive_margin(model, boundary, phrase, [token]) for token in tokens.tolist()]
        q = (scores + beta * torch.tensor(margins)).softmax(-1)
        return list(zip(tokens.tolist(), q.tolist(), strict=True))

    for first, p in step(prompt):
        for second, q in step([*prompt, first]):
            pairs.append((first, second))
            probabilities.append(p * q)
    margins = [naive_margin(model, boundary, prompt, pair) for pair in pairs]
    return pairs, np.array(probabilities), np.array(margins)


@pytest.mark.parametrize(("beta", "at_most"), [(0.0, 64), (1.5, 64), (0.0, 2)])
def test_the_law_is_that_of_what_draws_restricted_to_what_is_accepted(tiny, beta, at_most):
    model, _, ids = tiny
    boundary = tiny_boundary()
    pairs, p, margins = enumerated(model, ids, boundary, beta)
    limit = float(np.quantile(margins, 0.63))  # between two of them
    above = margins > limit
    refused = p[~above].sum()
    law = np.where(above, p * (1 - refused**at_most) / (1 - refused), 0)
    # Where nothing was accepted, the largest of all draws, none of which lies above.
    below = np.array([p[margins < margin].sum() for margin in margins])
    law += np.where(above, 0, (below + p) ** at_most - below**at_most)
    assert law.sum() == pytest.approx(1)

    then = sl.SASA(boundary, beta, seed=0) if beta else PlainSampling(0)
    accept = sl.Accept(boundary, limit, then=then, at_most=at_most)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        output = model.generate(
            ids, custom_generate=accept, max_new_tokens=2, num_return_sequences=20_000, **SAMPLING
        )
    found = Counter(map(tuple, output[:, ids.shape[1] :].tolist()))
    likely = law > 1e-9
    assert set(found) <= {pair for pair, some in zip(pairs, likely, strict=True) if some}
    counts = np.array([found[pair] for pair in pairs])[likely]
    assert chisquare(counts, law[likely] / law.sum() * 20_000).pvalue > 1e-3
    assert accept.accepted.mean() == pytest.approx(1 - refused**at_most, abs=0.02)
    if at_most == 64:
        assert accept.drawn.mean() == pytest.approx(1 / (1 - refused), rel=0.05)
    assert accept.drawn.max() <= at_most


def test_each_response_is_the_first_of_its_draws_that_lies_above(tiny):
    model, tokenizer, ids = tiny
    boundary = tiny_boundary()
    options = SAMPLING | {"max_new_tokens": 5}
    with at_places([i + j * ANEW for i in range(6) for j in range(8)]):
        draws = model.generate(
            ids, custom_generate=PlainSampling(3), num_return_sequences=6 * 8, **options
        )
    prompt = ids[0].tolist()
    with torch.no_grad():
        margins = [
            naive_margin(model, boundary, prompt, row) for row in draws[:, len(prompt) :].tolist()
        ]
    margins = np.reshape(margins, (6, 8))
    limit = float(np.quantile(margins, 0.8))
    first = [np.flatnonzero(row > limit) for row in margins]
    chosen = [
        rows[0] if len(rows) else row.argmax() for rows, row in zip(first, margins, strict=True)
    ]
    accept = sl.Accept(boundary, limit, at_most=8, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        kept = model.generate(ids, custom_generate=accept, num_return_sequences=6, **options)
    torch.testing.assert_close(kept, draws[torch.tensor(chosen) + 8 * torch.arange(6)])
    assert accept.drawn.tolist() == [rows[0] + 1 if len(rows) else accept.at_most for rows in first]

    # The same beside another prompt, which takes draws of its own.
    inputs = tokenizer([PROMPT, "a dog"], return_tensors="pt", padding=True, padding_side="left")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        both = model.generate(**inputs, custom_generate=accept, num_return_sequences=6, **options)
    torch.testing.assert_close(both[:6, -5:], kept[:, -5:])


def test_all_of_several_values_are_met_and_what_is_not_is_said(tiny):
    model, _, ids = tiny
    one = tiny_boundary()
    other = replace(one, normal=one.normal[::-1].copy(), layer=2).of(model)
    options = SAMPLING | {"max_new_tokens": 3, "num_return_sequences": 40}
    accept = sl.Accept([(one, 0.0), (other, -0.2)], seed=1, at_most=50)
    kept = model.generate(ids, custom_generate=accept, **options)
    prompt = ids[0].tolist()
    with torch.no_grad():
        for row in kept[:, len(prompt) :].tolist():
            assert naive_margin(model, one, prompt, row) > 0
            assert naive_margin(model, other, prompt, row) > -0.2
    never = sl.Accept(one, 1e6, seed=1, at_most=3)
    with pytest.warns(UserWarning, match="40 of 40 responses were not accepted in 3 draws"):
        model.generate(ids, custom_generate=never, **options)
    assert not never.accepted.any() and (never.drawn == never.at_most).all()


def test_what_nothing_refuses_is_what_is_drawn(tiny):
    model, _, ids = tiny
    options = SAMPLING | {"max_new_tokens": 4, "num_return_sequences": 5}
    for then in (PlainSampling(5), sl.SASA(tiny_boundary(), 1.0, seed=5)):
        accept = sl.Accept(tiny_boundary(), -1e6, then=then)
        kept = model.generate(ids, custom_generate=accept, **options)
        torch.testing.assert_close(kept, model.generate(ids, custom_generate=then, **options))
    nested = sl.Accept(tiny_boundary(), -1e6, then=sl.BestOf(tiny_boundary(), 3, seed=5))
    kept = model.generate(ids, custom_generate=nested, **options)
    best = sl.BestOf(tiny_boundary(), 3, seed=5)
    torch.testing.assert_close(kept, model.generate(ids, custom_generate=best, **options))


def test_its_draws_are_counted_through_a_method_that_holds_it(tiny, tmp_path):
    model, tokenizer, _ = tiny
    sampling = sl.runs.Sampling(generations=6, max_new_tokens=4, seed=5)

    def draws(method):
        rows = sl.runs.generate(
            model, tokenizer, [PROMPT], sampling, folder=tmp_path, method="m",
            custom_generate=method, progress=False,
        )  # fmt: skip
        return rows["draws"].tolist()

    def accept(**options):
        return sl.Accept(tiny_boundary(), 0.0, at_most=9, **options)

    alone = accept(seed=5)
    assert draws(alone) == alone.drawn.tolist() and len(set(alone.drawn)) > 1
    filtered = sl.baselines.WordFilter(tokenizer, ["zebra"], then=accept(seed=5))
    assert draws(filtered) == alone.drawn.tolist()
    best = sl.BestOf(tiny_boundary(), 2, then=accept(seed=5))
    found = draws(best)
    assert found == best.then.drawn.reshape(6, 2).sum(axis=1).tolist() and min(found) >= 2
    several = accept(then=sl.BestOf(tiny_boundary(), 3, seed=5))
    assert draws(several) == (3 * several.drawn).tolist()


def test_the_threshold_for_a_share_accepts_that_share(tiny):
    model, tokenizer, ids = tiny
    options = SAMPLING | {"max_new_tokens": 5, "num_return_sequences": 400}
    draws = model.generate(ids, custom_generate=PlainSampling(7), **options)
    texts = tokenizer.batch_decode(draws[:, ids.shape[1] :])
    accept = sl.Accept.accepting(
        0.5, tiny_boundary(), model, tokenizer, [PROMPT] * 400, texts, seed=8, at_most=40
    )
    model.generate(ids, custom_generate=accept, **options)
    assert 1 / accept.drawn.mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"boundary": []}, {}, "at least one boundary"),
        ({"at_most": 0}, {}, "at_most must be"),
        ({"above": float("nan")}, {}, "above must be"),
        ({"then": PlainSampling(0), "seed": 1}, {}, "give the seed to the decoder"),
        ({"boundary": [(tiny_boundary(), 0.0)], "above": 1.0}, {}, "its threshold in its pair"),
        ({}, {"do_sample": False}, "give do_sample=True"),
        ({}, {"output_scores": True, "return_dict_in_generate": True}, "leave scores and logits"),
        ({}, {"guidance_scale": 2.0}, "leave guidance_scale out"),
    ],
)
def test_what_it_does_not_do_is_refused(tiny, arguments, options, message):
    model, _, ids = tiny
    with pytest.raises(ValueError, match=message):
        accept = sl.Accept(**{"boundary": tiny_boundary()} | arguments)
        model.generate(ids, custom_generate=accept, max_new_tokens=2, **SAMPLING | options)
