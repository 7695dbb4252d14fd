"""Several values at once, against separate fits, naive loops and the arithmetic of the margins."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from tiny_lm import WORDS, tiny_lm

import sasa_lib as sl
from sasa_lib import Boundary
from sasa_lib.evaluation.interference import interference, measured
from sasa_lib.subspace.values import correlations, cosines, fit_values
from sasa_lib.texts.sources import ATTRIBUTES

PLACE = {"layer": 1, "pooling": "mean", "covariance": "ledoit_wolf", "progress": False}
VALUES = ["rude", "loud", "odd"]


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def annotated(n, seed):
    """Texts of random words; each value is about other words, and known for other rows."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(n)]
    values = {name: rng.uniform(size=n) for name in VALUES}
    values["loud"][::3] = np.nan
    values["odd"][: n // 2] = np.nan
    for name in VALUES:  # some rows are annotated for nothing that is asked for
        values[name][5::20] = np.nan
    rows = {"prompt": [""] * n, "response": texts, "group": [f"row-{i}" for i in range(n)]}
    return Dataset.from_dict(rows | values | {"rare": [1.0] + [0.0] * (n - 1)})


@pytest.fixture(scope="module")
def corpus():
    return annotated(120, seed=0)


@pytest.fixture(scope="module")
def boundaries(lm, corpus):
    return fit_values(*lm, corpus, VALUES, **PLACE)


def generations(texts, prompts=2):
    each = len(texts) // prompts
    return pd.DataFrame(
        {
            "prompt_id": np.repeat(np.arange(prompts), each),
            "prompt": np.repeat([f"prompt {i}" for i in range(prompts)], each),
            "generation": list(range(each)) * prompts,
            "text": texts,
        }
    )


def same(one, other):
    np.testing.assert_allclose(one.normal, other.normal, atol=2e-4)
    np.testing.assert_allclose(one.midpoint, other.midpoint, atol=1e-5)
    assert one.scale == pytest.approx(other.scale, rel=1e-3)
    assert one.weight_norm == pytest.approx(other.weight_norm, rel=1e-3)
    assert (one.layer, one.pooling, one.model) == (other.layer, other.pooling, other.model)
    assert list(one.metadata) == list(other.metadata)
    for name, value in one.metadata.items():
        close = isinstance(value, float)
        assert other.metadata[name] == (pytest.approx(value, abs=2e-3) if close else value)


def test_each_is_the_boundary_that_a_separate_fit_makes(lm, corpus, tmp_path):
    held_out = annotated(60, seed=1)
    found = fit_values(
        *lm, corpus, VALUES, threshold=0.6, held_out=held_out, folder=tmp_path, **PLACE
    )
    assert list(found) == VALUES
    for name, boundary in found.items():
        alone = Boundary.fit(*lm, corpus, attribute=name, threshold=0.6, held_out=held_out, **PLACE)
        same(boundary, alone)


def test_the_defaults_are_those_of_a_separate_fit(lm, corpus):
    found = fit_values(*lm, corpus, ["odd"], progress=False)
    same(found["odd"], Boundary.fit(*lm, corpus, attribute="odd", progress=False))


def test_texts_are_read_once_and_only_where_a_value_is_known(lm, corpus, monkeypatch):
    read = []
    extract = sl.values.extract

    def reading(model, tokenizer, texts, **options):
        read.append(list(texts["response"]))
        return extract(model, tokenizer, texts, **options)

    monkeypatch.setattr(sl.values, "extract", reading)
    fit_values(*lm, corpus, VALUES, **PLACE)
    frame = corpus.to_pandas()
    assert read == [frame.loc[frame[VALUES].notna().any(axis=1), "response"].tolist()]
    assert len(read[0]) < len(corpus)


@pytest.mark.parametrize(
    ("attributes", "change", "message"),
    [
        ([], {}, "attributes must be a list of at least one name"),
        ("rude", {}, "expected a list of attributes, got a single str"),
        (["rude", "loud", "rude"], {}, "the attribute 'rude' is named more than once"),
        (["rude", "sly"], {}, "the corpus has no attribute 'sly'; it has rude, loud, odd, rare"),
        (["rude", "rare"], {}, "the corpus has 1 examples with rare above 0.5"),
        (["rude"], {"layer": "auto"}, "layer='auto' could choose another layer for every value"),
        (["rude"], {"layer": "middle"}, "unknown layer 'middle'; give a number"),
        (["rude"], {"layer": 7}, "tiny has no layer 7"),
        (["rude"], {"pooling": "auto"}, "pooling='auto' could choose another pooling"),
        (["rude"], {"pooling": "max"}, "unknown pooling 'max'"),
        (["rude"], {"covariance": "auto"}, "covariance='auto' could choose another covariance"),
        (["rude"], {"covariance": "none"}, "unknown covariance 'none'; known are empirical"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(
    lm, corpus, monkeypatch, attributes, change, message
):
    monkeypatch.setattr(sl.embeddings, "_embed", None)
    with pytest.raises(ValueError, match=message):
        fit_values(*lm, corpus, attributes, **(PLACE | change))


def test_held_out_texts_must_have_both_classes_of_every_value(lm, corpus, monkeypatch):
    monkeypatch.setattr(sl.embeddings, "_embed", None)
    mild = corpus.filter(lambda row: not row["odd"] > 0.5)
    with pytest.raises(ValueError, match=r"0 examples with odd above 0\.5"):
        fit_values(*lm, corpus, ["rude", "odd"], held_out=mild, **PLACE)


def test_cosines_are_those_of_the_normals(boundaries):
    table = cosines(boundaries)
    assert list(table.index) == list(table.columns) == VALUES
    for a in VALUES:
        for b in VALUES:
            u, v = (boundaries[name].normal.astype(float) for name in (a, b))
            expected = sum(u * v) / (sum(u * u) ** 0.5 * sum(v * v) ** 0.5)
            assert table.loc[a, b] == pytest.approx(expected)


def test_correlations_are_those_of_the_margins_over_texts(boundaries):
    embeddings = np.random.default_rng(0).normal(size=(50, 32)) * np.linspace(0.1, 3, 32) + 2
    table = correlations(boundaries, embeddings)
    margins = {name: boundary.margins(embeddings) for name, boundary in boundaries.items()}
    pd.testing.assert_frame_equal(table, pd.DataFrame(margins).corr())
    # And they are the cosines in the metric of the embeddings' covariance.
    covariance = np.cov(embeddings, rowvar=False)
    u, v = (boundaries[name].normal.astype(float) for name in ("rude", "loud"))
    expected = u @ covariance @ v / np.sqrt(u @ covariance @ u * (v @ covariance @ v))
    assert table.loc["rude", "loud"] == pytest.approx(expected)


def test_where_all_directions_vary_alike_the_two_agree(boundaries):
    axes = np.eye(32)
    pd.testing.assert_frame_equal(
        correlations(boundaries, np.concatenate([axes, -axes])), cosines(boundaries)
    )


def test_a_pair_can_agree_in_direction_and_disagree_over_texts():
    place = {"midpoint": np.zeros(2, np.float32), "scale": 1.0, "weight_norm": 1.0}
    place |= {"layer": 1, "pooling": "mean", "model": "tiny"}
    normals = {"a": [0.8, 0.6], "b": [-0.8, 0.6]}
    pair = {name: Boundary(normal=np.float32(n), **place) for name, n in normals.items()}
    embeddings = np.random.default_rng(0).normal(size=(500, 2)) * [0.1, 5.0]
    assert cosines(pair).loc["a", "b"] == pytest.approx(-0.28, abs=1e-6)
    assert correlations(pair, embeddings).loc["a", "b"] > 0.9


def test_boundaries_that_cannot_be_compared_are_refused(lm, boundaries):
    one, other = boundaries["rude"], boundaries["loud"]
    with pytest.raises(ValueError, match="there is no boundary to compare"):
        cosines({})
    with pytest.raises(ValueError, match="in one model and layer, not in layer 1 of 'tiny', lay"):
        cosines({"rude": one, "loud": replace(other, layer=2)})
    with pytest.raises(ValueError, match="one model and layer, not in layer 1 of 'other', layer 1"):
        correlations(
            {"rude": one, "loud": replace(other, model="other", states=None)}, np.ones((3, 32))
        )
    for wrong in (np.ones((1, 32)), np.ones((3, 31)), np.ones(32)):
        with pytest.raises(ValueError, match=r"expected embeddings \[n, 32\] of at least two"):
            correlations(boundaries, wrong)
    with pytest.raises(ValueError, match="all texts have the same margin from 'rude'"):
        correlations(boundaries, np.zeros((3, 32)))
    texts = generations(["a cat", "a dog"])
    with pytest.raises(ValueError, match="different poolings"):
        measured(texts, {"rude": one, "loud": replace(other, pooling="last")}, *lm)
    with pytest.raises(ValueError, match="fitted on 'other' and says nothing about 'tiny'"):
        measured(texts, {"rude": replace(one, model="other", states=None)}, *lm)


def test_measured_margins_are_those_of_each_text_alone(lm, boundaries):
    texts = ["a cat sees", "the dog", "the dog", "", "it and it", "bird"]
    table = measured(generations(texts), boundaries, *lm)
    assert table["text"].tolist() == texts
    for name, boundary in boundaries.items():
        for text, margin in zip(texts, table[name], strict=True):
            if text:
                alone = boundary.score_texts(*lm, [text], scaled=True)[0]
                assert margin == pytest.approx(alone, abs=1e-4)
            else:
                assert np.isnan(margin)
    empty = measured(generations(["", ""]), boundaries, *lm)
    assert empty[VALUES].isna().all(axis=None)


def test_interference_is_the_mean_difference_to_plain_sampling():
    rng = np.random.default_rng(0)
    tables = {}
    for method in ("plain", "a", "all"):
        table = generations([""] * 12, prompts=3)
        tables[method] = table.assign(a=rng.normal(size=12), b=rng.normal(size=12))
    tables["a"].loc[2, "a"] = np.nan
    found = interference(tables, ["a", "b"], resamples=500)
    assert list(found.index) == ["a", "all"]
    for method in ("a", "all"):
        for value in ("a", "b"):
            changes = []
            for prompt in range(3):
                means = []
                for one in (method, "plain"):
                    rows = tables[one]
                    scores = rows.loc[rows["prompt_id"] == prompt, value]
                    scores = [score for score in scores if not np.isnan(score)]
                    means.append(sum(scores) / len(scores))
                changes.append(means[0] - means[1])
            change = found.loc[method, ("change", value)]
            assert change == pytest.approx(sum(changes) / 3)
            low, high = found.loc[method, ("change_low", value)], found.loc[method, "change_high"]
            ends = [min(changes) - 1e-9, low, change, high[value], max(changes) + 1e-9]
            assert ends == sorted(ends)
    pd.testing.assert_frame_equal(
        found["change"], interference(tables, ["a", "b"], resamples=10)["change"]
    )


def test_methods_that_cannot_be_compared_are_refused():
    tables = {"plain": generations(["x"] * 4).assign(a=0.0)}
    assert interference(tables, ["a"]).empty
    with pytest.raises(ValueError, match="there is no method 'base' to compare with; there are pl"):
        interference(tables, ["a"], reference="base")
    with pytest.raises(ValueError, match="the generations of 'plain' have no column 'b'"):
        interference(tables, ["b"])
    fewer = tables | {"a": tables["plain"].iloc[:2]}
    with pytest.raises(ValueError, match="'a' and 'plain' did not continue the same prompts"):
        interference(fewer, ["a"])


@pytest.mark.parametrize("max_kl", [None, 0.05])
def test_several_margins_are_one_with_the_weighted_normals(lm, boundaries, max_kl):
    model, tokenizer = lm
    betas = dict(zip(VALUES, (2.0, 1.0, 0.5), strict=True))
    several = sl.SASA(
        [(boundaries[n], beta) for n, beta in betas.items()], max_kl=max_kl, seed=0, record=True
    )
    weighted = sum(b * boundaries[n].normal.astype(float) / boundaries[n].scale
                   for n, b in betas.items())  # fmt: skip
    length = np.linalg.norm(weighted)
    one = replace(boundaries["odd"], normal=np.float32(weighted / length), scale=1 / length)
    one = sl.SASA(one, beta=1.0, max_kl=max_kl, seed=0, record=True)
    inputs = tokenizer(["the cat sees"] * 4, return_tensors="pt")
    sampling = {"do_sample": True, "top_k": 6, "max_new_tokens": 6, "min_new_tokens": 6}
    texts = [
        model.generate(**inputs, custom_generate=sasa, **sampling).tolist()
        for sasa in (several, one)
    ]
    assert texts[0] == texts[1]
    # Candidates may come in another order where scores tie up to rounding.
    keys = ["sequence", "step", "token_id"]
    first, second = (sasa.trace.set_index(keys).sort_index() for sasa in (several, one))
    np.testing.assert_allclose(first["new_logprob"], second["new_logprob"], atol=1e-3)
    assert not np.allclose(first["new_logprob"], first["reference_logprob"], atol=1e-3)


def test_on_real_annotations_each_value_has_rows_of_its_own(lm, rtp_path):
    records = sl.load_corpus("rtp", path=rtp_path, max_examples=400)
    found = fit_values(*lm, records, ATTRIBUTES[:4], **PLACE)
    frame = records.to_pandas()
    for name, boundary in found.items():
        assert boundary.metadata["n_toxic"] == (frame[name] > 0.5).sum()
        assert boundary.metadata["n_nontoxic"] == (frame[name] <= 0.5).sum()
        same(boundary, Boundary.fit(*lm, records, attribute=name, **PLACE))


def test_heat_maps_show_every_number_in_its_panel():
    table = pd.DataFrame([[1.0, -0.25], [-0.25, 1.0]], ["a_b", "c"], ["a_b", "c"])
    figure = sl.plots.heat_maps({"cosine": table, "twice": 2 * table}, label="number", limit=2)
    left, right, bar = figure.axes
    assert [left.get_title(), right.get_title(), bar.get_ylabel()] == ["cosine", "twice", "number"]
    assert [t.get_text() for t in left.texts] == ["1.00", "-0.25", "-0.25", "1.00"]
    assert [t.get_text() for t in right.get_xticklabels()] == ["a b", "c"]
    assert right.images[0].get_clim() == (-2, 2)
    assert (left.get_xlabel(), left.get_ylabel()) == ("", "")
    table = table.rename_axis(index="steered by", columns="measured on")
    left = sl.plots.heat_maps({"change": table}, label="sd").axes[0]
    assert (left.get_xlabel(), left.get_ylabel()) == ("measured on", "steered by")
    sl.plots.plt.close("all")


def test_the_figure_of_what_is_traded_shows_a_point_a_ratio_with_its_intervals():
    columns = pd.MultiIndex.from_product([("change", "change_low", "change_high"), ("a_b", "c")])
    rows = [[0.5, 0.0, 0.3, -0.1, 0.7, 0.1], [-0.1, 0.4, -0.2, 0.3, 0.0, 0.6]]
    table = pd.DataFrame(rows, ["1 : 0", "0 : 1"], columns)
    figure = sl.plots.traded({"own": table, "other": table}, "a_b", "c")
    axes = figure.axes[1]
    assert [axes.get_title(), axes.get_xlabel()] == ["other", "a b: change of the margin (sd)"]
    assert [t.get_text() for t in axes.texts] == ["1 : 0", "0 : 1"]
    line = axes.lines[-4]  # before the origin and the two axes
    assert line.get_xydata().tolist() == [[0.5, 0.0], [-0.1, 0.4]]
    across, along = (lines.get_segments() for lines in axes.containers[0].lines[2])
    assert across[0][:, 0].tolist() == pytest.approx([0.3, 0.7])
    assert along[1][:, 1].tolist() == pytest.approx([0.3, 0.6])
    sl.plots.plt.close("all")
