"""Runs on Ray: the rows of the local engine, though actors are killed meanwhile."""

import os
import pickle
import random
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from tiny_lm import WORDS, tiny_boundary, tiny_lm

import sasa_lib as sl
from sasa_lib.engine import cluster
from sasa_lib.evaluation import judging, runs, sampling
from sasa_lib.evaluation.scorers import Scorer

ACTOR_KILLS = 2
SAMPLING = sampling.Sampling(generations=3, max_new_tokens=6, seed=7)
# Without top-k, plain sampling draws from torch's generator: noise without a key.
UNKEYED = sampling.Sampling(generations=3, max_new_tokens=6, seed=7, top_k=0)
KEEP = {"progress": False, "batch_sequences": 6}


class Slow(sl.SASA):
    """SASA that leaves time to be killed."""

    def __call__(self, *arguments, **options):
        time.sleep(0.25)
        return super().__call__(*arguments, **options)


def prompts(number):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=2 + i % 9)) for i in range(2 * number)]
    return list(dict.fromkeys(texts))[:number]


def steered(language_model, kind=sl.SASA):
    """A decoder with a boundary of this very model, by its name."""
    boundary = replace(tiny_boundary(), model=language_model[0].name_or_path)
    return kind(boundary, beta=2.0)


def saved(folder):
    model, tokenizer = tiny_lm()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    saved(folder)
    return sl.load_lm(str(folder), device="cpu")


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "sasa-lib[ray]"')
    # Actors cannot import this file, whose scorer and decoder they are sent.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(
        address="local", num_cpus=3, object_store_memory=100 * 2**20, include_dashboard=False,
        log_to_driver=False, logging_level="ERROR",
    )  # fmt: skip
    yield ray
    ray.shutdown()


def rows(table):
    """What must not depend on the engine, by prompt."""
    columns = ["prompt", "generation", "text", "n_tokens"]
    return table[columns].sort_values(columns[:2], ignore_index=True)


def check_whole(run, expected):
    """The shards hold every row once, and nothing else is left in the folder."""
    stored = pd.concat(pd.read_parquet(file) for file in Path(run).glob("shard-*.parquet"))
    assert not stored.duplicated(["prompt", "generation"]).any()
    pd.testing.assert_frame_equal(rows(stored), rows(expected))
    others = {f.name for f in Path(run).iterdir() if not f.name.startswith("shard-")}
    assert others - {".lock"} == {"manifest.json"}


@pytest.mark.parametrize(
    ("actors", "sampling", "decoder", "begin", "address"),
    [
        (1, UNKEYED, None, "ray", ""),
        (2, SAMPLING, steered, "local", "file://"),  # by fsspec, as an object store would be
    ],
    ids=["unkeyed", "sasa"],
)
def test_both_engines_make_the_same_run(
    ray, language_model, tmp_path, actors, sampling, decoder, begin, address
):
    texts = prompts(40)
    options = {"method": "m", "custom_generate": decoder and decoder(language_model), **KEEP}
    local = runs.generate(*language_model, texts, sampling, folder=tmp_path / "a", **options)
    options["folder"] = f"{address}{tmp_path / 'b'}"
    on_ray = {"engine": "ray", "actors": actors}
    if begin is not None:  # the other engine finishes what one has begun, in another order
        first = on_ray if begin == "ray" else {}
        half = runs.generate(*language_model, texts[::-2], sampling, **options, **first)
        run = Path(half.attrs["run"].removeprefix(address))
        before = set(run.glob("shard-*"))
        (run / ".shard-0123.parquet.4567.tmp").write_bytes(b"half a sh")
    last = {} if begin == "ray" else on_ray
    turned = runs.generate(*language_model, texts[::-1], sampling, **options, **last)
    assert turned["prompt"].tolist() == [text for text in texts[::-1] for _ in range(3)]
    assert len(set(turned["text"])) > 60
    pd.testing.assert_frame_equal(rows(turned), rows(local))
    run = Path(turned.attrs["run"].removeprefix(address))
    assert run.name == Path(local.attrs["run"]).name
    check_whole(run, local)
    if begin is not None:
        assert before < set(run.glob("shard-*"))
    deadline = time.monotonic() + 300  # a machine may be busy
    while ray.available_resources().get("CPU") != 3:  # no actor outlives its call
        assert time.monotonic() < deadline
        time.sleep(0.1)


