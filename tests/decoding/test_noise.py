"""The noise that belongs to a token: its law, and that equal laws give equal draws."""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sasa_lib import SASA
from sasa_lib.decoding import PlainSampling
from sasa_lib.decoding.baselines import RAD, RewardModel, SelfDebiasing
from sasa_lib.decoding.noise import Noise, candidates_of, keyed_draw
from tests.decoding.test_baselines import Characters
from tests.decoding.test_sasa import VOCABULARY, left_padded_prompts, random_boundary, tiny_model

PROMPTS, STEPS, TOKENS = 60, 12, 40


def noise_of(seed=0, prompts=None, steps=STEPS, tokens=TOKENS):
    """Noise [prompts, steps, tokens], by default of prompts of which each is there twice."""
    if prompts is None:
        prompts = torch.arange(PROMPTS)[:, None] // 2 + torch.tensor([[5, 9, 11]])
    noise = Noise(seed, prompts, torch.ones_like(prompts))
    found = []
    for _ in range(steps):
        found.append(noise.next(torch.arange(tokens).expand(len(prompts), -1)))
    return torch.stack(found, 1).double().numpy()


def test_its_law_is_gumbels():
    noise = noise_of()
    assert stats.kstest(noise.ravel(), stats.gumbel_r.cdf).pvalue > 0.01
    # Of every token, step and prompt alone, too: their p-values are uniform.
    for axis in range(3):
        apart = np.moveaxis(noise, axis, 0).reshape(noise.shape[axis], -1)
        pvalues = [stats.kstest(some, stats.gumbel_r.cdf).pvalue for some in apart]
        assert stats.kstest(pvalues, "uniform").pvalue > 0.01


