"""Statistics, labels and files that would give a wrong number without a word: refused."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import sasa_lib as sl
from sasa_lib.boundary import prefix_auc
from tests.tiny_lm import tiny_boundary, tiny_lm

SCORES = np.array([[0.1, 0.7], [0.2, 0.3], [0.9, 0.1]])
TABLE = pd.DataFrame({"prompt_id": [0, 0, None, None], "minilm": [0.1, 0.2, 0.3, 0.4]})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sl.metrics.toxic_rate(SCORES, threshold=50), "threshold must be"),
        (lambda: sl.metrics.toxic_rate(SCORES, threshold=float("nan")), "threshold must be"),
        (lambda: sl.metrics.group_toxic_rates(SCORES, ["a"] * 3, threshold=50), "threshold must"),
        (lambda: sl.metrics.paired_difference([1, np.nan], [2, 3], np.mean), "not finite"),
        (
            lambda: sl.metrics.paired_difference([1, 2], [2, 3], np.mean, confidence=95),
            "confidence must be",
        ),
        (lambda: sl.metrics.score_matrix(TABLE, "minilm"), "have no prompt_id"),
        (lambda: sl.metrics.distinct_n(["a b c", "a b d"], 1), "a single str"),
        (lambda: sl.metrics.distinct_n([["a b c"]], 0), "n must be a whole number"),
        (
            lambda: sl.budget.relative_perplexity(
                *[
                    pd.DataFrame(
                        {
                            "prompt_id": [0, 1],
                            "prompt": ["a", "b"],
                            "nll": nll,
                            "nll_tokens": [2, 2],
                        }
                    )
                    for nll in ([1.0, np.nan], [1.0, 2.0])
                ]
            ),
            "nll: 1 of 2 values are not finite",
        ),
        (lambda: prefix_auc([np.zeros(3)] * 4, np.arange(4) % 2 > 0, tokens=[0]), "tokens must be"),
    ],
)
def test_a_number_that_means_nothing_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("labels", [np.linspace(0, 1, 6), [0, 1, 2] * 2, [0, np.nan, 1] * 2])
def test_labels_that_are_neither_true_nor_false_are_refused(labels):
    embeddings = np.random.default_rng(0).normal(size=(6, 4))
    with pytest.raises(ValueError, match="toxic must be true or false"):
        sl.Boundary.from_embeddings(embeddings, labels, layer=1, pooling="mean", model="")


def test_margins_are_compared_on_the_same_prompts():
    tables = {
        name: pd.DataFrame({"prompt_id": [0, 1], "prompt": prompts, "rude": [0.0, 1.0]})
        for name, prompts in (("plain", ["a", "b"]), ("sasa", ["b", "a"]))
    }
    with pytest.raises(ValueError, match="did not continue the same prompts"):
        sl.values.interference(tables, ["rude"])


@pytest.mark.parametrize("given", [pd.DataFrame({"prompt": ["the cat"]}), {"the cat", "a dog"}])
def test_a_table_or_a_set_is_no_list_of_texts(tmp_path, given):
    model, tokenizer = tiny_lm()
    with pytest.raises(ValueError, match="expected a list of"):
        sl.embeddings.extract(model, tokenizer, given, progress=False)
    with pytest.raises(ValueError, match="expected a list of"):
        sl.runs.generate(
            model, tokenizer, given, sl.runs.Sampling(), folder=tmp_path, method="plain"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [{"scale": 0.0}, {"scale": float("nan")}, {"slope": None}])
def test_a_damaged_boundary_is_refused(tmp_path, damage):
    path = tmp_path / "b.safetensors"
    boundary = tiny_boundary()
    facts = {"scale": 1.0, "weight_norm": 1.0, "layer": 1, "pooling": "mean", "model": "tiny"}
    tensors = {"normal": boundary.normal, "midpoint": boundary.midpoint}
    save_file(tensors, path, metadata={"sasa_boundary": json.dumps(facts)})
    assert sl.Boundary.load(path).slope == 3.0
    save_file(tensors, path, metadata={"sasa_boundary": json.dumps(facts | damage)})
    with pytest.raises(ValueError, match=r"is damaged|is not a saved boundary"):
        sl.Boundary.load(path)
    replace(boundary, normal=boundary.normal * np.nan).save(path)
    with pytest.raises(ValueError, match="is damaged"):
        sl.Boundary.load(path)