def actors_of(process):
    """The processes of Ray's actors under a process."""
    found = []
    for child in process.children(recursive=True):
        try:
            found += [child] if "MapWorker" in child.cmdline()[0] else []
        except (psutil.Error, IndexError):
            continue
    return found


def test_a_run_whose_actors_are_killed_is_as_one_whose_are_not(ray, language_model, tmp_path):
    texts = prompts(40)
    options = {
        "method": "sasa", "custom_generate": steered(language_model, Slow), "progress": False,
        "batch_sequences": 3,
    }  # fmt: skip
    killed, met, over = [], [], threading.Event()

    def kill():
        rng = random.Random(time.time_ns())
        while len(killed) < ACTOR_KILLS and not over.wait(rng.uniform(0, 2)):
            running = [a for a in actors_of(psutil.Process()) if a.pid not in killed]
            shards = list(tmp_path.glob("b/*/shard-*"))
            if running and (shards or not killed):  # one while it starts, the others at work
                victim = rng.choice(running)
                victim.kill()
                killed.append(victim.pid)
                met.append(len(shards))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        table = runs.generate(
            *language_model, texts, SAMPLING, folder=tmp_path / "b", engine="ray", actors=2,
            **options,
        )  # fmt: skip
    finally:
        over.set()
        killer.join()
    assert len(set(killed)) >= ACTOR_KILLS, f"the run ended after {len(killed)} kills"
    assert sum(shards > 0 for shards in met) >= ACTOR_KILLS - 1
    # What is drawn is SASA's, without the waiting.
    options["custom_generate"] = steered(language_model)
    local = runs.generate(*language_model, texts, SAMPLING, folder=tmp_path / "a", **options)
    pd.testing.assert_frame_equal(rows(table), rows(local))
    check_whole(table.attrs["run"], local)


def words(texts):
    return np.array([min(1.0, 0.1 * len(text.split())) for text in texts])


def test_judgements_and_embeddings_on_ray_are_those_made_here(ray, language_model, tmp_path):
    options = {"folder": tmp_path, "method": "plain", **KEEP}
    table = runs.generate(*language_model, prompts(8), SAMPLING, **options)
    scorer = Scorer(name="words", version="1", _score=words)
    service = Scorer(name="service", version="1", _score=words, asks_service=True)
    judges = [scorer, service], *language_model
    judged = {
        engine: sl.judging.judged(
            table, *judges, folder=tmp_path / "judged", engine=engine, progress=False,
            perplexity_generations=2, actors=1 if engine == "ray" else None,
        )
        for engine in ("ray", "local")
    }  # fmt: skip
    kept = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "judged").iterdir())
    assert kept == ["likelihood", "service", "words"]
    pd.testing.assert_frame_equal(judged["local"], judged["ray"])  # the latter's, read
    here = sl.judging.judged(table, *judges, perplexity_generations=2, progress=False)
    pd.testing.assert_frame_equal(here, judged["ray"], atol=1e-5)
    assert (here["nll"] > 0).sum() == 16 and (here["service"] == here["words"]).all()

    texts = prompts(20)
    options = {"layers": (0, -1), "progress": False}
    found = {}
    for engine, actors in (("local", None), ("ray", 1)):
        found[engine] = sl.embeddings.extract(
            *language_model, texts, folder=tmp_path / engine, engine=engine, actors=actors,
            **options,
        )  # fmt: skip
    np.testing.assert_allclose(found["ray"], found["local"], atol=1e-5)
    files = {engine: {f.name for f in (tmp_path / engine).iterdir()} for engine in found}
    assert files["ray"] == files["local"] and len(files["ray"]) == 2


def test_an_actor_loads_its_own_scorer_of_the_same_version(monkeypatch):
    scorer = sl.load_scorer("profanity-check")
    sent = pickle.dumps(scorer)
    assert len(sent) < 1000
    assert pickle.loads(sent).version == scorer.version
    monkeypatch.setattr("sasa_lib.evaluation.scorers.loading.version", lambda package: "0.0")
    with pytest.raises(ValueError, match=r"is of version 0\.0, the one given of .*: install"):
        judging._scoring(pickle.loads(sent), scorer.version, False)


