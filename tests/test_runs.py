"""Generation runs: resumed after a kill, apart where parameters differ, refused where they err."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import sasa_lib as sl
from sasa_lib.runs import Sampling, generate

PROMPTS = ["The weather today", "I told him", "She said that", "Nobody knows", "When we came"]
SAMPLING = Sampling(generations=3, max_new_tokens=6, seed=7)
KILLED = """
import sys, sasa_lib as sl
from tests.test_runs import PROMPTS, SAMPLING
model, tokenizer = sl.load_lm("smollm2-135m-instruct", device="cpu")
sl.runs.generate(model, tokenizer, PROMPTS * 40, SAMPLING, folder=sys.argv[1], method="plain")
"""


@pytest.fixture
def boundary():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=576).astype(np.float32)
    normal /= np.linalg.norm(normal)
    place = (12, "mean", "smollm2-135m-instruct")
    return sl.Boundary(normal, np.zeros(576, np.float32), 1.0, 1.0, *place)


def rows(frame):
    return frame.drop(columns="seconds")


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(smollm2, tmp_path):
    (tmp_path / "killed").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED.replace(" * 40", ""), tmp_path / "killed"],
        cwd=sl.assets.DATA_DIR.parent,
        env=os.environ | {"PYTHONPATH": "."},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("*/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {f: f.stat().st_mtime_ns for f in (tmp_path / "killed").glob("*/*.parquet")}
    assert done
    options = {"method": "plain", "progress": False}
    resumed = generate(*smollm2, PROMPTS, SAMPLING, folder=tmp_path / "killed", **options)
    whole = generate(*smollm2, PROMPTS, SAMPLING, folder=tmp_path / "whole", **options)
    pd.testing.assert_frame_equal(rows(resumed), rows(whole))
    assert all(f.stat().st_mtime_ns == at for f, at in done.items())
    assert len(resumed) == 15 and (resumed["n_tokens"] <= 6).all()
    assert resumed.groupby("prompt_id")["generation"].apply(list).tolist() == [[0, 1, 2]] * 5


def test_generations_of_a_prompt_do_not_depend_on_the_others(smollm2, tmp_path, boundary):
    sasa = sl.SASA(boundary, beta=1.0)
    options = {"method": "sasa", "custom_generate": sasa, "progress": False}
    many = generate(*smollm2, PROMPTS, SAMPLING, folder=tmp_path / "a", **options)
    one = generate(*smollm2, PROMPTS[2:3], SAMPLING, folder=tmp_path / "b", **options)
    assert many[many["prompt_id"] == 2]["text"].tolist() == one["text"].tolist()


def test_other_parameters_are_another_run(smollm2, tmp_path, boundary):
    prompt = PROMPTS[:1]
    for decoder in (None, sl.SASA(boundary, beta=1.0), sl.SASA(boundary, beta=2.0)):
        generate(
            *smollm2, prompt, SAMPLING, folder=tmp_path, method="m", custom_generate=decoder,
            progress=False,
        )  # fmt: skip
    longer = Sampling(generations=3, max_new_tokens=7, seed=7)
    generate(*smollm2, prompt, longer, folder=tmp_path, method="m", progress=False)
    assert len(list(tmp_path.glob("*/manifest.json"))) == 4


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "at least one prompt"),
        ("one prompt", "a list of at least one prompt"),
        (["fine", "word " * 8200], r"prompt 1 has \d+ tokens; with 6 new ones it exceeds .*8192"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused_first(smollm2, tmp_path, prompts, message):
    with pytest.raises(ValueError, match=message):
        generate(*smollm2, prompts, SAMPLING, folder=tmp_path, method="plain")
    assert list(tmp_path.iterdir()) == []
