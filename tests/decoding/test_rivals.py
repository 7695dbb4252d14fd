"""Controls and simple rivals: each against its definition, computed another way."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny_lm import tiny_boundary, tiny_lm

import sasa_lib as sl
from sasa_lib.decoding import PlainSampling
from sasa_lib.decoding.baselines import MeanDifference, PromptOnly, StaticBias
from sasa_lib.subspace.controls import random_direction, shuffled_labels

PROMPTS = ["the cat sees", "she likes the dog and"]
SAMPLING = {"do_sample": True, "top_k": 6, "top_p": 0.9, "max_new_tokens": 5}


@pytest.fixture
def tiny():
    return tiny_lm()


def inputs_of(tokenizer, texts=PROMPTS):
    tokenizer.padding_side = "left"
    return tokenizer(texts, return_tensors="pt", padding=True)


@pytest.mark.parametrize("form", ["margin", "posterior"])
def test_a_static_bias_is_the_margin_of_each_token_alone_whatever_the_context(tiny, form):
    model, tokenizer = tiny
    boundary = tiny_boundary()
    method = StaticBias(boundary, 2.0, form=form, seed=0)
    begin = model.config.bos_token_id
    expected = []
    for token in range(len(tokenizer)):
        with torch.no_grad():
            output = model(torch.tensor([[begin, token]]), output_hidden_states=True)
        state = output.hidden_states[boundary.layer][0, 1].numpy()
        margin = float(boundary.margins(state, scaled=True))
        g = margin if form == "margin" else -np.log1p(np.exp(-3 * margin))
        expected.append(2 * g)
    np.testing.assert_allclose(method.bias(model), expected, atol=1e-5)
    inputs = inputs_of(tokenizer)
    found = model.generate(
        **inputs, custom_generate=method, do_sample=True, top_k=0, max_new_tokens=1,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    weighted = found.logits[0] + torch.tensor(expected, dtype=torch.float32)
    plain = PlainSampling(seed=0)
    same = model.generate(
        **inputs, custom_generate=plain, do_sample=True, top_k=0, max_new_tokens=1,
        logits_processor=[lambda ids, scores: weighted],
    )  # fmt: skip
    assert found.sequences.tolist() == same.tolist()


def test_a_static_bias_of_nothing_is_plain_sampling(tiny):
    model, tokenizer = tiny
    inputs = inputs_of(tokenizer)
    plain = model.generate(**inputs, custom_generate=PlainSampling(seed=3), **SAMPLING)
    method = StaticBias(tiny_boundary(), 0.0, seed=3)
    assert model.generate(**inputs, custom_generate=method, **SAMPLING).tolist() == plain.tolist()


def test_a_sentence_before_the_prompt_is_plain_sampling_of_both(tiny):
    model, tokenizer = tiny
    sentence = "he likes a bird"
    inputs = inputs_of(tokenizer)
    method = PromptOnly(tokenizer, sentence, seed=1)
    options = SAMPLING | {"num_return_sequences": 3}
    found = model.generate(**inputs, custom_generate=method, **options)
    both = inputs_of(tokenizer, [f"{sentence} {prompt}" for prompt in PROMPTS])
    expected = model.generate(**both, custom_generate=PlainSampling(seed=1), **options)
    width = inputs["input_ids"].shape[1]
    repeated = inputs["input_ids"].repeat_interleave(3, 0)
    assert found[:, :width].tolist() == repeated.tolist()
    assert found[:, width:].tolist() == expected[:, both["input_ids"].shape[1] :].tolist()
    told = model.generate(
        **inputs, custom_generate=method, return_dict_in_generate=True, output_scores=True,
        **options,
    )  # fmt: skip
    assert told.sequences.tolist() == found.tolist() and len(told.scores) == 5


def test_the_sentence_is_no_part_of_what_is_counted(tiny):
    model, tokenizer = tiny
    inputs = inputs_of(tokenizer, PROMPTS[:1])
    with torch.no_grad():  # so that a text would end at once
        behind = tokenizer(f"he likes a bird {PROMPTS[0]}", return_tensors="pt")["input_ids"]
        model.generation_config.eos_token_id = int(model(behind).logits[0, -1].argmax())
    method = PromptOnly(tokenizer, "he likes a bird", seed=1)
    options = dict(custom_generate=method, do_sample=False, max_new_tokens=6)
    width = inputs["input_ids"].shape[1]
    assert model.generate(**inputs, **options).shape[1] == width + 1
    assert model.generate(**inputs, min_new_tokens=4, **options).shape[1] >= width + 4


def test_a_sentence_that_does_not_fit_is_refused(tiny):
    model, tokenizer = tiny
    method = PromptOnly(tokenizer, "the cat " * 40)
    with pytest.raises(ValueError, match=r"the sentence with prompt and text has .* tokens"):
        model.generate(**inputs_of(tokenizer), custom_generate=method, **SAMPLING)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_mean_difference_is_added_to_what_a_block_gets(tiny, layer):
    model, tokenizer = tiny
    difference = np.random.default_rng(0).normal(size=32)
    inputs = inputs_of(tokenizer, PROMPTS[:1])
    method = MeanDifference(difference, layer, 1.5)
    found = model.generate(
        **inputs, custom_generate=method, do_sample=False, max_new_tokens=4,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    added = torch.tensor(1.5 * difference, dtype=torch.float32)
    # Another way: behind the part that gives the block its states.
    part = model.model.embed_tokens if layer == 0 else model.model.layers[layer - 1]
    hook = part.register_forward_hook(
        lambda _, __, output: (
            output + added if isinstance(output, torch.Tensor) else (output[0] + added, *output[1:])
        )
    )
    with torch.no_grad():
        logits = model(found.sequences[:, :-1]).logits[:, inputs["input_ids"].shape[1] - 1 :]
    hook.remove()
    torch.testing.assert_close(torch.stack(found.logits, 1), logits, atol=1e-4, rtol=0)
    with torch.no_grad():
        untouched = model(found.sequences[:, :-1]).logits[:, inputs["input_ids"].shape[1] - 1 :]
    assert not torch.allclose(logits, untouched, atol=1e-2)


def test_a_mean_difference_leaves_the_model_as_it_was(tiny):
    model, tokenizer = tiny
    inputs = inputs_of(tokenizer)
    plain = model.generate(**inputs, custom_generate=PlainSampling(seed=2), **SAMPLING)
    none = MeanDifference(np.ones(32), 1, 0.0, seed=2)
    assert model.generate(**inputs, custom_generate=none, **SAMPLING).tolist() == plain.tolist()

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(
            **inputs, custom_generate=MeanDifference(np.ones(32), 1, 9.0),
            logits_processor=[stop], **SAMPLING,
        )  # fmt: skip
    again = model.generate(**inputs, custom_generate=PlainSampling(seed=2), **SAMPLING)
    assert again.tolist() == plain.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(31), 1, 1.0), "2 blocks of 32 units; got a difference of shape"),
        ((np.ones(32), 2, 1.0), "2 blocks of 32 units; .* for layer 2"),
        ((np.full(32, np.nan), 1, 1.0), "difference"),
    ],
)
def test_a_mean_difference_that_does_not_fit_is_refused(tiny, arguments, message):
    model, tokenizer = tiny
    with pytest.raises(ValueError, match=message):
        method = MeanDifference(*arguments)
        model.generate(**inputs_of(tokenizer), custom_generate=method, **SAMPLING)


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(0)
    toxic = np.arange(600) % 3 == 0
    return rng.normal(size=(600, 32)) + 1.5 * np.where(toxic[:, None], -1, 1) * rng.normal(
        size=32
    ), toxic


def test_boundaries_that_know_nothing_separate_nothing(embeddings):
    states, toxic = embeddings
    options = {"layer": 1, "pooling": "mean", "model": "tiny"}
    fitted = sl.Boundary.from_embeddings(states, toxic, **options)
    assert roc_auc_score(~toxic, fitted.margins(states)) > 0.99
    shuffled = [shuffled_labels(states, toxic, seed=seed, **options) for seed in range(20)]
    assert {one.metadata["n_toxic"] for one in shuffled} == {200}
    assert len({one.fingerprint() for one in shuffled}) == 20
    aucs = [roc_auc_score(~toxic, one.margins(states)) for one in shuffled]
    assert 0.3 < np.mean(aucs) < 0.7


def test_a_random_direction_keeps_what_beta_means(embeddings):
    states, toxic = embeddings
    fitted = sl.Boundary.from_embeddings(states, toxic, layer=1, pooling="mean", model="tiny")
    found = [random_direction(fitted, states, seed=seed) for seed in range(200)]
    for one in found[:5]:
        assert np.linalg.norm(one.normal) == pytest.approx(1)
        assert one.margins(states, scaled=True).std() == pytest.approx(1)
    # Uniform on the sphere: no axis is preferred.
    normals = np.stack([one.normal for one in found])
    assert np.abs(normals.mean(0)).max() < 0.06
    assert (normals**2).mean(0) == pytest.approx(1 / 32, abs=0.015)