def test_a_scorer_that_asks_a_service_is_asked_by_the_driver(language_model, tmp_path, monkeypatch):
    items = []

    class Here(cluster.Pool):
        def each(self, make, parts):
            items.append(len(parts))
            work = make()
            return (work(part) for part in parts)

    monkeypatch.setattr(cluster, "pool", lambda engine, actors: Here(5, "cpu"))
    table = runs.generate(*language_model, ["it"], SAMPLING, folder=tmp_path, method="m", **KEEP)
    for name, asks in (("a", False), ("b", True)):
        scorer = Scorer(name=name, version="1", _score=words, asks_service=asks)
        scored = judging.judged(table, [scorer], *language_model, progress=False)
        assert (scored[name] == words(table["text"])).all()
    # The prompt; the scorer without a service, and twice the judging model.
    assert items == [1, 1, 1, 1]


def test_bad_prompts_are_set_aside_by_actors_as_well(ray, language_model, tmp_path):
    texts = [*prompts(12), "the cat " * 40]
    bad = texts[3]

    def choosy(model, input_ids, **options):
        ids = tokenizer(bad)["input_ids"]
        if any(row[-len(ids) :].tolist() == ids for row in input_ids):
            raise RuntimeError("probability tensor contains inf")
        return sl.decoding.PlainSampling(SAMPLING.seed)(model, input_ids, **options)

    tokenizer = language_model[1]
    choosy.seed = SAMPLING.seed
    options = {"method": "m", "custom_generate": choosy, "set_aside": True, **KEEP}
    found = {}
    for engine in ("local", "ray"):
        with pytest.warns(UserWarning, match="1 of 13 prompts set aside, such as 3: RuntimeError"):
            made = runs.generate(
                *language_model, texts, SAMPLING, folder=tmp_path / engine, engine=engine,
                actors=1 if engine == "ray" else None, **options,
            )  # fmt: skip
        aside = pd.read_parquet(Path(made.attrs["run"], "set-aside.parquet"))
        assert aside["row"].tolist() == [3, 12]
        found[engine] = rows(made)
    pd.testing.assert_frame_equal(*found.values())
    assert found["ray"]["prompt"].nunique() == 11


@pytest.mark.parametrize(
    ("gpus", "each", "expected"),
    [
        ([0, 0], "", cluster.Pool(8, "cpu", 0)),
        ([8, 0], "", cluster.Pool(8, "cuda:0", 1)),
        ([3, 3], "2", cluster.Pool(2, "cuda:0", 2)),
        ([2, 2], "4", "SASA_ACTOR_GPUS is 4, but no machine has more than 2"),
        ([0, 0], "2", "SASA_ACTOR_GPUS is 2, but no machine of the cluster has a GPU"),
        ([1, 1], "two", "SASA_ACTOR_GPUS must be a whole number of at least 1, got 'two'"),
    ],
)
def test_there_is_an_actor_for_the_gpus_that_a_model_needs(ray, monkeypatch, gpus, each, expected):
    machines = [
        {"Alive": True, "Resources": {"CPU": 4.0} | ({"GPU": float(n)} if n else {})} for n in gpus
    ]
    machines.append({"Alive": False, "Resources": {"CPU": 4.0, "GPU": 4.0}})
    monkeypatch.setattr(ray, "nodes", lambda: machines)
    monkeypatch.setenv(cluster.ACTOR_GPUS, each)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            cluster.pool("ray")
    else:
        assert cluster.pool("ray") == expected


def test_a_model_that_actors_cannot_have_is_named(ray, tmp_path):
    model, tokenizer = tiny_lm()
    options = {"folder": tmp_path, "method": "plain", "engine": "ray", "actors": 1, **KEEP}
    saved(tmp_path / "model")
    model.name_or_path = str(tmp_path / "model")
    model.lm_head.weight.data *= 2
    with pytest.raises(ValueError, match=r"an actor that loads .* gets other weights .*: save"):
        runs.generate(model, tokenizer, ["it"], SAMPLING, **options)
    unsendable = Slow(tiny_boundary(), beta=2.0)
    unsendable.lock = threading.Lock()
    with pytest.raises(ValueError, match="cannot send this to other processes"):
        runs.generate(model, tokenizer, ["it"], SAMPLING, custom_generate=unsendable, **options)


