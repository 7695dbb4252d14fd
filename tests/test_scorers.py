"""The scorers as a user meets them, and the minilm head against an independent computation."""

import gzip
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.special import expit, softmax
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from transformers import AutoModel, AutoTokenizer

from sasa_lib.assets import AssetError, fetch
from sasa_lib.scorers import MINILM_HEAD, load_scorer, minilm_scorer

PROJECT = Path(__file__).resolve().parent.parent
MILD = "Thank you for the lovely walk along the river yesterday."
HOSTILE = "Shut up, you stupid worthless idiot, everybody hates you."
TEXTS = [
    MILD,
    HOSTILE,
    "the committee will meet again on\n\n Tuesday, and",
    "I think that",
    "ugh � 🙂 not ag",
    "A long report. " * 40,
    "no",
]


@pytest.fixture(scope="module")
def encoder():
    try:
        return fetch("minilm")
    except AssetError as error:
        pytest.skip(f"the encoder cannot be fetched: {error}")


@pytest.fixture(scope="module")
def minilm(encoder):
    return load_scorer("minilm", device="cpu")


@pytest.fixture(params=["minilm", "profanity-check"])
def scorer(request):
    name = request.param
    return request.getfixturevalue("minilm") if name == "minilm" else load_scorer(name)


def test_scores_are_probabilities_in_the_order_of_the_texts(scorer):
    scores = scorer(TEXTS)
    assert scores.dtype == np.float64 and scores.shape == (len(TEXTS),)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores[1] > 0.5 > scores[0]
    assert scorer.name in ("minilm", "profanity-check") and scorer.version[0].isdigit()


def test_scores_do_not_depend_on_order_batch_or_repetition(scorer):
    scores = scorer(TEXTS)
    np.testing.assert_allclose(scorer(TEXTS[::-1])[::-1], scores, atol=1e-6, rtol=0)
    np.testing.assert_allclose([scorer([t])[0] for t in TEXTS], scores, atol=1e-6, rtol=0)
    np.testing.assert_allclose(scorer(TEXTS * 3), np.tile(scores, 3), atol=1e-6, rtol=0)


def test_batch_size_does_not_change_the_scores(minilm):
    small = load_scorer("minilm", device="cpu", batch_size=2)
    np.testing.assert_allclose(small(TEXTS), minilm(TEXTS), atol=1e-6, rtol=0)


def test_odd_texts_have_a_defined_score(scorer):
    np.testing.assert_array_equal(scorer(["", " \n\t "]), [0.0, 0.0])
    assert scorer([]).shape == (0,)
    odd = scorer(["\x00", "\u200b", "\ud800 hm", "word " * 2000])
    assert np.isfinite(odd).all() and (odd <= 0.5).all()


def test_minilm_agrees_with_the_formula_of_its_card(encoder, minilm):
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder)
    head = load_file(MINILM_HEAD)
    mean, attention, attended = head["weights"].astype(float)
    for text in TEXTS:
        with torch.inference_mode():
            inputs = tokenizer(text, return_tensors="pt")
            layers = model.eval()(**inputs, output_hidden_states=True).hidden_states
        tokens = [
            np.concatenate([layer[0, t] for layer in layers]) for t in range(len(layers[0][0]))
        ]
        share = softmax([attention @ h for h in tokens])
        logit = head["bias"][0] + np.mean([mean @ h for h in tokens])
        logit += sum(s * (attended @ h) for s, h in zip(share, tokens, strict=True))
        assert minilm([text])[0] == pytest.approx(expit(logit), abs=1e-6)


def test_minilm_reaches_its_card_on_the_held_out_records(minilm):
    shared = Path(os.environ.get("SASA_SHARED_DATA", PROJECT.parent / "shared" / "data"))
    path = shared / "rtp" / "dev.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    held_out = [
        record[side]
        for record in records
        if int(hashlib.sha256(record["prompt"]["text"].encode()).hexdigest(), 16) % 10 == 0
        for side in ("prompt", "continuation")
        if record[side]["toxicity"] is not None
    ]
    assert len(held_out) > 600
    truth = np.array([text["toxicity"] for text in held_out])
    scores = minilm([text["text"] for text in held_out])
    assert roc_auc_score(truth > 0.5, scores) > 0.94
    assert spearmanr(truth, scores).statistic > 0.84
    assert abs(scores.mean() - truth.mean()) < 0.03


def test_wrong_use_is_refused_in_a_sentence(scorer, tmp_path):
    with pytest.raises(TypeError, match="list of texts, not one str"):
        scorer("one text")
    with pytest.raises(TypeError, match="item 1 is of type NoneType"):
        scorer(["a text", None])
    with pytest.raises(ValueError, match=r"unknown scorer 'perspective'; known are minilm, prof"):
        load_scorer("perspective")
    with pytest.raises(ValueError, match="must be at least 1"):
        load_scorer("minilm", batch_size=0)
    damaged = tmp_path / "head.safetensors"
    damaged.write_bytes(b"not safetensors")
    for path in (damaged, tmp_path / "absent.safetensors"):
        with pytest.raises(ValueError, match="not the head of a minilm scorer"):
            minilm_scorer(tmp_path, path)
