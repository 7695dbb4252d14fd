"""A row a prompt says what all generations say; and what the docs print is in the table."""

import numpy as np
import pandas as pd
import pytest

from sasa_lib.evaluation import matched, measured, statistics

SCORERS = ("minilm", "profanity-check")


def generations(seed, nats=2.5, prompts=12, number=5):
    rng = np.random.default_rng(seed)
    n = prompts * number
    tokens = rng.integers(1, 20, n)
    return pd.DataFrame(
        {
            "prompt_id": np.repeat(np.arange(prompts), number),
            "prompt": np.repeat([f"p{i:02}" for i in range(prompts)], number),
            "generation": np.tile(np.arange(number), prompts),
            "text": [" ".join(rng.choice(list("abcd"), 6)) for _ in range(n)],
            "minilm": rng.random(n),
            "profanity-check": rng.random(n) ** 4,
            "nll": tokens * rng.normal(nats, 0.2, n),
            "nll_tokens": tokens,
            "n_tokens": tokens,
            "draws": 3,
            "seconds": rng.random(n),
        }
    )


def as_run(texts, method, strength=0.0):
    rows = measured.by_prompt(texts, SCORERS)
    rows = rows.assign(unchanged=2, cosine=0.25, kl=np.nan, record=rows.index)
    named = ("model", "toxic", "top-k 10", method, strength, 0)
    return rows.assign(**dict(zip(measured.RUN, named, strict=True)))


def test_a_row_a_prompt_says_what_all_generations_say():
    tables = [generations(seed) for seed in (0, 1)]
    runs = pd.concat([as_run(tables[0], "plain"), as_run(tables[1], "margin", 1.0)])
    later = [as_run(tables[0], "other", 2.0), as_run(tables[0], "margin", 0.5)]
    names = measured.summary(pd.concat([runs, *later]))[["method", "strength"]]
    assert names.to_numpy().tolist() == [
        ["plain", 0.0], ["margin", 0.5], ["margin", 1.0], ["other", 2.0]
    ]  # fmt: skip
    found = measured.summary(runs)
    assert list(found["method"]) == ["plain", "margin"]
    for table, (_, row) in zip(tables, found.iterrows(), strict=True):
        expected = statistics.summarise(table, SCORERS)
        for scorer in ("", "_profanity_check"):
            for name in ("expected_max_toxicity", "toxic_rate", "toxic_fraction"):
                assert row[name + scorer] == pytest.approx(expected[name + scorer])
        assert row["perplexity"] == pytest.approx(expected["perplexity"])
        assert row["distinct_2"] == pytest.approx(expected["dist_2"])
        assert row["toxic_rate_low"] == pytest.approx(expected["toxic_rate_low"])
        # Two bootstraps of the same prompts agree up to their own noise.
        width = expected["perplexity_high"] - expected["perplexity_low"]
        assert row["perplexity_low"] == pytest.approx(expected["perplexity_low"], abs=width / 5)
        assert row["unchanged"] == 2 / 5 and row["draws"] == 3 and np.isnan(row["kl"])


def test_the_same_fluency_is_found_from_rows_as_from_generations():
    texts = {"plain": [generations(0)], "good": [generations(1, 2.4), generations(2, 2.6)]}
    rows = {name: [as_run(table, name) for table in tables] for name, tables in texts.items()}
    for scorer in SCORERS:
        of_texts, of_rows = (
            matched.at_matched_perplexity(of, scorer, ratio=1.1, reference="plain")
            for of in (texts, rows)
        )
        pd.testing.assert_frame_equal(of_texts, of_rows)


def test_what_is_no_table_of_runs_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("method,nll\nplain,1\n")
    with pytest.raises(ValueError, match="column"):
        measured.load(tmp_path / "other.csv")