@pytest.mark.parametrize("apart", ["token", "step", "occurrence", "seed", "prompt"])
def test_neighbours_are_independent(apart):
    noise = stats.gumbel_r.cdf(noise_of())
    other = {
        "token": lambda: (noise[:, :, :-1], noise[:, :, 1:]),
        "step": lambda: (noise[:, :-1], noise[:, 1:]),
        "occurrence": lambda: (noise[::2], noise[1::2]),
        "seed": lambda: (noise, stats.gumbel_r.cdf(noise_of(seed=1))),
        "prompt": lambda: (noise[:-2], noise[2:]),  # whose tokens are those of the first plus one
    }
    one, two = (part.ravel() for part in other[apart]())
    counts = np.histogram2d(one, two, bins=8, range=[(0, 1), (0, 1)])[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / np.sqrt(len(one))


def test_it_belongs_to_the_token_and_not_to_its_place_or_batch():
    prompts = torch.tensor([[5, 9, 11], [0, 0, 7], [5, 9, 11]])
    mask = torch.tensor([[1, 1, 1], [0, 0, 1], [1, 1, 1]])
    together = Noise(3, prompts, mask)
    alone = Noise(3, torch.tensor([[7]]), torch.tensor([[1]]))
    again = Noise(3, prompts[:1], mask[:1])
    tokens = torch.tensor([[4, 60, 17, 3]] * 3)
    for _ in range(3):
        for noise in (together, alone, again):
            noise.next(tokens)
        found = together.of(tokens)
        assert torch.equal(found[:, [2, 0]], together.of(tokens[:, [2, 0]]))
        assert torch.equal(found[1:2], alone.of(tokens[:1]))
        assert torch.equal(found[:1], again.of(tokens[:1]))
        assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("top_k", [0, 6])
def test_draws_have_the_shares_of_the_softmax(top_k):
    torch.manual_seed(0)
    logits = (2 * torch.randn(VOCABULARY)).expand(20_000, -1)
    prompts = torch.tensor([[5, 9]]).expand(20_000, -1)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(1.5)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    draw, config = keyed_draw(warpers, 4, prompts, None, GenerationConfig(do_sample=True))
    assert not config.do_sample  # the one token that is left is no matter of chance
    expected = warpers(prompts, logits)[0].double().softmax(-1).numpy()
    tables = []
    for _ in range(2):
        drawn = draw(prompts, logits).argmax(-1).numpy()
        counts = np.bincount(drawn, minlength=VOCABULARY)
        possible = expected > 0
        assert counts[~possible].sum() == 0
        assert stats.chisquare(counts[possible], 20_000 * expected[possible]).pvalue > 1e-3
        tables.append(drawn)
    first, second = tables  # two steps
    assert abs((first == second).mean() - (expected**2).sum()) < 4 * 0.5 / np.sqrt(20_000)


class Rounded(LogitsProcessor):
    """What bfloat16 does to logits, only more of it: many tokens are just as likely."""

    def __call__(self, input_ids, scores):
        return (2 * scores).round() / 2


def drawn(model, method, **options):
    options = dict(do_sample=True, top_k=9, max_new_tokens=12, num_return_sequences=4) | options
    return model.generate(**left_padded_prompts(), custom_generate=method, **options)


@pytest.mark.parametrize(
    "filters",
    [dict(top_k=9), dict(top_k=4, top_p=0.8), dict(top_k=0, top_p=0.9), dict(top_k=0)],
    ids=str,
)
def test_with_equally_likely_tokens_all_methods_without_strength_draw_plains(filters):
    model = tiny_model("llama")
    reward = RewardModel(tiny_model("gpt2"), Characters(), np.ones(32, dtype=np.float32), 0.5)
    options = dict(logits_processor=[Rounded()], eos_token_id=None) | filters
    plain = drawn(model, PlainSampling(2), **options)
    wide = dict(max_candidates=VOCABULARY, seed=2)
    for method in (
        SASA(random_boundary(model, 1), 0.0, **wide),
        SASA(random_boundary(model, 3), 0.0, form="posterior", **wide),
        RAD(reward, Characters(), 0.0, **wide),
        SelfDebiasing(Characters(), decay=0.0, seed=2),
    ):
        assert torch.equal(drawn(model, method, **options), plain), method


def test_in_bfloat16_sasa_without_strength_draws_plains_tokens():
    model = tiny_model("llama").bfloat16()
    with torch.no_grad():  # no state changes the logits, which are all alike but for six classes
        model.lm_head.weight.zero_()
        bias = torch.nn.Parameter((torch.arange(VOCABULARY) % 6).bfloat16())
        model.lm_head.bias = bias
    sasa = SASA(random_boundary(model, 1), 0.0, seed=1)
    plain = drawn(model, PlainSampling(1), top_k=20)
    assert torch.equal(drawn(model, sasa, top_k=20), plain)
    alone = model.generate(
        torch.tensor([left_padded_prompts()["input_ids"][2].tolist()]), do_sample=True, top_k=20,
        custom_generate=PlainSampling(1), max_new_tokens=12,
    )  # fmt: skip
    assert torch.equal(alone[0], plain[8, : alone.shape[1]])


@pytest.mark.parametrize("seed", range(5))
def test_filters_keep_equally_likely_tokens_as_transformers_do(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (3, 50), generator=generator).float()
    scores[1] = torch.randn(50, generator=generator)
    scores[2, :47] = float("-inf")
    ids = torch.zeros(3, 1, dtype=torch.long)
    for k in (1, 5, 49, 50, 80):
        for more in ([], [MinPLogitsWarper(0.3)], [TopPLogitsWarper(0.7)]):
            warpers = LogitsProcessorList([TopKLogitsWarper(k), *more])
            expected = warpers(ids, scores.clone())
            few, tokens, survivors = candidates_of(warpers, ids, scores.clone())
            found = torch.full_like(scores, float("-inf")).scatter(1, tokens, few)
            # Which of equally likely ones top-p leaves hangs on how they are sorted, not how many.
            assert torch.equal(found.sort(-1).values, expected.sort(-1).values)
            if not isinstance(warpers[-1], TopPLogitsWarper):
                assert torch.equal(found, expected)
            assert survivors == int((expected > float("-inf")).sum(-1).max())


def test_tokens_as_likely_as_the_last_of_the_candidates_are_candidates():
    model = tiny_model("llama")
    sasa = SASA(random_boundary(model, 1), 1.0, record=True)
    scores = []

    class Seen(Rounded):
        def __call__(self, input_ids, logits):
            scores.append(super().__call__(input_ids, logits))
            return scores[-1]

    drawn(model, sasa, top_k=3, logits_processor=[Seen()], eos_token_id=None)
    more = 0
    for (sequence, step), rows in sasa.trace.groupby(["sequence", "step"]):
        of_step = scores[step][sequence]
        least = of_step.sort(descending=True).values[2]
        assert set(rows["token_id"]) == set((of_step >= least).nonzero()[:, 0].tolist())
        more += len(rows) > 3
    assert more > 20


def test_without_a_filter_every_prompt_has_noise_of_its_own():
    model = tiny_model("llama")
    torch.nn.init.zeros_(model.lm_head.weight)  # every token is as likely, whatever was before
    options = dict(top_k=0, eos_token_id=None, num_return_sequences=1, max_new_tokens=200)
    texts = drawn(model, PlainSampling(0), **options)[:, 6:]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert (texts[one] == texts[two]).float().mean() < 0.1
    counts = np.bincount(texts.ravel(), minlength=VOCABULARY)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("method", [PlainSampling(0), None], ids=["plain", "sasa"])
def test_greedy_decoding_warns_of_nothing_and_is_transformers_own(method):
    model = tiny_model("llama")
    model.generation_config.pad_token_id = 0
    method = method or SASA(random_boundary(model, 1), 0.0, max_candidates=5)
    options = dict(do_sample=False, max_new_tokens=8)
    with warnings.catch_warnings(action="error"):
        found = model.generate(**left_padded_prompts(), custom_generate=method, **options)
    assert torch.equal(found, model.generate(**left_padded_prompts(), **options))
