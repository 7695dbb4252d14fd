"""Methods at the same fluency: the path by a naive search, and no reward for more strengths."""

import numpy as np
import pandas as pd
import pytest

from sasa_lib.evaluation import matched, statistics


def table(toxicity, nats):
    """A generation a prompt, of ten tokens each."""
    return pd.DataFrame(
        {
            "prompt_id": range(len(toxicity)),
            "prompt": [f"p{i:03}" for i in range(len(toxicity))],
            "minilm": toxicity,
            "nll": 10 * np.asarray(nats),
            "nll_tokens": 10,
        }
    )


def test_the_lowest_point_is_that_of_a_fine_search():
    rng = np.random.default_rng(0)
    for _ in range(200):
        y, x = rng.random((1, 4)), rng.normal(0.1, 0.2, (1, 4))
        x[0, 0] = 0.0
        (choice,), (share,) = matched._lowest(y, x, 0.15)
        after = min(choice + 1, 3)
        found = (1 - share) * y[0, choice] + share * y[0, after]
        assert (1 - share) * x[0, choice] + share * x[0, after] <= 0.15 + 1e-9
        t = np.linspace(0, 1, 2001)
        searched = min(
            ((1 - t) * y[0, k] + t * y[0, k + 1])[(1 - t) * x[0, k] + t * x[0, k + 1] <= 0.15].min(
                initial=np.inf
            )
            for k in range(3)
        )
        assert found == pytest.approx(searched, abs=2e-3)


@pytest.mark.parametrize("strengths", [1, 6])
def test_more_strengths_are_no_advantage_where_no_method_has_an_effect(strengths):
    rng = np.random.default_rng(1)
    differences, below = [], 0
    for _ in range(150):

        def some(rng=rng):
            return table(rng.beta(2, 2, 64), rng.normal(2.5, 0.2, 64))

        methods = {
            "plain": [some()], "one": [some()], "several": [some() for _ in range(strengths)]
        }  # fmt: skip
        found = matched.at_matched_perplexity(
            methods, "minilm", ratio=1.2, reference="one", resamples=200
        )
        differences.append(found["difference"]["several"])
        below += found["difference_high"]["several"] < 0
    error = np.std(differences) / np.sqrt(len(differences))
    assert abs(np.mean(differences)) < 3 * error
    assert below <= 10  # of 150; a fortieth is right


def test_what_steers_is_ahead_with_an_interval_that_says_so():
    rng = np.random.default_rng(2)
    toxicity, nats = rng.beta(4, 2, 64), rng.normal(2.5, 0.2, 64)
    good = [table(toxicity * s, nats + 0.1 * (1 - s)) for s in (0.8, 0.6, 0.4)]
    methods = {"plain": [table(toxicity, nats)], "rad": [table(toxicity * 0.9, nats + 0.05)]}
    found = matched.at_matched_perplexity(
        methods | {"good": good}, "minilm", ratio=1.03, reference="rad"
    )
    at = found.loc["good"]
    # A nat more of 0.1 a unit: 3% more perplexity is at a share of 1 - log(1.03) / 0.1.
    assert at["expected_max_toxicity"] == pytest.approx(
        toxicity.mean() * (1 - np.log(1.03) / 0.1), abs=1e-6
    )
    assert at["perplexity_ratio"] == pytest.approx(1.03) and at["difference_high"] < 0
    assert found.loc["rad", "difference"] == 0


def test_a_single_prompt_has_no_interval():
    methods = {"plain": [table([0.8], [2.0])], "one": [table([0.4], [2.0])]}
    found = matched.at_matched_perplexity(methods, "minilm", ratio=1.1)
    assert found.loc["one", "expected_max_toxicity"] == pytest.approx(0.4)
    assert np.isnan(found.loc["one", "expected_max_toxicity_low"])


def test_a_rate_of_nothing_is_not_certain():
    low, high = statistics.wilson_interval(np.zeros(16, dtype=bool))
    assert low == pytest.approx(0, abs=1e-12) and high == pytest.approx(0.194, abs=1e-3)
