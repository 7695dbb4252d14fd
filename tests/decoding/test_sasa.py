"""The decoder against the naive computation, against enumeration, and as a user meets it."""

import math
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from scipy.optimize import brentq
from scipy.stats import chisquare, entropy
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from sasa_lib import SASA, Boundary
from sasa_lib.decoding import PlainSampling, divergence, draw
from sasa_lib.decoding import sasa as sasa_module
from sasa_lib.decoding.repeated import RepeatedPhrases, obstacle

VOCABULARY = 61
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=48, max_position_embeddings=128, pad_token_id=0, bos_token_id=1,
    eos_token_id=2,
)  # fmt: skip
FAMILIES = {
    "gpt2": dict(n_embd=32, n_layer=3, n_head=4, n_positions=128),
    "llama": dict(num_key_value_heads=2),
    "qwen2": dict(num_key_value_heads=2),
    "qwen3": dict(num_key_value_heads=2, head_dim=8),
    "mistral": dict(num_key_value_heads=2, sliding_window=9),
    "gemma3_text": dict(
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=9,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "gemma2": dict(
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=9,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt_neox": dict(rotary_pct=0.5),
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
    "phi3": dict(num_key_value_heads=2),
    "granite": dict(num_key_value_heads=2, logits_scaling=3.0),
    "falcon": dict(num_kv_heads=2, new_decoder_architecture=True, alibi=False),
}
REPEATED = {
    "bloom": dict(n_layer=3, n_head=4),
    "mamba": dict(state_size=4, intermediate_size=48),
    "gpt_neo": dict(
        num_layers=3,
        num_heads=4,
        window_size=9,
        attention_types=[[["global", "local", "local"], 1]],
    ),
}


def tiny_model(family: str, **more: object) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    sizes = SIZES | (FAMILIES | REPEATED)[family] | more
    config = transformers.AutoConfig.for_model(family, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Initial weights are so small that every token would look alike.
            parameter.normal_(std=0.3) if parameter.dim() > 1 else None
    model.name_or_path = family
    return model


def random_boundary(model: transformers.PreTrainedModel, layer: int, seed: int = 0) -> Boundary:
    generator = np.random.default_rng(seed)
    normal = generator.normal(size=32)
    normal = (normal / np.linalg.norm(normal)).astype(np.float32)
    midpoint = generator.normal(size=32).astype(np.float32)
    return Boundary(normal, midpoint, 2.0, 1.0, layer, "last", model.name_or_path)


def left_padded_prompts() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (3, 6))
    mask = torch.ones_like(ids)
    mask[0, :4], mask[1, :1] = 0, 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def states_at(model, output, layer):
    """Output of block `layer`; Mamba's hidden states lack the token embeddings."""
    missing = model.config.model_type == "mamba" and layer < model.config.num_hidden_layers
    return output.hidden_states[layer - missing]


def naive_step(model, phrase, boundary, warpers, beta):
    """Candidates, reference log-probabilities, margins and new log-probabilities of one phrase.

    Every candidate is appended and the whole phrase read again from the start: no cache, no
    padding, no custom mask.
    """
    ids = torch.tensor([phrase])
    with torch.no_grad():
        logits = warpers(ids, model(ids).logits[:, -1].float())[0]
        candidates = logits.isfinite().nonzero()[:, 0]
        extended = torch.cat([ids.expand(len(candidates), -1), candidates[:, None]], dim=1)
        hidden = states_at(model, model(extended, output_hidden_states=True), boundary.layer)
    margins = boundary.margins(hidden[:, -1].numpy(), scaled=True)
    reference = logits[candidates].double().log_softmax(-1)
    new = (reference + beta * torch.tensor(margins)).log_softmax(-1)
    return candidates.tolist(), reference.numpy(), margins, new.numpy()


def first_three_end_at_thirteen(input_ids, scores, **kwargs):
    return (torch.arange(len(input_ids)) < 3) & (input_ids.shape[1] >= 13)


def assert_every_step_is_naive(model, boundary):
    """Left-padded prompts of unequal length, finished and unfinished ones mixed, 30 steps."""
    inputs = left_padded_prompts()
    sasa = SASA(boundary, beta=1.5, record=True)
    model.generation_config.eos_token_id = None
    output = model.generate(
        **inputs, custom_generate=sasa, do_sample=True, top_k=7, top_p=0.9, max_new_tokens=30,
        num_return_sequences=2, stopping_criteria=[first_three_end_at_thirteen],
    )  # fmt: skip
    warpers = LogitsProcessorList([TopKLogitsWarper(7), TopPLogitsWarper(0.9)])
    trace = sasa.trace
    assert set(trace["sequence"]) == set(range(6))
    assert trace.groupby("sequence")["step"].max().tolist() == [6, 6, 6, 29, 29, 29]
    for (sequence, step), rows in trace.groupby(["sequence", "step"]):
        start = int((inputs["attention_mask"][sequence // 2] == 0).sum())
        phrase = output[sequence, start : 6 + step].tolist()
        candidates, reference, margins, new = naive_step(model, phrase, boundary, warpers, 1.5)
        rows = rows.sort_values("token_id")
        assert rows["token_id"].tolist() == candidates
        np.testing.assert_allclose(rows["reference_logprob"], reference, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(rows["margin"], margins, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(rows["new_logprob"], new, atol=1e-5, rtol=1e-5)
        assert rows.loc[rows["drawn"], "token_id"].item() == output[sequence, 6 + step].item()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [3, 1])
def test_every_step_equals_the_naive_computation(family, layer):
    model = tiny_model(family)
    assert_every_step_is_naive(model, random_boundary(model, layer))


@pytest.mark.parametrize(("family", "windowed"), [("qwen2", 0), ("qwen2", 1), ("qwen3", 0)])
def test_a_window_is_that_of_the_layers_that_have_one(family, windowed):
    """Qwen's configurations name a window even where every layer sees everything."""
    more = dict(use_sliding_window=True, sliding_window=5, max_window_layers=3 - windowed)
    model = tiny_model(family, **more)
    types = ["full_attention"] * (3 - windowed) + ["sliding_attention"] * windowed
    assert model.config.layer_types == types and model.config.sliding_window == 5
    assert_every_step_is_naive(model, random_boundary(model, 2))


@pytest.mark.parametrize("family", REPEATED)
def test_families_that_need_repeated_phrases_are_exact_too_and_say_so(family):
    model = tiny_model(family)
    with pytest.warns(UserWarning, match=f"'{family}' models cannot be placed side by side"):
        assert_every_step_is_naive(model, random_boundary(model, 2))


def test_an_attention_without_masks_is_named():
    model = tiny_model("llama")
    model.config._attn_implementation = "flex_attention"
    assert (
        obstacle(model) == "'flex_attention' takes no masks (load with attn_implementation='sdpa')"
    )


def as_many_as_the_row_says(input_ids, scores):
    ranks = scores.argsort(-1, descending=True).argsort(-1)
    return scores.masked_fill(ranks > torch.arange(len(scores))[:, None] % 7, -math.inf)


@pytest.mark.parametrize("form", ["margin", "posterior"])
@pytest.mark.parametrize("layer", [3, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_that_cannot_win_are_left_out_without_changing_the_draw(
    family, layer, form, monkeypatch
):
    monkeypatch.setattr(draw, "A_PASS", 1)  # so that few rows make a second one worth it
    model = tiny_model(family)
    boundary = replace(random_boundary(model, layer), midpoint=np.zeros(32, dtype=np.float32))
    options = dict(do_sample=True, top_k=12, max_new_tokens=12, num_return_sequences=5)
    if form == "margin":  # any that survives may win, but not as many survive in every row
        options |= dict(logits_processor=[as_many_as_the_row_says])
    model.generate(**left_padded_prompts(), custom_generate=SASA(boundary, 0.0), **options)
    runs = []
    for record in (True, False):
        passes = []
        embedding = model.get_input_embeddings()
        hook = embedding.register_forward_hook(lambda _, args, __: passes.append(args[0].shape))  # noqa: B023
        sasa = SASA(boundary, beta=4.0, form=form, seed=3, record=record)
        runs.append(model.generate(**left_padded_prompts(), custom_generate=sasa, **options))
        hook.remove()
        if record:
            assert len(passes) == 13 and {rows for rows, _ in passes[1:]} == {15}
            whole = sum(rows * width for rows, width in passes[1:])
    assert {rows for rows, _ in passes[1:]} - {15}, "no draw was open after the first candidates"
    assert sum(rows * width for rows, width in passes[1:]) < whole
    torch.testing.assert_close(*runs)


def test_as_many_candidates_come_first_as_make_both_passes_cheapest():
    assert draw.cheapest_first([7]) == 7
    assert draw.cheapest_first([1] * 25) == 1
    assert draw.cheapest_first([2] * (draw.A_PASS + 20) + [9]) == 2  # a second pass for one row
    assert draw.cheapest_first([2, 3]) == 3  # not for so little


def closed_form(logits, margins, beta, form):
    """Probabilities by enumeration, in plain Python."""
    if form == "softmax":
        total = sum(math.exp(m) for m in margins)
        margins = [math.exp(m) / total for m in margins]
    if form == "posterior":  # the boundary's scale is 2
        margins = [math.log(1 / (1 + math.exp(-3 * m / 2))) for m in margins]
    weights = [math.exp(x + beta * m) for x, m in zip(logits, margins, strict=True)]
    return np.array(weights) / sum(weights)


@pytest.mark.parametrize(
    ("form", "beta"), [("margin", 2.0), ("softmax", 30.0), ("posterior", 2.0), ("margin", 0.0)]
)
def test_distribution_over_a_whole_vocabulary_is_the_closed_form(form, beta):
    model = tiny_model("llama")
    boundary = random_boundary(model, 3)
    prompt = torch.tensor([[5, 9, 11]])
    sasa = SASA(
        boundary, beta=beta, form=form, scaled=False, max_candidates=VOCABULARY, record=True
    )
    model.generate(prompt, custom_generate=sasa, do_sample=True, top_k=0, max_new_tokens=1)
    rows = sasa.trace.sort_values("token_id")
    assert len(rows) == VOCABULARY
    with torch.no_grad():
        logits = model(prompt).logits[0, -1].tolist()
        extended = torch.cat([prompt.expand(VOCABULARY, 3), torch.arange(VOCABULARY)[:, None]], 1)
        hidden = model(extended, output_hidden_states=True).hidden_states[3][:, -1]
    margins = ((hidden.numpy() - boundary.midpoint) @ boundary.normal).tolist()
    expected = closed_form(logits, margins, beta, form)
    np.testing.assert_allclose(np.exp(rows["new_logprob"]), expected, atol=1e-6)


def test_beta_zero_is_plain_sampling_exactly():
    model = tiny_model("gpt2")
    sasa = SASA(random_boundary(model, 3), beta=0.0, record=True)
    options = dict(do_sample=True, top_k=9, top_p=0.8, temperature=0.7, max_new_tokens=4)
    model.generate(**left_padded_prompts(), custom_generate=sasa, **options)
    trace = sasa.trace
    np.testing.assert_array_equal(trace["new_logprob"], trace["reference_logprob"])
    assert (trace["margin"] != 0).all()


def test_divergence_is_the_kl_of_every_step():
    model = tiny_model("llama")
    sasa = SASA(random_boundary(model, 1), beta=2.0, record=True)
    model.generate(**left_padded_prompts(), custom_generate=sasa, do_sample=True, max_new_tokens=3)
    found = divergence(sasa.trace)
    assert len(found) == 9 and (found > 0).all()
    for at, rows in sasa.trace.groupby(["sequence", "step"]):
        expected = entropy(np.exp(rows["new_logprob"]), np.exp(rows["reference_logprob"]))
        assert found[at] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("beta", "budget"), [(3.0, 0.05), (3.0, 0.4), (1e4, 0.2)])
def test_a_budget_lowers_beta_to_where_the_divergence_is_just_allowed(beta, budget):
    model = tiny_model("llama")
    sasa = SASA(random_boundary(model, 1), beta=beta, max_kl=budget, record=True)
    options = dict(do_sample=True, top_k=9, top_p=0.95, max_new_tokens=12)
    model.generate(**left_padded_prompts(), custom_generate=sasa, **options)
    spent = 0
    for _, rows in sasa.trace.groupby(["sequence", "step"]):
        reference, margin = np.exp(rows["reference_logprob"]), rows["margin"]

        def steered(strength, reference=reference, margin=margin):
            weights = reference * np.exp(strength * (margin - margin.max()))
            return weights / weights.sum()

        def excess(strength, reference=reference, steered=steered):
            return entropy(steered(strength), reference) - budget

        strength = brentq(excess, 0, beta) if excess(beta) > 0 else beta
        spent += excess(beta) > 0
        np.testing.assert_allclose(np.exp(rows["new_logprob"]), steered(strength), atol=1e-4)
    found = divergence(sasa.trace)
    assert found.max() <= budget + 1e-4
    assert (abs(found - budget) <= 1e-4).sum() >= spent > 5


def test_a_joint_budget_keeps_the_ratio_of_several_values():
    model = tiny_model("llama")
    pairs = [(random_boundary(model, 3, seed=0), 2.0), (random_boundary(model, 1, seed=1), 6.0)]
    options = dict(do_sample=True, top_k=8, max_new_tokens=1)
    traces = []
    for budget in (None, 0.1):
        sasa = SASA(pairs, max_kl=budget, record=True)
        model.generate(torch.tensor([[5, 9, 11]]), custom_generate=sasa, **options)
        traces.append(sasa.trace.sort_values("token_id"))
        traces[-1]["added"] = traces[-1]["new_logprob"] - traces[-1]["reference_logprob"]
    free, held = ((t["added"] - t["added"].iloc[0]).to_numpy() for t in traces)
    share = held[1:] / free[1:]
    assert divergence(traces[1]).item() == pytest.approx(0.1, abs=1e-4)
    assert 0 < share[0] < 1
    np.testing.assert_allclose(share, share[0], rtol=1e-3)


def test_with_a_budget_the_seed_alone_decides_too():
    model = tiny_model("llama")
    options = dict(do_sample=True, top_k=8, max_new_tokens=6)
    runs = []
    for record in (True, False):
        sasa = SASA(
            random_boundary(model, 1), beta=4.0, form="posterior", max_kl=0.1, seed=1, record=record
        )
        runs.append(model.generate(**left_padded_prompts(), custom_generate=sasa, **options))
    torch.testing.assert_close(*runs)


def test_a_budget_needs_no_float64_on_the_device(request):
    options = dict(do_sample=True, top_k=8, max_new_tokens=6)
    sasa = SASA(random_boundary(tiny_model("llama"), 1), beta=4.0, max_kl=0.1, seed=1, record=True)
    expected = tiny_model("llama").generate(
        **left_padded_prompts(), custom_generate=sasa, **options
    )
    spent = divergence(sasa.trace)
    request.getfixturevalue("as_on_apple")
    found = tiny_model("llama").generate(**left_padded_prompts(), custom_generate=sasa, **options)
    assert found.tolist() == expected.tolist()
    assert spent.max() == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("form", ["margin", "posterior"])
def test_sampling_follows_the_distribution(form):
    model = tiny_model("llama")
    boundary = random_boundary(model, 2)
    prompt = torch.tensor([[5, 9, 11]])
    options = dict(do_sample=True, top_k=8, max_new_tokens=1)
    recorded = SASA(boundary, beta=1.0, form=form, record=True)
    model.generate(prompt, custom_generate=recorded, **options)
    expected = recorded.trace.sort_values("token_id")
    sasa = SASA(boundary, beta=1.0, form=form, seed=0)
    output = model.generate(prompt, custom_generate=sasa, num_return_sequences=100_000, **options)
    counts = torch.bincount(output[:, -1], minlength=VOCABULARY).numpy()
    probabilities = np.exp(expected["new_logprob"].to_numpy(dtype=np.float64))
    frequencies = probabilities / probabilities.sum() * 100_000
    assert counts.sum() == counts[expected["token_id"]].sum()
    assert chisquare(counts[expected["token_id"]], frequencies).pvalue > 1e-3


def test_two_tokens_follow_the_joint_distribution():
    model = tiny_model("llama")
    boundary = random_boundary(model, 1)
    warpers = LogitsProcessorList([TopKLogitsWarper(3)])
    expected = {}
    candidates, *_, new = naive_step(model, [5, 9, 11], boundary, warpers, 1.0)
    for first, log_probability in zip(candidates, new, strict=True):
        seconds, *_, after = naive_step(model, [5, 9, 11, first], boundary, warpers, 1.0)
        for second, log_conditional in zip(seconds, after, strict=True):
            expected[first, second] = math.exp(log_probability + log_conditional) * 20_000
    output = model.generate(
        torch.tensor([[5, 9, 11]]), custom_generate=SASA(boundary, beta=1.0, seed=1),
        do_sample=True, top_k=3, max_new_tokens=2, num_return_sequences=20_000,
    )  # fmt: skip
    found = Counter(map(tuple, output[:, -2:].tolist()))
    assert set(found) <= set(expected)
    observed = [found[pair] for pair in expected]
    assert chisquare(observed, list(expected.values())).pvalue > 1e-3


@pytest.mark.parametrize("form", ["margin", "posterior"])
def test_a_seed_gives_the_same_text_whatever_shares_the_batch(form):
    model = tiny_model("llama")
    sasa = SASA(random_boundary(model, 1), beta=1.0, form=form, seed=7)
    options = dict(custom_generate=sasa, do_sample=True, top_k=9, max_new_tokens=10)
    inputs = left_padded_prompts()
    together = model.generate(**inputs, num_return_sequences=3, **options)
    for row in range(3):
        start = int((inputs["attention_mask"][row] == 0).sum())
        prompt = inputs["input_ids"][row : row + 1, start:]
        alone = model.generate(prompt, num_return_sequences=2, **options)
        torch.testing.assert_close(together[3 * row : 3 * row + 2, start:], alone)
    assert not together[0].equal(together[1])
    other = SASA(random_boundary(model, 1), beta=1.0, form=form, seed=8)
    again = model.generate(**inputs, num_return_sequences=3, **options | {"custom_generate": other})
    assert not again.equal(together)


def test_greedy_takes_the_argmax_of_the_reweighted_distribution():
    model = tiny_model("llama")
    sasa = SASA(random_boundary(model, 2), beta=4.0, record=True)
    model.generate(**left_padded_prompts(), custom_generate=sasa, do_sample=False, max_new_tokens=5)
    trace = sasa.trace
    best = trace.loc[trace.groupby(["sequence", "step"])["new_logprob"].idxmax()]
    assert best["drawn"].all()


def test_several_values_add_up():
    model = tiny_model("llama")
    first, second = random_boundary(model, 3, seed=0), random_boundary(model, 1, seed=1)
    options = dict(do_sample=True, top_k=8, max_new_tokens=1)
    traces = []
    for sasa in (
        SASA([(first, 1.0), (second, 2.0)], record=True),
        SASA(first, beta=1.0, record=True),
        SASA(second, beta=2.0, record=True),
    ):
        model.generate(torch.tensor([[5, 9, 11]]), custom_generate=sasa, **options)
        traces.append(sasa.trace.sort_values("token_id"))
    both, one, two = (t["new_logprob"].to_numpy() for t in traces)
    reference = traces[0]["reference_logprob"].to_numpy()
    expected = one + two - reference
    np.testing.assert_allclose(both - both[0], expected - expected[0], atol=1e-5)


def test_finished_sequences_are_padded_like_plain_generate():
    model = tiny_model("llama")
    model.generation_config.eos_token_id = list(range(2, 30))
    torch.manual_seed(3)
    output = model.generate(
        **left_padded_prompts(), custom_generate=SASA(random_boundary(model, 3), beta=1.0),
        do_sample=True, top_k=20, max_new_tokens=20, num_return_sequences=4,
    )  # fmt: skip
    ended = (output[:, 6:] >= 2) & (output[:, 6:] < 30)
    assert ended.any()
    for row, stops in zip(output[:, 6:], ended, strict=True):
        if stops.any():
            assert (row[int(stops.int().argmax()) + 1 :] == 0).all()


def test_scores_and_logits_are_returned_on_request():
    model = tiny_model("llama")
    output = model.generate(
        torch.tensor([[5, 9, 11]]), custom_generate=SASA(random_boundary(model, 3), beta=1.0),
        do_sample=True, top_k=4, max_new_tokens=3, return_dict_in_generate=True,
        output_scores=True, output_logits=True,
    )  # fmt: skip
    assert output.sequences.shape == (1, 6)
    assert [s.shape for s in output.scores] == [(1, VOCABULARY)] * 3
    assert all(int(s.isfinite().sum()) == 4 for s in output.scores)
    plain = model(output.sequences[:, :-1]).logits[:, 2:]
    torch.testing.assert_close(torch.stack(output.logits, 1), plain, atol=1e-5, rtol=0)


def test_an_open_candidate_set_is_capped_and_says_so_once(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(sasa_module, "MOST_CANDIDATES", 5)
    sasa = SASA(random_boundary(model, 3), beta=1.0, record=True)
    with pytest.warns(UserWarning, match="considers the 5 likeliest"):
        model.generate(
            torch.tensor([[5, 9]]), custom_generate=sasa, do_sample=True, top_k=0, max_new_tokens=2
        )
    assert sasa.trace.groupby("step").size().tolist() == [5, 5]
    # Who names the number knows it.
    sasa = SASA(random_boundary(model, 3), beta=1.0, max_candidates=4, record=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(
            torch.tensor([[5, 9]]), custom_generate=sasa, do_sample=True, top_k=0, max_new_tokens=2
        )
    assert sasa.trace.groupby("step").size().tolist() == [4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(), "give beta"),
        (dict(beta=-1.0), "at least 0"),
        (dict(beta=float("nan")), "at least 0"),
        (dict(beta=1.0, form="sigmoid"), "known are margin, softmax, posterior"),
        (dict(beta=1.0, max_candidates=0), "at least 1"),
        (dict(beta=1.0, max_kl=0.0), "max_kl must be a finite number above 0"),
        (dict(beta=1.0, max_kl=float("inf")), "max_kl must be a finite number above 0"),
    ],
)
def test_bad_parameters_are_refused_at_once(arguments, message):
    boundary = random_boundary(tiny_model("llama"), 3)
    with pytest.raises(ValueError, match=message):
        SASA(boundary, **arguments)


def test_what_sasa_cannot_do_is_refused_in_one_sentence():
    llama = tiny_model("llama")
    sasa = SASA(random_boundary(llama, 3), beta=1.0)
    ids = torch.tensor([[5, 9]])
    with pytest.raises(ValueError, match="search beams"):
        llama.generate(ids, custom_generate=sasa, num_beams=2, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"fitted on 'llama'.*'gpt2'"):
        tiny_model("gpt2").generate(ids, custom_generate=sasa, max_new_tokens=2)
    llama.to("meta")
    with pytest.raises(ValueError, match="the prompt is on cpu, the model on meta"):
        sasa._check(llama, ids, torch.ones_like(ids), llama.generation_config, {})
    with pytest.raises(ValueError, match="does not return attentions"):
        tiny_model("llama").generate(
            ids, custom_generate=sasa, output_attentions=True, return_dict_in_generate=True,
            max_new_tokens=2,
        )  # fmt: skip
    with pytest.raises(ValueError, match="not encoder-decoder"):
        t5 = transformers.T5Config(
            vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
            decoder_start_token_id=0,
        )  # fmt: skip
        transformers.T5ForConditionalGeneration(t5).generate(ids, custom_generate=sasa)


def test_repeating_the_phrase_gives_what_side_by_side_gives():
    model = tiny_model("llama")
    sasa = SASA(random_boundary(model, 2), beta=1.0, seed=0)
    options = dict(custom_generate=sasa, do_sample=True, top_k=6, top_p=0.9, max_new_tokens=12)
    beside = model.generate(**left_padded_prompts(), num_return_sequences=3, **options)
    sasa._phrases = lambda model, inputs: RepeatedPhrases(model, [2])
    repeated = model.generate(**left_padded_prompts(), num_return_sequences=3, **options)
    torch.testing.assert_close(repeated, beside)


def test_plain_sampling_with_the_same_noise_is_sasa_at_beta_zero():
    model = tiny_model("llama")
    sasa = SASA(random_boundary(model, 2), beta=0.0, seed=5)
    options = dict(do_sample=True, top_k=7, top_p=0.9, max_new_tokens=9, num_return_sequences=3)
    steered = model.generate(**left_padded_prompts(), custom_generate=sasa, **options)
    plain = model.generate(**left_padded_prompts(), custom_generate=PlainSampling(5), **options)
    torch.testing.assert_close(plain, steered)
