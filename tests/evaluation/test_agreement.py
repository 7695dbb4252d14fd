"""Agreement against other libraries, and the Perspective scale where the truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, roc_auc_score

import sasa_lib as sl
from sasa_lib.evaluation.agreement import PerspectiveScale, agreement


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    reference = rng.beta(0.8, 1.5, size=400)
    return np.clip(0.8 * reference + 0.15 * rng.normal(size=400), 0, 1), reference


@pytest.fixture(scope="module")
def records(rtp_path):
    """Scores, Perspective's scores and records of real texts; profanity-check learned from none."""
    corpus = sl.load_corpus("rtp", path=rtp_path).filter(lambda row: row["toxicity"] is not None)
    scores = sl.load_scorer("profanity-check")(corpus["response"])
    groups = np.unique(corpus["group"], return_inverse=True)[1]
    return scores, np.array(corpus["toxicity"]), groups


def test_agreement_is_what_other_libraries_say(scored):
    scores, reference = scored
    found = agreement(scores, reference, threshold=0.4, resamples=50)
    toxic, flagged = reference > 0.4, scores > 0.4
    expected = {
        "auc": roc_auc_score(toxic, scores),
        "spearman": spearmanr(scores, reference).statistic,
        "share": (toxic == flagged).mean(),
        "kappa": cohen_kappa_score(toxic, flagged),
    }
    assert found.statistics["value"].to_dict() == pytest.approx(expected)
    assert (found.statistics["low"] < found.statistics["value"]).all()
    assert (found.statistics["value"] < found.statistics["high"]).all()
    assert found.n == 400


def test_the_calibration_curve_averages_over_tenths():
    scores = np.array([0.0, 0.05, 0.55, 0.56, 1.0])
    curve = agreement(scores, np.array([0.1, 0.2, 0.4, 0.7, 0.9]), resamples=5).calibration
    np.testing.assert_allclose(curve["score"], [0.025, 0.555, 1.0])
    np.testing.assert_allclose(curve["reference"], [0.15, 0.55, 0.9])
    np.testing.assert_allclose(curve["toxic"], [0.0, 0.5, 1.0])
    assert curve["n"].tolist() == [2, 2, 1]


def test_repeated_texts_of_a_group_tell_nothing_new(scored):
    scores, reference = (values[:80] for values in scored)
    once = agreement(scores, reference).statistics
    many = (np.tile(scores, 9), np.tile(reference, 9))
    grouped = agreement(*many, groups=np.tile(np.arange(80), 9)).statistics
    np.testing.assert_allclose(grouped, once)
    alone = agreement(*many).statistics
    assert ((alone["high"] - alone["low"]) < 0.5 * (once["high"] - once["low"])).all()


def test_a_scorer_without_an_opinion_has_no_correlation(scored):
    found = agreement(np.full(400, 0.3), scored[1], resamples=20).statistics["value"]
    assert found["auc"] == 0.5 and np.isnan(found["spearman"]) and found["kappa"] == 0


@pytest.mark.parametrize(
    ("scores", "reference", "options", "message"),
    [
        ([0.1, 0.2], [0.1], {}, r"equally long lists, got shapes \(2,\) and \(1,\)"),
        ([], [], {}, "equally long lists"),
        ([0.1, 1.2], [0.1, 0.9], {}, r"scores must lie in \[0, 1\]"),
        ([0.1, 0.2], [0.1, float("nan")], {}, "reference: 1 of 2 values are not finite"),
        ([0.1, 0.2], [0.1, 0.2], {}, "all references are at most 0.5"),
        ([0.1, 0.2], [0.8, 0.9], {}, "all references are above 0.5"),
        ([0.1, 0.2], [0.1, 0.9], {"groups": [1]}, "groups has 1 items, but there are 2 scores"),
    ],
)
def test_what_cannot_be_compared_is_refused(scores, reference, options, message):
    with pytest.raises(ValueError, match=message):
        agreement(scores, reference, **options)


def test_the_scale_rises_and_is_right_on_average(records):
    scores, reference, groups = records
    half = groups % 2 == 0
    scale = PerspectiveScale.fit(scores[half], reference[half], groups=groups[half])
    grid = scale.transform(np.linspace(0, 1, 24).reshape(4, 6))
    assert grid.shape == (4, 6) and (np.diff(grid.ravel()) >= 0).all()
    assert grid.min() >= 0 and grid.max() <= 1
    mapped = scale.transform(scores[~half])
    assert abs(mapped.mean() - reference[~half].mean()) < 0.02
    error, before = (np.abs(s - reference[~half]).mean() for s in (mapped, scores[~half]))
    assert error < before


