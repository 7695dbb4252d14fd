"""Statistics, labels and files that would give a wrong number without a word: refused."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from safetensors.numpy import save_file

import sasa_lib as sl
from sasa_lib.subspace.embeddings import anisotropy, extract
from sasa_lib.subspace.quality import prefix_auc
from tests.tiny_lm import tiny_boundary, tiny_lm

SCORES = np.array([[0.1, 0.7], [0.2, 0.3], [0.9, 0.1]])
JUDGED = pd.DataFrame(
    {
        "prompt_id": [0, 0, 1, 1], "prompt": ["a", "a", "b", "b"], "text": [" it"] * 4,
        "minilm": 0.5, "nll": 1.0, "nll_tokens": 2,
    }
)  # fmt: skip
CORPUS = Dataset.from_dict(
    {"prompt": [""] * 4, "response": ["it"] * 4, "group": ["a", None] * 2, "toxicity": [0, 1.0] * 2}
)
BOUNDARY = tiny_boundary()


def words():
    return sl.scorers.Scorer("words", "1", lambda texts: np.zeros(len(texts)))


def matched(**columns):
    table = JUDGED.assign(**columns)
    return sl.matched.at_matched_perplexity({"plain": [table]}, "minilm", ratio=1.1)


def judged(scorers, table=None):
    table = JUDGED.drop(columns=["nll", "nll_tokens"]) if table is None else table
    return sl.judging.judged(table, scorers, *tiny_lm(), progress=False)


TABLE = pd.DataFrame({"prompt_id": [0, 0, None, None], "minilm": [0.1, 0.2, 0.3, 0.4]})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sl.metrics.toxic_rate(SCORES, threshold=50), "threshold must be"),
        (lambda: sl.metrics.toxic_rate(SCORES, threshold=float("nan")), "threshold must be"),
        (
            lambda: sl.statistics.group_toxic_rates(SCORES, ["a"] * 3, threshold=50),
            "threshold must",
        ),
        (lambda: sl.statistics.paired_difference([1, np.nan], [2, 3], np.mean), "not finite"),
        (
            lambda: sl.statistics.paired_difference([1, 2], [2, 3], np.mean, confidence=95),
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
        (lambda: prefix_auc([np.zeros(3)] * 4, [0.1, 0.9] * 2, tokens=[1]), "true or false"),
        (lambda: sl.metrics.perplexity([1.0, 2.0], [5]), "needs its number of tokens"),
        (lambda: sl.metrics.perplexity([1.0, 2.0], [5, -3]), "needs its number of tokens"),
        (lambda: sl.metrics.perplexity([1.0, 2.0], [5, np.nan]), "numbers of tokens: 1 of 2"),
        (lambda: matched(minilm=50.0), "column 'minilm' must lie in"),
        (lambda: matched(nll_tokens=np.nan), "column 'nll_tokens': 4 of 4"),
        (lambda: sl.judging.on_common_prompts(JUDGED), "expected a list of tables"),
        (lambda: sl.judging.on_common_prompts([["a"]]), "a pandas DataFrame, got list"),
        (lambda: BOUNDARY.margins(np.zeros((3, 1))), r"expected embeddings \[..., 32\]"),
        (lambda: BOUNDARY.posterior(np.zeros((3, 32)), toxic_share=1), "between 0 and 1"),
        (lambda: anisotropy([[1.0, np.nan], [1.0, 2.0]]), "not finite"),
        (lambda: anisotropy([[1.0, 2.0], [0.0, 0.0]]), "embedding of text 1 is 0"),
        (
            lambda: sl.values.correlations({"rude": BOUNDARY}, np.full((3, 32), np.nan)),
            "embeddings: 96 of 96 values",
        ),
        (
            lambda: sl.interference.measured(JUDGED, {"text": BOUNDARY}, *tiny_lm()),
            "cannot be named 'text'",
        ),
        (
            lambda: sl.agreement.agreement([0.1, 0.9], [0.2, 0.8], groups=["a", None]),
            "row 1 has none",
        ),
        (lambda: sl.agreement.agreement([0.1, 0.9], [0.2, 0.8], np.nan), "threshold must be"),
        (lambda: judged([words(), words()]), "'words' would be there twice"),
        (lambda: judged([words()], JUDGED.assign(words=0.0)), "'words' would be there twice"),
        (lambda: judged(["minilm"]), "expected scorers as load_scorer returns"),
        (lambda: judged([words()], JUDGED.drop(columns="prompt")), "no column 'prompt'"),
        (lambda: sl.plots.roc({"a": [0.1, np.nan]}, [True, False]), "margins of 'a'"),
        (lambda: sl.plots.margin_against_value([1.0, 2.0], [50, 70]), "values must lie in"),
        (lambda: sl.corpora.split(CORPUS), "row 1 has none"),
        (lambda: sl.Boundary.fit(*tiny_lm(), pd.DataFrame(CORPUS.to_dict())), "a datasets.Dataset"),
        (lambda: sl.Boundary.fit(*tiny_lm(), CORPUS, layer=None), "layer must be a finite number"),
        (lambda: sl.Boundary.fit(*tiny_lm(), CORPUS, layer=True), "layer must be a finite number"),
        (lambda: extract(*tiny_lm(), ["it"], layers=1), "expected a list of layers"),
        (lambda: extract(*tiny_lm(), ["it"], layers=[]), "at least one layer"),
        (lambda: extract(*tiny_lm(), ["it"], batch_tokens=0), "batch_tokens must be"),
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
        sl.interference.interference(tables, ["rude"])


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


def test_a_figure_pairs_points_by_place_and_not_by_the_labels_of_series():
    margins, values = np.linspace(-1, 1, 20), np.linspace(0, 1, 20)
    shuffled = pd.Series(margins, index=np.random.default_rng(0).permutation(20))
    lines = [
        sl.plots.margin_against_value(m, values).axes[0].lines[0].get_ydata()
        for m in (margins, shuffled)
    ]
    assert lines[0].tolist() == lines[1].tolist()
