"""`python -m sasa_lib score`: every row of a file with its scores, whatever else is in it."""

import numpy as np
import pandas as pd
import pytest

import sasa_lib as sl
from sasa_lib import __main__ as command
from sasa_lib.evaluation import judging

TEXTS = ["have a lovely day", "you are a stupid idiot", "", "have a lovely day", "shut up, moron"]


def score(file, out, *options):
    command.main(["score", str(file), "--out", str(out), *options])


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_row_keeps_what_it_has_and_gets_what_the_scorer_says(tmp_path, capsys, ending):
    file = tmp_path / "texts.jsonl"
    pd.DataFrame({"id": range(5), "said": TEXTS}).to_json(file, orient="records", lines=True)
    out = tmp_path / f"scored{ending}"
    score(file, out, "--column", "said", "--scorer", "minilm", "profanity-check")
    read = pd.read_csv if ending == ".csv" else pd.read_parquet
    found = read(out)
    assert list(found) == ["id", "said", "minilm", "profanity-check"]
    assert list(found["said"].fillna("")) == TEXTS and list(found["id"]) == list(range(5))
    for name in ("minilm", "profanity-check"):
        np.testing.assert_allclose(found[name], sl.load_scorer(name)(TEXTS), rtol=1e-6)
    assert "minilm: 5 texts, 40.0% over 0.5" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "texts.jsonl"]


def test_a_row_without_a_text_is_set_aside_and_said(tmp_path, capsys):
    file, out = tmp_path / "texts.jsonl", tmp_path / "scored.csv"
    file.write_text('{"text": "you idiot"}\n{"text": null}\n{"text": "a tree"}\n')
    score(file, out)
    assert pd.read_csv(out)["minilm"].isna().tolist() == [False, True, False]
    assert "set aside: row 1 " in capsys.readouterr().out


def test_a_file_without_any_text_is_written_without_scores(tmp_path, capsys):
    file, out = tmp_path / "texts.jsonl", tmp_path / "scored.csv"
    file.write_text('{"text": null}\n{"text": 5}\n')
    score(file, out)
    assert pd.read_csv(out)["minilm"].isna().all()
    assert "minilm: 0 texts\n" in capsys.readouterr().out


def test_rows_that_parquet_cannot_hold_are_said_in_a_sentence(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a tree", "id": 1}\n{"text": "a cat", "id": "two"}\n')
    with pytest.raises(SystemExit, match=r"do not fit into Parquet .*let --out end in \.csv"):
        score(file, tmp_path / "scored.parquet")
    assert not (tmp_path / "scored.parquet").exists()


def test_what_was_scored_before_a_kill_is_not_scored_again(tmp_path, monkeypatch):
    texts = [f"text number {i}, you idiot" for i in range(5)]
    table, asked = pd.DataFrame({"text": texts}), []

    class Killed(BaseException):
        pass

    def scored(batch):
        if len(asked) == 2:
            raise Killed
        asked.extend(batch)
        return np.full(len(batch), 0.25)

    scorer = sl.scorers.Scorer("slow", "1", scored)
    monkeypatch.setattr(judging, "JUDGED_AT_ONCE", 1)
    with pytest.raises(Killed):
        judging.with_scores(table, "text", [scorer], folder=tmp_path / "kept")
    assert asked == texts[:2]
    asked.insert(0, "counted")
    found, aside = judging.with_scores(table, "text", [scorer], folder=tmp_path / "kept")
    assert asked[1:] == texts and not aside and (found["slow"] == 0.25).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scored.xlsx", [], r"must end in .parquet or .csv"),
        ("texts.csv", [], "is there already"),
        ("scored.csv", ["--column", "txt"], "column"),
        ("scored.csv", ["--scorer", "minilmm"], "unknown scorer 'minilmm'"),
        (
            "scored.csv",
            ["--scorer", "minilm", "minilm"],
            "would be there twice",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, name, options, message):
    (tmp_path / "texts.csv").write_text("text\nyou idiot\n")
    with pytest.raises(SystemExit, match=message):
        score(tmp_path / "texts.csv", tmp_path / name, *options)
    assert not (tmp_path / "scored.csv").exists()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"nowhere\.csv"):
        score(tmp_path / "nowhere.csv", tmp_path / "scored.csv")


def test_metrics_over_prompts_are_those_of_the_library_and_on_perspectives_scale(tmp_path, capsys):
    file, rng = tmp_path / "texts.jsonl", np.random.default_rng(0)
    texts = [TEXTS[i] for i in rng.choice([0, 1, 4], size=12)]
    prompts = [f"prompt {i % 4}" for i in range(12)]
    pd.DataFrame({"prompt": prompts, "text": texts}).to_json(file, orient="records", lines=True)
    score(file, tmp_path / "scored.csv", "--prompts", "prompt")
    said = capsys.readouterr().out
    judge = sl.load_scorer("minilm")
    scores = judge(texts).reshape(3, 4).T
    toxicity, rate = (row["value"] for _, row in sl.statistics.over_prompts(scores).iterrows())
    assert toxicity == pytest.approx(sl.metrics.expected_max_toxicity(scores))
    assert f"minilm, 4 prompts: expected maximum toxicity {toxicity:.3f} (" in said
    assert f"toxic rate {rate:.3f} (" in said
    scale = sl.agreement.PerspectiveScale.of("minilm", judge.version)
    value, low, high = scale.equivalent(scores).loc["expected_max_toxicity"]
    expected = f"expected maximum toxicity {value:.3f} ({low:.3f} to {high:.3f})"
    assert f"Perspective, by that and its error, 4 prompts: {expected}" in said


def test_prompts_with_unlike_numbers_of_texts_are_refused_before_scoring(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a", "p": "x"}\n{"text": "b", "p": "x"}\n{"text": "c", "p": "y"}\n')
    with pytest.raises(SystemExit, match="here some have 1 and some 2"):
        score(file, tmp_path / "scored.csv", "--prompts", "p")
    assert not (tmp_path / "scored.csv").exists()


def test_what_follows_lm_eval_is_the_harnesss_own(monkeypatch):
    given = []
    monkeypatch.setattr(command, "_lm_eval", given.append)
    for arguments in (["--model", "sasa"], ["run", "--help"], ["--help"]):
        command.main(["lm-eval", *arguments])
        assert given.pop() == arguments
