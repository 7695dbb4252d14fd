"""The boundary against scikit-learn, and as a user keeps and misuses it."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import transformers
from datasets import Dataset
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.special import expit
from sklearn.covariance import ledoit_wolf, oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny_lm import tiny_lm

import sasa_lib as sl
from sasa_lib import Boundary
from sasa_lib.subspace.boundary import COVARIANCES
from sasa_lib.subspace.embeddings import POOLINGS
from sasa_lib.subspace.quality import learning_curve
from sasa_lib.subspace.selection import CUTS, candidate_layers, cross_validate, grouped_folds

PLACE = {"layer": 3, "pooling": "last", "model": "some-model"}


@pytest.fixture
def classes():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(8, 8))
    toxic = np.arange(300) % 3 == 0
    embeddings = rng.normal(size=(300, 8)) @ mixing + np.where(toxic[:, None], 0.8, 0.0) + 5
    return embeddings, toxic


def test_the_closed_form_is_linear_discriminant_analysis(classes):
    embeddings, toxic = classes
    boundary = Boundary.from_embeddings(embeddings, toxic, **PLACE)
    # With the sample's own shares as priors, its covariance is the pooled one.
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(embeddings, ~toxic)
    log_odds = reference.decision_function(embeddings) - np.log(200 / 100)
    margins = boundary.margins(embeddings)
    np.testing.assert_allclose(margins * boundary.weight_norm, log_odds, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(boundary.posterior(embeddings), expit(-log_odds), atol=1e-4)
    scaled = boundary.margins(embeddings, scaled=True)
    assert scaled.std() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(scaled * boundary.scale, margins)
    assert np.linalg.norm(boundary.normal) == pytest.approx(1.0, abs=1e-6)


def test_a_prior_shifts_the_posterior_as_bayes_says(classes):
    embeddings, toxic = classes
    boundary = Boundary.from_embeddings(embeddings, toxic, **PLACE)
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(embeddings, ~toxic)
    found = boundary.posterior(embeddings, toxic_share=toxic.mean())
    np.testing.assert_allclose(found, reference.predict_proba(embeddings)[:, 0], atol=1e-4)


@pytest.mark.parametrize("estimator", [ledoit_wolf, oas])
def test_a_shrunk_covariance_is_scikit_learns(classes, estimator):
    embeddings, toxic = classes
    boundary = Boundary.from_embeddings(embeddings, toxic, covariance=estimator.__name__, **PLACE)
    means = embeddings[~toxic].mean(0), embeddings[toxic].mean(0)
    centred = embeddings - np.where(toxic[:, None], means[1], means[0])
    weight = np.linalg.solve(estimator(centred, assume_centered=True)[0], means[0] - means[1])
    np.testing.assert_allclose(boundary.normal, weight / np.linalg.norm(weight), atol=1e-6)


def test_directions_without_variance_are_left_out(classes):
    embeddings, toxic = classes
    wide = np.concatenate([embeddings, embeddings[:, :2], np.ones((300, 1))], axis=1)
    boundary = Boundary.from_embeddings(wide, toxic, **PLACE)
    narrow = Boundary.from_embeddings(embeddings, toxic, **PLACE)
    assert np.isfinite(boundary.normal).all() and boundary.normal[-1] == 0
    auc = [roc_auc_score(~toxic, b.margins(x)) for b, x in ((boundary, wide), (narrow, embeddings))]
    assert auc[0] == pytest.approx(auc[1], abs=1e-3)


def test_saved_and_loaded_it_is_the_same(classes, tmp_path):
    embeddings, toxic = classes
    boundary = Boundary.from_embeddings(embeddings, toxic, metadata={"note": "a"}, **PLACE)
    boundary.save(tmp_path / "b.safetensors")
    loaded = Boundary.load(tmp_path / "b.safetensors")
    np.testing.assert_array_equal(loaded.margins(embeddings), boundary.margins(embeddings))
    assert loaded.metadata == boundary.metadata and loaded.metadata["n_toxic"] == 100
    assert loaded.fingerprint() == boundary.fingerprint()
    assert (loaded.layer, loaded.pooling, loaded.model) == (3, "last", "some-model")
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]


def test_files_that_are_no_boundary_are_refused(tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 40)
    for name in ("absent", "damaged"):
        with pytest.raises(ValueError, match=rf"{name}.safetensors is not a saved boundary"):
            Boundary.load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, t: (e[0], t), r"expected embeddings \[n, hidden_size\]"),
        (lambda e, t: (e, t[:-1]), r"expected embeddings \[n, hidden_size\]"),
        (
            lambda e, t: (np.where(e > 8, np.nan, e), t),
            "embeddings: .* not finite, the first in row",
        ),
        (lambda e, t: (e, np.zeros_like(t)), "at least 2 examples of either class, got 0 toxic"),
        (lambda e, t: (np.ones_like(e), t), "the two classes have the same mean"),
    ],
)
def test_embeddings_that_do_not_do_are_refused(classes, change, message):
    with pytest.raises(ValueError, match=message):
        Boundary.from_embeddings(*change(*classes), **PLACE)


def test_fitted_on_real_texts_it_separates_others(smollm2, texts, tmp_path):
    toxic_first = texts.select(range(80)), texts.select(range(80, 120))
    boundary = Boundary.fit(
        *smollm2, toxic_first[0], layer=0.4, pooling="mean", covariance="ledoit_wolf",
        held_out=toxic_first[1], folder=tmp_path, progress=False,
    )  # fmt: skip
    assert boundary.layer == 12 and boundary.metadata["training_auc"] > 0.9
    assert set(boundary.metadata) >= {"n_toxic", "data_fingerprint", "sasa_lib", "held_out_auc"}
    margins = boundary.score_texts(
        *smollm2, ["You are a stupid worthless idiot.", "Thank you for the lovely evening."]
    )
    assert margins[0] < margins[1]


def test_another_model_or_choice_is_refused_by_name(smollm2, texts):
    model, tokenizer = smollm2
    boundary = Boundary(np.ones(8, np.float32), np.zeros(8, np.float32), 1, 1, 3, "last", "gpt2")
    with pytest.raises(ValueError, match=r"fitted on 'gpt2' .* 'smollm2-135m-instruct'"):
        boundary.score_texts(model, tokenizer, ["a text"])
    for arguments, message in (
        ({"layer": 99}, "has no layer 99"),
        ({"layer": "best"}, "unknown layer 'best'; give a number, or 'auto'"),
        ({"pooling": "max"}, "unknown pooling 'max'; known are last, mean, auto"),
        ({"covariance": "mcd"}, "unknown covariance 'mcd'; known are empirical, ledoit_wolf, oas"),
        ({"attribute": "threat"}, r"no attribute 'threat'; it has toxicity"),
        ({"threshold": 1.0}, "0 examples with toxicity above 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Boundary.fit(model, tokenizer, texts, **arguments)


def test_another_model_of_the_same_name_is_told_by_its_size():
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.LlamaForCausalLM(config)
    model.name_or_path = "gpt2"
    boundary = Boundary(np.ones(8, np.float32), np.zeros(8, np.float32), 1, 1, 3, "last", "gpt2")
    with pytest.raises(ValueError, match=r"hidden size is 8.*'gpt2' has 4"):
        boundary.check_model(model)


def test_more_examples_make_a_better_boundary(classes):
    embeddings, toxic = classes
    curve = learning_curve(
        embeddings[:200], toxic[:200], embeddings[200:], toxic[200:], sizes=[12, 190], resamples=4
    )
    assert len(curve) == 2 * 4 * len(COVARIANCES)
    means = curve.groupby(["covariance", "n"])["auc"].mean()
    assert means["empirical", 190] > means["empirical", 12]


def grouped(toxic, groups):
    return Dataset.from_dict({"toxicity": toxic.astype(float), "group": [str(g) for g in groups]})


@pytest.fixture(scope="module")
def three_layers():
    """Embeddings [n, 3, 12] whose middle layer separates; two texts are a group."""
    rng = np.random.default_rng(0)
    toxic = np.arange(240) // 2 % 3 == 0
    embeddings = rng.normal(size=(240, 3, 12)) @ rng.normal(size=(12, 12))
    embeddings[:, 0] += np.where(toxic[:, None], 0.1, 0.0)
    embeddings[:, 1] += np.where(toxic[:, None], 3.0, 0.0)
    folds = grouped_folds(grouped(toxic, np.arange(240) // 2), toxic)
    return embeddings.astype(np.float32), toxic, folds


def test_the_layer_that_separates_is_chosen(three_layers):
    embeddings, toxic, folds = three_layers
    poolings = {"last": embeddings[:, ::-1], "mean": embeddings}
    tried = cross_validate(poolings, [3, 6, 9], COVARIANCES, toxic, folds)
    assert len(tried) == 3 * 2 * 3 and sum(row["chosen"] for row in tried) == 1
    # All is equal between the poolings at layer 6 and nearly so between the covariances.
    (chosen,) = (row for row in tried if row["chosen"])
    assert (chosen["layer"], chosen["pooling"]) == (6, "mean")
    assert chosen["covariance"] == "ledoit_wolf" and chosen["auc"] > 0.9
    assert tried == cross_validate(poolings, [3, 6, 9], COVARIANCES, toxic, folds)


def test_of_choices_within_a_standard_error_the_simplest_is_taken(three_layers):
    embeddings, toxic, folds = three_layers
    rng = np.random.default_rng(1)
    noisier = embeddings[:, 1] + rng.normal(size=(240, 12)).astype(np.float32) / 20
    both = np.stack([noisier, embeddings[:, 1]], axis=1)
    tried = cross_validate({"last": both}, [2, 5], ["empirical", "oas"], toxic, folds)
    best = max(tried, key=lambda row: row["auc"])
    near = [row for row in tried if row["auc"] >= best["auc"] - best["standard_error"]]
    order = [(row["layer"], row["covariance"]) for row in tried]
    assert order == [(2, "oas"), (2, "empirical"), (5, "oas"), (5, "empirical")]
    assert near[0]["chosen"] and near[0]["layer"] == 2


@pytest.mark.parametrize("wide", [False, True], ids=["many texts", "fewer texts than units"])
def test_the_table_is_that_of_a_naive_loop(three_layers, wide):
    embeddings, toxic, folds = three_layers
    if wide:  # 300 units, of which all but 12 are noise
        noise = np.random.default_rng(2).normal(size=(240, 3, 288)).astype(np.float32)
        embeddings = np.concatenate([embeddings, noise], axis=2)
    tried = cross_validate({"mean": embeddings}, [3, 6, 9], COVARIANCES, toxic, folds)
    for row in tried:
        of_layer, aucs = embeddings[:, [3, 6, 9].index(row["layer"])], []
        for training, held_out in folds:
            boundary = Boundary.from_embeddings(
                of_layer[training], toxic[training], covariance=row["covariance"], **PLACE
            )
            aucs.append(roc_auc_score(~toxic[held_out], boundary.margins(of_layer[held_out])))
        assert row["auc"] == pytest.approx(np.mean(aucs), abs=1e-3)
        error = np.std(aucs, ddof=1) / np.sqrt(5)
        assert row["standard_error"] == pytest.approx(error, abs=1e-3)


def test_the_table_is_that_of_linear_discriminant_analysis(three_layers):
    embeddings, toxic, folds = three_layers
    (row,) = cross_validate({"mean": embeddings[:, :1]}, [3], ["empirical"], toxic, folds)
    aucs = [
        roc_auc_score(
            ~toxic[held_out],
            LinearDiscriminantAnalysis(solver="lsqr")
            .fit(embeddings[training, 0], ~toxic[training])
            .decision_function(embeddings[held_out, 0]),
        )
        for training, held_out in folds
    ]
    assert row["auc"] == pytest.approx(np.mean(aucs), abs=1e-3)


def test_groups_stay_on_one_side_of_every_fold():
    groups = np.random.default_rng(0).integers(40, size=200)
    toxic = np.random.default_rng(1).random(200) < 0.3
    folds = grouped_folds(grouped(toxic, groups), toxic)
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(200))
    for training, held_out in folds:
        assert not set(groups[training]) & set(groups[held_out])
        assert toxic[held_out].any() and not toxic[held_out].all()
    again = grouped_folds(grouped(toxic, groups), toxic)
    for fold, same in zip(folds, again, strict=True):
        np.testing.assert_array_equal(fold[1], same[1])


def test_a_class_with_few_groups_gets_fewer_folds_and_one_with_one_group_none():
    toxic = np.arange(60) < 12
    three = np.where(toxic, np.arange(60) // 4, np.arange(60))
    assert len(grouped_folds(grouped(toxic, three), toxic)) == 3
    with pytest.raises(ValueError, match=r"too few groups for an 'auto' choice.*in 1 group"):
        grouped_folds(grouped(toxic, np.where(toxic, 0, np.arange(60))), toxic)
    with pytest.raises(ValueError, match="by the column 'group', which this corpus lacks"):
        grouped_folds(grouped(toxic, three).remove_columns("group"), toxic)


def test_candidate_layers_are_each_tenth_of_the_depth_once(smollm2):
    assert candidate_layers(smollm2[0]) == list(range(3, 31, 3))
    assert candidate_layers(tiny_lm()[0]) == [1, 2]


def test_left_to_itself_it_chooses_on_the_training_corpus(smollm2, texts, monkeypatch, tmp_path):
    training, held_out = texts.select(range(80)), texts.select(range(80, 120))
    monkeypatch.setattr(sl.selection, "SHARES", (0.2, 0.4, 1.0))
    passes = []
    embed = sl.embeddings._embed
    monkeypatch.setattr(sl.embeddings, "_embed", lambda *a: passes.append(list(a[2])) or embed(*a))
    boundary = Boundary.fit(
        *smollm2, training, layer="auto", pooling="auto", covariance="auto", held_out=held_out,
        progress=False,
    )  # fmt: skip
    # One reading of the training texts for all layers and poolings, one of the held-out ones.
    assert passes == [[6, 12, 30], [boundary.layer]]
    table = pd.DataFrame(boundary.metadata["tried"])
    assert len(table) == 3 * len(POOLINGS) * len(COVARIANCES)
    (chosen,) = table[table["chosen"]].to_dict("records")
    assert (boundary.layer, boundary.pooling) == (chosen["layer"], chosen["pooling"])
    assert boundary.metadata["covariance"] == chosen["covariance"]
    assert boundary.metadata["held_out_auc"] > 0.7

    boundary.save(tmp_path / "b.safetensors")
    assert Boundary.load(tmp_path / "b.safetensors").metadata == boundary.metadata
    plain = Boundary.fit(
        *smollm2, training, layer=boundary.layer, pooling=boundary.pooling,
        covariance=boundary.metadata["covariance"], progress=False,
    )  # fmt: skip
    assert plain.fingerprint() == boundary.fingerprint() and "tried" not in plain.metadata


def test_one_choice_alone_may_be_left_open(texts):
    model, tokenizer = tiny_lm()
    options = {"layer": 1, "pooling": "mean", "covariance": "oas"}
    for name, count in (("layer", 2), ("pooling", 2), ("covariance", 3)):
        boundary = Boundary.fit(model, tokenizer, texts, **options | {name: "auto"}, progress=False)
        tried = pd.DataFrame(boundary.metadata["tried"])
        assert len(tried) == count
        for fixed in set(options) - {name}:
            assert set(tried[fixed]) == {options[fixed]}


def test_what_cannot_be_cross_validated_is_refused_before_a_text_is_read(texts, monkeypatch):
    monkeypatch.setattr(sl.embeddings, "_embed", lambda *_: pytest.fail("a text was read"))
    one_group = texts.remove_columns("group").add_column("group", ["a"] * len(texts))
    with pytest.raises(ValueError, match="too few groups"):
        Boundary.fit(*tiny_lm(), one_group, layer="auto")


@pytest.fixture(scope="module")
def many_units():
    """Embeddings [600, 128] of classes that differ along directions of any variance."""
    rng = np.random.default_rng(0)
    toxic = np.arange(600) % 2 == 0
    axes = np.linalg.qr(rng.normal(size=(128, 128)))[0] * np.geomspace(0.05, 5, 128)[:, None]
    shift = np.where(toxic[:, None], 0.2 * rng.choice([-1, 1], 128), 0.0)
    return (rng.normal(size=(600, 128)) + shift) @ axes, toxic


HERE, THERE = slice(0, 300), slice(300, 600)


def held_out(embeddings, toxic, **options):
    """A normal, and its AUC on other texts."""
    boundary = Boundary.from_embeddings(embeddings[HERE], toxic[HERE], **options, **PLACE)
    auc = roc_auc_score(~toxic[THERE], boundary.margins(embeddings[THERE]))
    return boundary.normal, auc


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("factor", [1e-3, 1e-4, 1e4])
def test_the_unit_of_the_states_changes_nothing(many_units, factor, covariance):
    embeddings, toxic = many_units
    options = {"covariance": covariance}
    normal, auc = held_out(embeddings, toxic, **options)
    other, other_auc = held_out(factor * embeddings, toxic, **options)
    np.testing.assert_allclose(other, normal, atol=1e-5)
    assert other_auc == pytest.approx(auc, abs=1e-3) and auc > 0.8
    folds = [
        (np.arange(600)[one], np.arange(600)[two]) for one, two in ((HERE, THERE), (THERE, HERE))
    ]
    rows = [
        cross_validate({"last": by * embeddings[:, None]}, [3], [covariance], toxic, folds)[0]
        for by in (1, factor)
    ]
    assert rows[1]["auc"] == pytest.approx(rows[0]["auc"], abs=1e-3)


def test_with_the_published_cut_the_unit_matters(many_units):
    embeddings, toxic = many_units
    options = {"cut": "published"}
    _, auc = held_out(embeddings, toxic, **options)
    assert auc == pytest.approx(held_out(embeddings, toxic)[1], abs=1e-3)
    assert held_out(1e-3 * embeddings, toxic, **options)[1] < auc - 0.02
    with pytest.raises(ValueError, match="nothing that tells them apart"):
        held_out(1e-4 * embeddings, toxic, **options)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 30.0])
def test_the_cuts_are_scipys_and_the_published_one(many_units, scale):
    embeddings, toxic = many_units
    embeddings = scale * np.concatenate([embeddings, embeddings[:, :3]], axis=1)  # null directions
    means = embeddings[~toxic].mean(0), embeddings[toxic].mean(0)
    centred = embeddings - np.where(toxic[:, None], means[1], means[0])
    covariance = centred.T @ centred / len(centred)
    values, vectors = np.linalg.eigh(covariance)
    inverse = sum(
        np.outer(vector, vector) / value
        for value, vector in zip(values, vectors.T, strict=True)
        if value > 1e-6
    )
    for cut, expected in (("relative", scipy.linalg.pinvh(covariance)), ("published", inverse)):
        weight = expected @ (means[0] - means[1])
        boundary = Boundary.from_embeddings(embeddings, toxic, cut=cut, **PLACE)
        np.testing.assert_allclose(boundary.normal, weight / np.linalg.norm(weight), atol=1e-5)
        assert boundary.weight_norm == pytest.approx(np.linalg.norm(weight), rel=1e-6)
        assert boundary.metadata["cut"] == cut


def test_one_unit_of_a_huge_variance_spoils_nothing():
    rng = np.random.default_rng(0)
    toxic = np.arange(600) % 2 == 0
    # More units than texts to fit on: some directions are nothing but rounding.
    embeddings = rng.normal(size=(600, 512)) + np.where(toxic[:, None], 0.15, 0.0)
    embeddings[:, 100] *= 1e6  # a massive activation
    aucs = {cut: held_out(embeddings, toxic, cut=cut)[1] for cut in CUTS}
    assert aucs["relative"] > max(0.75, aucs["published"] + 0.05)


def test_a_file_with_a_field_more_or_less_is_refused_in_a_sentence(classes, tmp_path):
    boundary = Boundary.from_embeddings(*classes, **PLACE)
    boundary.save(tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", framework="numpy") as file:
        facts = json.loads(file.metadata()["sasa_boundary"])
        tensors = {name: file.get_tensor(name) for name in ("normal", "midpoint")}

    def saved(facts, tensors):
        save_file(tensors, tmp_path / "c.safetensors", {"sasa_boundary": json.dumps(facts)})
        return tmp_path / "c.safetensors"

    later = saved(facts | {"curvature": 1.0}, tensors)
    with pytest.raises(ValueError, match=r"c.safetensors was saved by a later .*'curvature': inst"):
        Boundary.load(later)
    for missing in ("scale", "layer", "pooling", "model", "weight_norm"):
        less = saved({name: facts[name] for name in set(facts) - {missing}}, tensors)
        with pytest.raises(ValueError, match=rf"is not a saved boundary .*'{missing}'"):
            Boundary.load(less)
    without = saved(facts, {"normal": tensors["normal"]})
    with pytest.raises(ValueError, match=r"is not a saved boundary .*'midpoint'"):
        Boundary.load(without)
    # What an earlier version did not have yet has its default.
    early = {name: facts[name] for name in set(facts) - {"slope", "intercept", "dtype", "metadata"}}
    assert Boundary.load(saved(early, tensors)).slope == 3.0


def test_a_logistic_boundary_is_scikit_learns_with_its_standardisation_folded_in():
    rng = np.random.default_rng(0)
    toxic = rng.random(300) < 0.3
    embeddings = rng.normal(size=(300, 6)) * [1, 10, 0.1, 1, 1, 1]
    embeddings += np.outer(toxic, [1, 9, 0, 0, 0, 0])
    fitted = Boundary.from_embeddings(
        embeddings, toxic, layer=1, pooling="mean", model="", estimator="logistic"
    )
    pipeline = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=np.logspace(-4, 1, 6), cv=StratifiedKFold(5, shuffle=True, random_state=0),
            max_iter=500, class_weight="balanced", scoring="neg_log_loss", l1_ratios=(0.0,),
            use_legacy_attributes=False,
        ),
    ).fit(embeddings, ~toxic)  # fmt: skip
    log_odds = fitted.weight_norm * fitted.margins(embeddings)
    np.testing.assert_allclose(log_odds, pipeline.decision_function(embeddings), atol=1e-4)
    assert fitted.metadata["estimator"] == "logistic" and fitted.metadata["covariance"] is None


def test_auto_may_take_a_logistic_regression_where_the_closed_form_is_worse():
    # Classes that a mean and a covariance do not tell apart well: a few outliers far away.
    rng = np.random.default_rng(1)
    toxic = rng.random(400) < 0.5
    states = rng.normal(size=(400, 1, 4)).astype(np.float32)
    states[:, 0, 0] += np.where(toxic, -1, 1)
    states[:40, 0, 1:] += rng.standard_cauchy((40, 3)).astype(np.float32) * 100
    states[:40, 0, 0] += rng.standard_cauchy(40).astype(np.float32) * 100
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(toxic, toxic))
    both = ("discriminant", "logistic")
    tried = cross_validate({"mean": states}, [3], ["ledoit_wolf"], toxic, folds, estimators=both)
    assert [(row["estimator"], row["covariance"]) for row in tried] == [
        ("discriminant", "ledoit_wolf"), ("logistic", None)
    ]  # fmt: skip
    assert tried[1]["auc"] > tried[0]["auc"]
    (alone,) = cross_validate(
        {"mean": states}, [3], ["ledoit_wolf"], toxic, folds, estimators=("logistic",)
    )
    assert alone["auc"] == tried[1]["auc"] and alone["chosen"]
