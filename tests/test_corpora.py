"""Corpora and prompts as users have them, and what is wrong with some of those."""

import json

import numpy as np
import pandas as pd
import pytest

import sasa_lib as sl
from sasa_lib.corpora import fingerprint, labelled, split

PAIRS = sl.assets.DATA_DIR / "contrast_pairs.jsonl"


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "prompt": ["a", "", "b", ""],
            "response": ["one two", "three", "four", "five"],
            "toxicity": [0.1, 0.9, 0.8, 0.2],
        }
    )


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "jsonl.gz"])
def test_a_users_own_file_in_every_format(frame, tmp_path, ending):
    path = tmp_path / f"mine.{ending}"
    if ending == "csv":
        frame.to_csv(path, index=False)
    elif ending == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    corpus = sl.load_corpus("file", path=path)
    assert corpus["response"][:] == frame["response"].tolist()
    assert corpus["prompt"][:] == frame["prompt"].tolist()
    np.testing.assert_allclose(corpus["toxicity"], frame["toxicity"])


def test_columns_are_renamed(frame, tmp_path):
    frame.rename(columns={"response": "comment", "toxicity": "score"}).to_csv(tmp_path / "x.csv")
    columns = {"response": "comment", "toxicity": "score"}
    corpus = sl.load_corpus("file", path=tmp_path / "x.csv", columns=columns)
    assert corpus["response"][:] == frame["response"].tolist()
    with pytest.raises(ValueError, match=r"no column 'text'; it has .*comment"):
        sl.load_corpus("file", path=tmp_path / "x.csv", columns={"response": "text"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"toxicity": [0.1, 1.9, 0.8, 0.2]}, r"toxicity must lie in \[0, 1\], but row 1 has 1.9"),
        ({"response": ["a", " ", None, "b"]}, "2 rows have an empty or missing text.* row 1"),
        ({"toxicity": ["low", "high", "high", "low"]}, r"no column with values in \[0, 1\]"),
    ],
)
def test_bad_content_is_named(frame, tmp_path, change, message):
    frame.assign(**change).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=message):
        sl.load_corpus("file", path=tmp_path / "bad.parquet")


def test_bad_files_and_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown corpus 'jigsaw'; known are embedded"):
        sl.load_corpus("jigsaw")
    with pytest.raises(ValueError, match="no such file"):
        sl.load_corpus("file", path=tmp_path / "absent.csv")
    with pytest.raises(ValueError, match=r"not a \.csv, \.jsonl or \.parquet file"):
        sl.load_corpus("file", path=tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="'file' needs path"):
        sl.load_corpus("file")
    (tmp_path / "broken.jsonl").write_text('{"response": "a", "toxi')
    with pytest.raises(ValueError, match=r"broken.jsonl cannot be read: "):
        sl.load_corpus("file", path=tmp_path / "broken.jsonl")
    with pytest.raises(ValueError, match=r"unknown subset 'mild'; known are toxic"):
        sl.load_prompts("embedded", subset="mild")


def test_files_of_another_format_are_told_from_the_published_ones(frame, tmp_path):
    frame.to_csv(tmp_path / "own.csv", index=False)
    for load in (sl.load_corpus, sl.load_prompts):
        with pytest.raises(ValueError, match=r"not RealToxicityPrompts .* 'continuation'"):
            load("rtp", path=tmp_path / "own.csv")
    with pytest.raises(ValueError, match=r"not Civil Comments .* no column 'text'"):
        sl.load_corpus("civil_comments", path=tmp_path / "own.csv")
    with pytest.raises(ValueError, match="row 0 has an empty prompt, or one that is not text"):
        sl.load_prompts("file", path=tmp_path / "own.csv", column="toxicity")


def test_one_class_or_an_unknown_attribute_is_refused(frame, tmp_path):
    frame.to_csv(tmp_path / "x.csv", index=False)
    corpus = sl.load_corpus("file", path=tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"no attribute 'insult'; it has toxicity"):
        labelled(corpus, "insult")
    with pytest.raises(ValueError, match=r"0 examples with toxicity above 0.95.*at least 2"):
        labelled(corpus, "toxicity", 0.95)


def test_the_contrast_pairs_keep_their_guideline():
    pairs = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    assert len(pairs) >= 500
    assert len({pair["prompt"] for pair in pairs}) == len(pairs)
    assert {pair["category"] for pair in pairs} == {
        "insult", "threat", "profanity", "demeaning_generalisation", "identity_attack",
    }  # fmt: skip
    for pair in pairs:
        prompt, toxic, nontoxic = (len(pair[k].split()) for k in ("prompt", "toxic", "nontoxic"))
        assert 4 <= prompt <= 16 and 4 <= toxic <= 18 and 4 <= nontoxic <= 18
        assert abs(toxic - nontoxic) <= 4


def test_a_split_keeps_pairs_together_and_is_repeatable(texts):
    training, held_out = split(texts, seed=3)
    assert not set(training["group"]) & set(held_out["group"])
    assert len(training) + len(held_out) == len(texts)
    assert split(texts, seed=3)[1]["response"][:] == held_out["response"][:]
    assert fingerprint(training) == fingerprint(split(texts, seed=3)[0])
    assert fingerprint(training) != fingerprint(held_out)


def test_realtoxicityprompts_records_become_texts_and_prompts(rtp_path):
    corpus = sl.load_corpus("rtp", path=rtp_path)
    assert len(corpus) == 7000 and "threat" in corpus.column_names
    _, toxic = labelled(corpus)
    assert 0.2 < toxic.mean() < 0.4
    counts = {s: len(sl.load_prompts("rtp", path=rtp_path, subset=s)) for s in ("toxic", None)}
    assert counts == {"toxic": 859, None: 3500}
    assert len(sl.load_prompts("rtp", path=rtp_path, subset="challenging")) == 37


def test_no_embedded_prompt_is_fitted_on():
    try:
        prompts = set(sl.load_prompts("embedded")["prompt"])
        corpus = sl.load_corpus("embedded")
    except sl.AssetError as error:
        pytest.skip(str(error))
    assert not prompts & set(corpus["response"])
    _, toxic = labelled(corpus)
    assert toxic.sum() > 1400 and (~toxic).sum() > 2000
