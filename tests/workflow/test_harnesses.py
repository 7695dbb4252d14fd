"""Inspect AI and lm-evaluation-harness with our tasks, judge and steered model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sasa_lib as sl
from sasa_lib.evaluation import metrics
from sasa_lib.harness.steered import load_steered
from sasa_lib.texts.assets import cache_dir

HARNESS = Path(sys.prefix) / "harness" / "bin"
MODEL = "smollm2-135m-instruct"
METRICS = ("expected_max_toxicity", "toxic_rate", "toxic_fraction")

pytestmark = pytest.mark.skipif(
    not (HARNESS / "inspect").exists(), reason="`make test` makes the harnesses' environment"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harnesses")
    environment = os.environ | {"SASA_CACHE": str(cache_dir().absolute())}
    steered = (
        "inspect", "eval", "sasa_lib/realtoxicityprompts", "--model", f"sasa/{MODEL}",
        "-M", "beta=4", "-T", "source=embedded", "-T", "generations=3", "--limit", "2",
        "--display", "none",
    )  # fmt: skip
    runs = ("python", Path(__file__).with_name("harness_runs.py"), folder)
    for name, *arguments in (steered, runs):
        done = subprocess.run(
            [HARNESS / name, *arguments], cwd=folder, env=environment, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture
def made_here(tmp_path):
    """Texts of this library's own runs, and their scores [prompts, generations]."""
    return lambda *run: own_run(tmp_path, *run)


def own_run(folder, prompts, beta, generations):
    method = load_steered(MODEL, beta=beta).method
    sampling = sl.sampling.Sampling(generations=generations)
    table = sl.runs.generate(
        *sl.load_lm(MODEL), prompts, sampling, method="m", custom_generate=method, folder=folder,
        progress=False,
    )  # fmt: skip
    table["minilm"] = sl.load_scorer("minilm")(table["text"].tolist())
    texts = table.groupby("prompt")["text"].apply(list).to_dict()
    return texts, metrics.score_matrix(table, "minilm")


def first_prompts():
    return sl.load_prompts("embedded", subset="toxic")["prompt"][:2]


def test_inspect_says_what_our_own_metrics_say_of_the_same_texts(found, made_here):
    steered = found["inspect steered"]
    assert steered["status"] == "success"
    texts, scores = made_here(first_prompts(), 4, 3)
    assert {p: sorted(t) for p, t in steered["texts"].items()} == {
        p: sorted(t) for p, t in texts.items()
    }
    for name in (*METRICS, "mean_toxicity"):
        of_inspect = steered["scores"][name]
        assert of_inspect["mean"] == pytest.approx(getattr(metrics, name)(scores), abs=1e-6)
        assert of_inspect["low"] <= of_inspect["mean"] <= of_inspect["high"]
    scale = sl.agreement.PerspectiveScale.of("minilm", sl.load_scorer("minilm").version)
    assert steered["scores"]["toxicity"] == pytest.approx(
        {
            f"perspective_{name}{ending}": row[column]
            for name, row in scale.equivalent(scores).iterrows()
            for column, ending in (("value", ""), ("low", "_low"), ("high", "_high"))
        },
        abs=1e-3,
    )
    assert found["under way"] == {}  # as long as prompts have unlike numbers of generations
    low, high = sl.statistics.wilson_interval(scores.max(axis=1) > 0.5)
    assert steered["scores"]["toxic_rate"]["low"] == pytest.approx(low)
    assert steered["scores"]["toxic_rate"]["high"] == pytest.approx(high)


def test_questions_are_asked_by_the_chat_template_and_refusals_counted(found, made_here):
    plain = found["inspect plain"]
    assert plain["status"] == "success" and "refused" in plain["scores"]
    asked = sl.load_prompts("do-not-answer")
    rendered = sl.prompts.chat(asked.select(range(2)), sl.load_lm(MODEL)[1])["prompt"]
    texts, _ = made_here(rendered, 0, 1)
    for answer, prompt in zip(plain["texts"].values(), rendered, strict=True):
        assert answer[0] and texts[prompt][0].startswith(answer[0])  # which was cut at five tokens


def test_what_a_provider_cannot_do_is_said_and_is_no_score(found):
    broken = found["inspect broken"]
    assert broken["status"] == "error" and not broken["scores"]
    assert "the provider sasa does not know 'frequency_penalty'" in broken["error"]
    assert "reads text alone" in found["picture"]
    assert "the provider sasa has the seed 0: give -M seed=" in found["seed"]
    assert found["options"] == {
        "max_new_tokens": 3, "do_sample": False, "stop_strings": ["x"]
    }  # fmt: skip


def test_lm_eval_says_what_our_own_metrics_say_of_the_same_texts(found, made_here):
    run = found["lm-eval steered"]
    texts, scores = made_here(first_prompts()[:1], 4, 25)
    assert run["texts"] == texts
    results = run["results"]["sasa_realtoxicityprompts"]
    for metric in METRICS:
        expected = getattr(metrics, metric)(scores)
        assert results[f"{metric},all"] == pytest.approx(expected, abs=1e-6)
    scale = sl.agreement.PerspectiveScale.of("minilm", sl.load_scorer("minilm").version)
    expected = scale.equivalent(scores).loc["expected_max_toxicity"]
    for end, name in (("value", ""), ("low", "_low"), ("high", "_high")):
        found_here = results[f"perspective_expected_max_toxicity{name},all"]
        assert found_here == pytest.approx(expected[end], abs=1e-3, nan_ok=True)


def test_likelihoods_are_steered_or_refused(found):
    plain, steered = (
        found[f"lm-eval {name}"]["results"]["sasa_crows_pairs"]["likelihood_diff,none"]
        for name in ("plain", "steered")
    )
    assert abs(plain - steered) > 1e-3
    assert "Accept chooses among whole continuations" in found["lm-eval accept"]
