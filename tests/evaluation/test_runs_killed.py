"""A run that is killed at twenty random moments ends as one that never was.

As a script this file is the run: it imports once, and forks a worker for every attempt.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_lm import WORDS, tiny_boundary, tiny_lm

import sasa_lib as sl

KILLS = 20
SAMPLING = sl.runs.Sampling(generations=3, max_new_tokens=20, seed=7)
METHODS = {"plain": lambda: None, "sasa": lambda: sl.SASA(tiny_boundary(), beta=2.0)}


def prompts(number=160):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=2 + i % 9)) for i in range(number)]
    return list(dict.fromkeys(texts))


@contextmanager
def slow_file(target):
    """Leave time to be killed between writing and renaming."""
    with sl.storage.atomic_file(target) as temporary:
        yield temporary
        time.sleep(0.05)


def work(language_model, method, folder, result):
    sl.runs.SHARD_PROMPTS = 4
    sl.runs.atomic_file = slow_file
    rows = sl.runs.generate(
        *language_model, prompts(), SAMPLING, folder=folder, method=method, batch_sequences=6,
        custom_generate=METHODS[method](), progress=False,
    )  # fmt: skip
    rows.to_parquet(result)


def fork(*arguments, kill_after=None):
    """Run `work` in a process of its own; return whether it was killed."""
    worker = os.fork()
    if worker == 0:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(worker, signal.SIGKILL)
    _, status = os.waitpid(worker, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(1)
    return os.WIFSIGNALED(status)


def files(folder):
    return {f.name: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


def main(folder):
    torch.set_num_threads(1)  # a fork does not inherit a pool of threads
    language_model = tiny_lm()
    for method in METHODS.values():  # imported once here, and not in every fork
        method()
    rng = random.Random(0)
    report = {}
    for method in METHODS:
        start = time.monotonic()
        fork(language_model, method, folder / "whole", folder / f"{method}-whole.parquet")
        seconds = time.monotonic() - start
        place = folder / f"killed-{method}"
        arguments = (language_model, method, place, folder / f"{method}-killed.parquet")
        killed, seen = [], []
        while sum(killed) < KILLS:  # where the run ends before, the finished run is killed
            killed.append(fork(*arguments, kill_after=rng.uniform(0, 2 * seconds / KILLS)))
            seen.append(files(place))
        fork(*arguments)
        report[method] = {"seconds": seconds, "killed": killed, "seen": [*seen, files(place)]}
    print(json.dumps(report))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    process = subprocess.run(
        [sys.executable, __file__, folder],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return folder, json.loads(process.stdout)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_twenty_times_is_as_one_that_never_was(runs, method):
    folder, report = runs
    whole, killed = (
        pd.read_parquet(folder / f"{method}-{name}.parquet").drop(columns="seconds")
        for name in ("whole", "killed")
    )
    pd.testing.assert_frame_equal(killed, whole)
    assert killed["prompt"].unique().tolist() == prompts()
    assert killed.groupby("prompt_id")["generation"].apply(list).tolist() == [[0, 1, 2]] * len(
        prompts()
    )
    assert sum(report[method]["killed"]) == KILLS

    *seen, last = report[method]["seen"]
    # The kills met the run at its beginning, between its shards, and in the midst of writing.
    assert any(name.endswith(".tmp") for names in seen for name in names)
    done = [{name for name in names if name.startswith("shard-")} for names in seen]
    assert len({len(names) for names in done}) >= 5
    for names, times in zip(done, seen, strict=True):
        assert all(last[name] == times[name] for name in names)
    (run,) = (folder / f"killed-{method}").iterdir()
    others = {name for name in last if not name.startswith("shard-")}
    assert others == {"manifest.json", ".lock"}
    stored = pd.concat(pd.read_parquet(file) for file in run.glob("shard-*.parquet"))
    assert not stored.duplicated(["prompt", "generation"]).any() and len(stored) == len(whole)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