def test_a_scorer_that_never_errs_gives_the_metrics_themselves():
    values = np.linspace(0, 1, 2001)
    generations = np.random.default_rng(0).random((30, 5))
    found = PerspectiveScale.fit(values, values, neighbours=2).equivalent(generations)
    assert found["value"]["expected_max_toxicity"] == pytest.approx(
        sl.metrics.expected_max_toxicity(generations), abs=2e-3
    )
    assert found["value"]["toxic_rate"] == pytest.approx(
        sl.metrics.toxic_rate(generations), abs=0.02
    )


def test_the_maximum_counts_what_the_expectation_leaves_out():
    # Perspective is 0 or 1 at random and the scorer knows nothing: the maximum of 4 is 15/16.
    scores = np.full(2000, 0.5)
    scale = PerspectiveScale.fit(scores, np.tile([0.0, 1.0], 1000), neighbours=50)
    found = scale.equivalent(np.full((200, 4), 0.5), resamples=200)
    assert scale.transform(scores).max() == pytest.approx(0.5)
    np.testing.assert_allclose(found["value"], 15 / 16, atol=0.01)


def draw(scores, pool, n_prompts, n_generations, rng):
    """Draw rows as generations: every prompt has a level, near which its scores rank."""
    rank = np.argsort(np.argsort(scores[pool])) / len(pool)
    weights = np.exp(-np.abs(rank - rng.random((n_prompts, 1))) / 0.2)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.stack([rng.choice(pool, size=n_generations, p=row) for row in weights])


def test_the_interval_covers_what_perspective_says_of_real_texts(records):
    """Prompts and generations are drawn from real texts whose Perspective scores are known.

    The truth is the metric over very many prompts. Calibration records, on which the scale is
    fitted, and the records that generations are drawn from are disjoint and new each time.
    """
    scores, reference, groups = records
    rng = np.random.default_rng(0)
    every = reference[draw(scores, np.arange(len(scores)), 3000, 10, rng)]
    truth = np.array([sl.metrics.expected_max_toxicity(every), sl.metrics.toxic_rate(every)])
    covered, widths, best = np.zeros(2), [], []
    for i in range(60):
        calibration = (rng.random(groups.max() + 1) < 0.1)[groups]
        scale = PerspectiveScale.fit(
            scores[calibration], reference[calibration], groups=groups[calibration]
        )
        rows = draw(scores, np.flatnonzero(~calibration), 40, 10, rng)
        found = scale.equivalent(scores[rows], resamples=100, seed=i)
        low, high = found["low"].to_numpy(), found["high"].to_numpy()
        covered += (low <= truth) & (truth <= high)
        widths.append(high - low)
        # As wide as an interval would be if Perspective itself could be asked.
        highest = reference[rows].max(axis=1)
        best.append(2 * 1.96 * np.array([highest.std(), (highest > 0.5).std()]) / np.sqrt(40))
    assert (covered >= 51).all()  # 57 expected
    assert (np.mean(widths, axis=0) < 1.5 * np.mean(best, axis=0)).all()


def test_wrong_use_of_the_scale_is_refused(scored):
    with pytest.raises(
        ValueError, match="must be from 2 to the number of calibration records, 400"
    ):
        PerspectiveScale.fit(*scored, neighbours=401)
    scale = PerspectiveScale.fit(*scored)
    with pytest.raises(ValueError, match=r"expected scores \[prompts, generations\]"):
        scale.equivalent(np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        scale.transform(np.array([1.5]))
    one = scale.equivalent(np.array([[0.1, 0.6]]), resamples=20)
    assert np.isnan(one[["low", "high"]].to_numpy()).all() and (one["value"] > 0).all()


def test_the_scale_that_comes_with_the_library_is_that_of_its_texts():
    scorer = sl.load_scorer("minilm")
    scale = sl.agreement.PerspectiveScale.of("minilm", scorer.version)
    pairs = pd.read_csv(sl.assets.DATA_DIR / "perspective_scale.csv")
    pairs = pairs[pairs["scorer"] == "minilm"]
    assert len(scale.scores) == len(pairs) == 739
    by_hand = sl.agreement.PerspectiveScale.fit(
        pairs["score"].to_numpy(), pairs["reference"].to_numpy(), groups=pairs["record"].to_numpy()
    )
    points = np.linspace(0, 1, 21)
    np.testing.assert_allclose(scale.transform(points), by_hand.transform(points))
    assert sl.agreement.PerspectiveScale.exists(
        "profanity-check", sl.load_scorer("profanity-check").version
    )
    with pytest.raises(ValueError, match="'minilm' of version 0 has judged"):
        sl.agreement.PerspectiveScale.of("minilm", "0")