def test_the_folder_is_returned_where_rows_need_not_fit_into_memory(language_model, tmp_path):
    options = {"folder": tmp_path, "method": "plain", **KEEP}
    run = runs.generate(*language_model, ["it", "a"], SAMPLING, table=False, **options)
    table = runs.generate(*language_model, ["it", "a"], SAMPLING, **options)
    assert str(run) == table.attrs["run"]
    check_whole(run, table)


def test_without_ray_it_is_said_how_to_install_it(language_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    options = {"folder": tmp_path, "method": "plain", **KEEP}
    with pytest.raises(ImportError, match=r'pip install "sasa-lib\[ray\]"'):
        runs.generate(*language_model, ["it"], SAMPLING, engine="ray", **options)
    monkeypatch.setenv(cluster.ENGINE, "ray")
    with pytest.raises(ImportError, match=r'pip install "sasa-lib\[ray\]"'):
        runs.generate(*language_model, ["it"], SAMPLING, **options)
    assert not list(tmp_path.iterdir())
    runs.generate(*language_model, ["it"], SAMPLING, engine="local", **options)


def methods(model, tokenizer):
    """Every method that notebooks run."""
    boundary = replace(tiny_boundary(), model=model.name_or_path)
    sasa = sl.SASA(boundary, 1.0, form="posterior", seed=7)
    rng = np.random.default_rng(0)
    reward = sl.baselines.RewardModel(model, tokenizer, rng.normal(size=32).astype("float32"), 0.5)
    return {
        "plain": sl.decoding.PlainSampling(7),
        "sasa": sasa,
        "best-of": sl.BestOf(boundary, 2, then=sasa),
        "rad": sl.baselines.RAD(reward, tokenizer, 10.0, seed=7),
        "word-filter": sl.baselines.WordFilter(tokenizer, ["cat"], then=sasa),
        "self-debiasing": sl.baselines.SelfDebiasing(tokenizer, ["a dog"], decay=10.0, seed=7),
    }


def test_every_method_travels_without_the_model(ray, language_model, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_LOADED", {})
    sent = language_model[0], methods(*language_model)
    model, decoders = pickle.loads(cluster._pickled(sent, cluster.Pool(1, "cpu")))
    assert model is not language_model[0] and model.name_or_path == language_model[0].name_or_path
    assert decoders["rad"].reward.model is model  # loaded once
    for name, decoder in sent[1].items():
        found = [
            runs.generate(
                lm, language_model[1], prompts(5), SAMPLING, folder=tmp_path / str(i),
                method=name, custom_generate=one, **KEEP,
            )
            for i, (lm, one) in enumerate([(language_model[0], decoder), (model, decoders[name])])
        ]  # fmt: skip
        pd.testing.assert_frame_equal(*map(rows, found))
        here, there = (Path(table.attrs["run"]).name for table in found)
        assert here == there


class TwoArgumentsError(Exception):
    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


def test_an_error_that_cannot_travel_is_told_in_words():
    for error, kind in (
        (ValueError("no"), ValueError),
        (TwoArgumentsError("no", "way"), RuntimeError),
    ):
        try:
            raise error
        except Exception as raised:
            noted = pickle.loads(pickle.dumps(cluster._noted(raised)))
        assert type(noted) is kind and "no" in str(noted)
        assert "in an actor of Ray" in noted.__notes__[0] and "raise error" in noted.__notes__[0]


def test_an_interrupt_waits_until_ray_has_started():
    before = signal.getsignal(signal.SIGINT)
    started = False
    with pytest.raises(KeyboardInterrupt), cluster._interrupts_later():
        os.kill(os.getpid(), signal.SIGINT)
        started = True
    assert started and signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "unknown engine 'spark'; known are local, ray"),
        ({"engine": "ray", "actors": 0}, "actors must be a whole number of at least 1, got 0"),
        ({"actors": 2}, "actors are Ray's: give engine='ray' with them"),
    ],
)
def test_an_engine_that_is_none_is_refused(language_model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        runs.generate(*language_model, ["it"], SAMPLING, folder=tmp_path, method="plain", **options)
    assert not list(tmp_path.iterdir())
