"""The boundary against scikit-learn, and as a user keeps and misuses it."""

import numpy as np
import pytest
import transformers
from scipy.special import expit
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from sasa_lib import Boundary
from sasa_lib.boundary import learning_curve

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


def test_ledoit_wolf_is_scikit_learns(classes):
    embeddings, toxic = classes
    boundary = Boundary.from_embeddings(embeddings, toxic, covariance="ledoit_wolf", **PLACE)
    means = embeddings[~toxic].mean(0), embeddings[toxic].mean(0)
    centred = embeddings - np.where(toxic[:, None], means[1], means[0])
    weight = np.linalg.solve(ledoit_wolf(centred, assume_centered=True)[0], means[0] - means[1])
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
        (lambda e, t: (np.where(e > 8, np.nan, e), t), "contain NaN or infinity, first in row"),
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


def test_another_model_layer_or_choice_is_refused_by_name(smollm2, texts):
    model, tokenizer = smollm2
    boundary = Boundary(np.ones(8, np.float32), np.zeros(8, np.float32), 1, 1, 3, "last", "gpt2")
    with pytest.raises(ValueError, match=r"fitted on 'gpt2' .* 'smollm2-135m-instruct'"):
        boundary.score_texts(model, tokenizer, ["a text"])
    with pytest.raises(ValueError, match=r"fitted on layer 3 with 'last' pooling, not on layer 4"):
        boundary.check_layer(4, "last")
    for arguments, message in (
        ({"layer": 99}, "has no layer 99"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
        ({"covariance": "oas"}, "unknown covariance 'oas'; known are empirical, ledoit_wolf"),
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
    with pytest.raises(ValueError, match=r"hidden size 8.*'gpt2' has 4"):
        boundary.check_model(model)


def test_more_examples_make_a_better_boundary(classes):
    embeddings, toxic = classes
    curve = learning_curve(
        embeddings[:200], toxic[:200], embeddings[200:], toxic[200:], sizes=[12, 190], resamples=4
    )
    assert len(curve) == 2 * 4 * 2
    means = curve.groupby(["covariance", "n"])["auc"].mean()
    assert means["empirical", 190] > means["empirical", 12]
