"""Extraction against one text at a time through the model, and its resumption."""

import numpy as np
import pytest
import torch
from tiny_lm import tiny_lm

import sasa_lib as sl
from sasa_lib.subspace.embeddings import anisotropy, check_layer, extract, token_states

LAYERS = (0, 0.4, -1)


def one_by_one(model, tokenizer, corpus, layers, pooling):
    rows = []
    for prompt, response in zip(corpus["prompt"], corpus["response"], strict=True):
        before = tokenizer(prompt)["input_ids"]
        after = tokenizer(response, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            states = model(
                torch.tensor([[*before, *after]]), output_hidden_states=True
            ).hidden_states
        states = [states[check_layer(model, layer)][0].numpy() for layer in layers]
        start = min(max(len(before), 1), len(before) + len(after) - 1)
        rows.append([s[-1] if pooling == "last" else s[start:].mean(0) for s in states])
    return np.array(rows)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_batches_equal_one_text_at_a_time(smollm2, texts, pooling):
    few = texts.select(range(12))
    found = extract(*smollm2, few, layers=LAYERS, pooling=pooling, batch_tokens=64, progress=False)
    expected = one_by_one(*smollm2, few, LAYERS, pooling)
    assert found.shape == (12, 3, 576) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-3)


def test_what_is_kept_is_read_again_and_the_rest_is_computed(smollm2, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(sl.embeddings, "PART", 20)
    few = texts.select(range(50))
    whole = extract(*smollm2, few, layers=[4, 12], folder=tmp_path, progress=False)
    files = sorted(tmp_path.glob("*.npy"))
    assert len(files) == 6  # three parts of two layers
    files[2].unlink()
    computed = []
    embed = sl.embeddings._embed
    monkeypatch.setattr(
        sl.embeddings,
        "_embed",
        lambda model, part, layers, *rest: (
            computed.append((len(part), layers)) or embed(model, part, layers, *rest)
        ),
    )
    again = extract(*smollm2, few, layers=[4, 12], folder=tmp_path, progress=False)
    np.testing.assert_allclose(again, whole, atol=1e-4)
    assert len(computed) == 1 and len(computed[0][1]) == 1
    mean = extract(*smollm2, few, layers=[12], pooling="mean", folder=tmp_path, progress=False)
    assert len(computed) == 1 and mean.shape == (50, 1, 576)


def test_layers_count_from_either_end_or_by_share(smollm2):
    model = smollm2[0]
    assert [check_layer(model, layer) for layer in (0, 12, -1, 30, 0.4, 0.5)] == [
        0, 12, 30, 30, 12, 15,
    ]  # fmt: skip
    for layer in (31, -32, 1.5):
        with pytest.raises(ValueError, match=rf"has no layer {layer}; choose 0 .* to 30"):
            check_layer(model, layer)


def test_bad_input_is_refused_in_a_sentence(smollm2):
    for texts, message in (
        ([], "no text to embed"),
        ("one text", "a list of texts, got a single str"),
        (["fine", ""], "text 1 is empty"),
        (
            ["word " * 9000],
            r"text 0 has \d+ tokens, which exceed the context of smollm2-135m-instruct \(8192\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            extract(*smollm2, texts, progress=False)
    with pytest.raises(ValueError, match="unknown pooling 'max'; known are last, mean"):
        extract(*smollm2, ["a"], pooling="max")


def test_hidden_states_that_are_not_finite_are_refused(smollm2, monkeypatch):
    model, tokenizer = smollm2
    norm = model.model.layers[3].input_layernorm.weight
    monkeypatch.setattr(norm, "data", norm.data * float("nan"))
    with pytest.raises(ValueError, match=r"not finite for some text: load the model with"):
        extract(model, tokenizer, ["a text"], progress=False)
    with pytest.raises(ValueError, match=r"not finite for some text: load the model with"):
        list(token_states(model, tokenizer, ["a text"]))


def test_anisotropy_is_the_mean_cosine_over_pairs():
    vectors = np.random.default_rng(0).normal(size=(20, 5)) + 1
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for i, a in enumerate(vectors)
        for j, b in enumerate(vectors)
        if i != j
    ]
    assert anisotropy(vectors) == pytest.approx(np.mean(cosines))


def test_two_shares_of_the_depth_may_be_one_layer(tmp_path):
    tiny, texts = tiny_lm(), ["the cat", "a dog sees it", "she"]
    layers = [0.5, 0.4, 1, -1, 0]
    for _ in range(2):  # computed, and read
        kept = extract(*tiny, texts, layers=layers, folder=tmp_path, progress=False)
        np.testing.assert_allclose(kept, extract(*tiny, texts, layers=layers, progress=False))
    for column, layer in enumerate((1, 1, 1, 2, 0)):
        alone = extract(*tiny, texts, layers=[layer], progress=False)[:, 0]
        np.testing.assert_allclose(kept[:, column], alone, atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 3
