"""Generation runs: resumed after a kill, apart where parameters differ, refused where they err."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from tiny_lm import tiny_boundary, tiny_lm
from upath import UPath

import sasa_lib as sl
from sasa_lib.evaluation import runs
from sasa_lib.evaluation.runs import generate
from sasa_lib.evaluation.sampling import Sampling
from sasa_lib.evaluation.scorers import Scorer

PROMPTS = ["The weather today", "I told him", "She said that", "Nobody knows", "When we came"]
SAMPLING = Sampling(generations=3, max_new_tokens=6, seed=7)


@pytest.fixture
def boundary():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=576).astype(np.float32)
    normal /= np.linalg.norm(normal)
    place = (12, "mean", "smollm2-135m-instruct")
    return sl.Boundary(normal, np.zeros(576, np.float32), 1.0, 1.0, *place)


def rows(frame):
    return frame.drop(columns="seconds")


@pytest.fixture(scope="module")
def tiny():
    return tiny_lm()


@pytest.mark.parametrize("method", ["plain", *sl.decoding.FORMS])
def test_generations_of_a_prompt_do_not_depend_on_its_batch(tiny, tmp_path, method):
    decoder = None if method == "plain" else sl.SASA(tiny_boundary(), beta=2.0, form=method)
    texts = ["the cat", "she sees a dog and a tree or not", "it", "he likes the bird", "the  cat"]
    options = {"method": method, "custom_generate": decoder, "progress": False}
    found = {}
    for name, order, size in (
        ("alone", texts, 1),
        ("together", texts, 100),
        ("pairs, turned round", texts[::-1], 6),
        ("twice", texts * 2, 9),
    ):
        table = generate(
            *tiny, order, SAMPLING, folder=tmp_path / name, batch_sequences=size, **options
        )
        assert table["prompt"].tolist() == [text for text in order for _ in range(3)]
        assert table["generation"].tolist() == [0, 1, 2] * len(order)
        found[name] = table.groupby("prompt")["text"].apply(lambda s: list(s)[-3:]).to_dict()
    alone = found.pop("alone")
    assert all(other == alone for other in found.values())
    # Different texts of the same tokens are one prompt; all others differ.
    assert alone["the cat"] == alone["the  cat"]
    assert len({tuple(generations) for generations in alone.values()}) == 4


def test_a_method_without_keyed_noise_gets_every_prompt_alone(tiny, tmp_path):
    widths = []

    def method(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        widths.append(len(input_ids))
        return model._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
        )

    options = {"custom_generate": method, "method": "own", "progress": False}
    many = generate(*tiny, ["the cat", "a dog"], SAMPLING, folder=tmp_path / "a", **options)
    one = generate(*tiny, ["a dog"], SAMPLING, folder=tmp_path / "b", **options)
    assert widths == [3, 3, 3]
    assert many["text"].tolist()[3:] == one["text"].tolist()


def test_plain_sampling_draws_from_the_models_distribution(tiny, tmp_path):
    model, tokenizer = tiny
    sampling = Sampling(generations=4000, max_new_tokens=1, top_k=6, top_p=0.9, temperature=1.5)
    table = generate(
        model, tokenizer, ["the cat"], sampling, folder=tmp_path, method="plain", progress=False
    )
    with torch.no_grad():
        logits = model(**tokenizer("the cat", return_tensors="pt")).logits[0, -1] / 1.5
    values, tokens = logits.topk(6)
    kept = values.softmax(-1).cumsum(-1).roll(1) < 0.9
    kept[0] = True
    expected = torch.where(kept, values.softmax(-1), 0)
    prompt = tokenizer("the cat")["input_ids"]
    names = [
        tokenizer.decode([*prompt, token], skip_special_tokens=True).removeprefix("the cat")
        for token in tokens
    ]
    expected = dict(zip(names, (expected / expected.sum()).tolist(), strict=True))
    share = table["text"].value_counts(normalize=True)
    assert set(share.index) == {text for text, p in expected.items() if p > 0}
    assert all(abs(share.get(text, 0) - p) < 0.03 for text, p in expected.items())


def test_plain_sampling_is_sasa_without_strength(tiny, tmp_path):
    options = {"folder": tmp_path, "progress": False}
    plain = generate(*tiny, ["the cat", "it"], SAMPLING, method="plain", **options)
    sasa = sl.SASA(tiny_boundary(), beta=0.0, seed=SAMPLING.seed)
    steered = generate(
        *tiny, ["the cat", "it"], SAMPLING, method="sasa", custom_generate=sasa, **options
    )
    assert plain["text"].tolist() == steered["text"].tolist()


def test_generations_of_a_real_model_do_not_depend_on_the_batch(smollm2, tmp_path, boundary):
    sasa = sl.SASA(boundary, beta=1.0)
    options = {"method": "sasa", "custom_generate": sasa, "progress": False}
    many = generate(*smollm2, PROMPTS, SAMPLING, folder=tmp_path / "a", **options)
    one = generate(*smollm2, PROMPTS[2:3], SAMPLING, folder=tmp_path / "b", **options)
    assert many[many["prompt_id"] == 2]["text"].tolist() == one["text"].tolist()
    assert (many["n_tokens"] <= 6).all() and (many["seconds"] > 0).all()


def few(most):
    """Plain sampling for which memory takes so many sequences."""
    plain = sl.decoding.PlainSampling(SAMPLING.seed)

    def method(model, input_ids, **options):
        method.widths.append(len(input_ids))
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(model, input_ids, **options)

    method.widths, method.is_keyed = [], True
    return method


def test_a_batch_that_memory_does_not_take_is_halved_once(tiny, tmp_path, capsys):
    texts = ["the cat", "it", "a dog", "she", "he likes", "the bird", "a tree", "we"]
    method = few(6)
    made = generate(*tiny, texts, SAMPLING, folder=tmp_path, method="m", custom_generate=method)
    assert method.widths == [24, 12, 6, 6, 6, 6]
    assert "2 in a batch" in capsys.readouterr().err
    plain = generate(*tiny, texts, SAMPLING, folder=tmp_path, method="plain", progress=False)
    pd.testing.assert_frame_equal(rows(made), rows(plain))
    with pytest.raises(RuntimeError, match="memory does not take a prompt's 3 generations: ask"):
        generate(*tiny, texts, SAMPLING, folder=tmp_path / "b", method="m", custom_generate=few(2))


BAD = "the dog and the cat and the bird"


def choosy(model, input_ids, **options):
    """Plain sampling that cannot continue `BAD`, the longest prompt."""
    if input_ids.shape[1] > 7 and (input_ids[:, 0] != model.config.pad_token_id).any():
        raise RuntimeError("probability tensor contains inf")
    return sl.decoding.PlainSampling(SAMPLING.seed)(model, input_ids, **options)


choosy.seed = SAMPLING.seed


def test_prompts_that_cannot_be_continued_are_set_aside(tiny, tmp_path, capsys):
    texts = ["the cat", "", BAD, "it", None, "the cat " * 40, "a dog", BAD]
    options = {"folder": tmp_path, "method": "m", "custom_generate": choosy, "progress": False}
    for bad, message in ((texts, "prompt 1 is empty"), (texts[2:4], "contains inf")):
        with pytest.raises((ValueError, RuntimeError), match=message):
            generate(*tiny, bad, SAMPLING, **options)
    options["set_aside"] = True
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        generate(*tiny, [""], SAMPLING, **options)
    with pytest.raises(RuntimeError, match=r"not one of 1 prompts can be continued: .*inf"):
        generate(*tiny, [BAD], SAMPLING, **options)
    options["progress"] = True
    with pytest.warns(
        UserWarning, match=r"of 8 prompts set aside, such as \d: .*set-aside.parquet"
    ):
        made = generate(*tiny, texts, SAMPLING, **options)
    assert "5 set aside" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="set aside"):  # tried again, though nothing else is left
        again = generate(*tiny, texts, SAMPLING, **options)
    pd.testing.assert_frame_equal(again, made)
    assert made["prompt_id"].unique().tolist() == [0, 3, 6]
    good = ["the cat", "it", "a dog"]
    plain = generate(*tiny, good, SAMPLING, folder=tmp_path, method="plain", progress=False)
    columns = ["prompt", "generation", "text", "n_tokens"]
    pd.testing.assert_frame_equal(made[columns], plain[columns])
    aside = pd.read_parquet(f"{made.attrs['run']}/set-aside.parquet")
    assert aside["row"].tolist() == [1, 2, 4, 5, 7] and aside["prompt"][1] == BAD
    for reason, part in zip(
        aside["reason"],
        ["is empty", "contains inf", "must be a str", "exceed", "contains inf"],
        strict=True,
    ):
        assert part in reason
    # A later call of the same run, without them, leaves no file of them.
    generate(*tiny, good, SAMPLING, **options)
    assert not list(tmp_path.glob("*/set-aside.parquet"))


def test_a_broken_device_is_no_fault_of_the_prompts(tiny, tmp_path):
    def broken(model, input_ids, **options):
        if broken.calls:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        broken.calls += 1
        return sl.decoding.PlainSampling(SAMPLING.seed)(model, input_ids, **options)

    broken.calls, broken.seed = 0, SAMPLING.seed
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        generate(
            *tiny, ["the cat", "it", "a dog"], SAMPLING, folder=tmp_path, method="m",
            custom_generate=broken, set_aside=True, batch_sequences=3,
        )  # fmt: skip
    (shard,) = tmp_path.glob("*/shard-*")
    assert len(pd.read_parquet(shard)) == 3 and not list(tmp_path.glob("*/set-aside*"))


def test_a_run_may_lie_at_an_address(tiny, tmp_path):
    texts = ["the cat", "it", "a dog"]
    options = {"method": "plain", "progress": False}
    here = generate(*tiny, texts, SAMPLING, folder=tmp_path, **options)
    generate(*tiny, texts[:2], SAMPLING, folder="memory://bucket/runs", **options)
    there = generate(*tiny, texts, SAMPLING, folder="memory://bucket/runs", **options)
    assert there.attrs["run"].startswith("memory://")
    pd.testing.assert_frame_equal(rows(there), rows(here))
    run = UPath(there.attrs["run"])
    assert len(list(run.glob("shard-*"))) == 2
    left = run / ".shard-01.parquet.23.tmp"
    left.write_bytes(b"half a sh")
    # What two drivers made at once is there twice, and read once.
    twice = run / "shard-twice.parquet"
    twice.write_bytes(next(iter(run.glob("shard-*"))).read_bytes())
    pd.testing.assert_frame_equal(rows(runs.read(run)), rows(runs.read(here.attrs["run"])))
    generate(*tiny, texts, SAMPLING, folder="memory://bucket/runs", **options)
    assert not left.exists()
    options = {"folder": "memory://bucket/judged", "progress": False}
    for score in (lambda texts: np.array([0.5] * len(texts)), None):
        judges = [Scorer(name="length", version="1", _score=score)], *tiny
        assert (sl.judging.judged(there, *judges, **options)["length"] == 0.5).all()

    found = [
        sl.embeddings.extract(*tiny, texts, folder=folder, progress=False)
        for folder in (tmp_path / "e", "memory://bucket/e", "memory://bucket/e")
    ]
    assert (found[0] == found[1]).all() and (found[1] == found[2]).all()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://bucket/runs", "cannot keep anything in s3://bucket/runs: Install s3fs"),
        ("nope://bucket/runs", "cannot keep anything in nope://bucket/runs: .*nope"),
    ],
)
def test_an_address_that_cannot_be_reached_is_refused(tiny, address, message):
    with pytest.raises(ValueError, match=message):
        generate(*tiny, ["it"], SAMPLING, folder=address, method="plain")


def test_a_store_has_a_folder_for_a_run_of_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sl.storage.store("runs/paper").resolve() == tmp_path / "runs" / "paper"
    monkeypatch.setenv(sl.storage.STORE, "memory://bucket")
    assert str(sl.storage.store("runs/paper")) == "memory://bucket/paper"
    assert str(sl.storage.store("runs/sweep-a/beta=1")) == "memory://bucket/sweep-a/beta=1"


def shards(folder):
    return {file: file.stat().st_mtime_ns for file in folder.glob("*/shard-*.parquet")}


def test_a_run_is_kept_in_few_shards_and_only_what_is_missing_is_made(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SHARD_PROMPTS", 4)
    texts = [f"{subject} {verb}" for subject in ("he", "she", "it") for verb in ("sees", "eats")]
    options = {"folder": tmp_path, "method": "plain", "progress": False, "batch_sequences": 6}
    first = generate(*tiny, texts[:5], SAMPLING, **options)
    before = shards(tmp_path)
    assert len(before) == 2
    again = generate(*tiny, texts[:5], SAMPLING, **options)
    pd.testing.assert_frame_equal(again, first)
    assert shards(tmp_path) == before
    more = generate(*tiny, texts, SAMPLING, **options)
    pd.testing.assert_frame_equal(more[more["prompt_id"] < 5], first)
    assert before.items() < shards(tmp_path).items() and len(shards(tmp_path)) == 3
    read = runs.read(more.attrs["run"])
    by = ["prompt", "generation"]
    pd.testing.assert_frame_equal(
        read.drop(columns="prompt_id"),
        more.drop(columns="prompt_id").sort_values(by, ignore_index=True),
    )
    assert read["prompt_id"].tolist() == [i for i in range(6) for _ in range(3)]


def test_a_slow_run_writes_a_shard_before_it_is_full(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SHARD_SECONDS", 0.0)
    options = {"folder": tmp_path, "method": "plain", "progress": False, "batch_sequences": 3}
    generate(*tiny, ["it", "he sees", "a"], SAMPLING, **options)
    assert len(shards(tmp_path)) == 3


def test_what_an_interrupt_finds_is_kept_and_what_a_kill_left_is_removed(tiny, tmp_path):
    calls = []

    class Interrupted(sl.SASA):
        def describe(self):  # else `calls` were a part of it
            return super().describe()

        def __call__(self, *arguments, **options):
            calls.append(arguments)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return super().__call__(*arguments, **options)

    texts = ["it", "he sees", "she sees it", "the cat sees it"]
    sasa = Interrupted(tiny_boundary(), beta=1.0)
    options = {
        "method": "sasa", "custom_generate": sasa, "batch_sequences": 3, "progress": False,
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        generate(*tiny, texts, SAMPLING, folder=tmp_path / "a", **options)
    (run,) = (tmp_path / "a").iterdir()
    assert runs.read(run)["prompt"].nunique() == 2
    left = run / ".shard-0123.parquet.4567.tmp"
    left.write_bytes(b"half a sh")
    resumed = generate(*tiny, texts, SAMPLING, folder=tmp_path / "a", **options)
    assert not left.exists()
    assert len(calls) == 5
    whole = generate(*tiny, texts, SAMPLING, folder=tmp_path / "b", **options)
    pd.testing.assert_frame_equal(rows(resumed), rows(whole))


def test_two_processes_do_not_make_one_run(tiny, tmp_path):
    options = {"folder": tmp_path, "method": "plain", "progress": False}
    table = generate(*tiny, ["it"], SAMPLING, **options)
    with (
        FileLock(f"{table.attrs['run']}/.lock"),
        pytest.raises(RuntimeError, match=r"another process is at work on .*plain-"),
    ):
        generate(*tiny, ["it"], SAMPLING, **options)
    generate(*tiny, ["it"], SAMPLING, **options)


def test_what_is_no_run_or_a_damaged_one_is_named(tiny, tmp_path):
    table = generate(*tiny, ["it"], SAMPLING, folder=tmp_path, method="plain", progress=False)
    with pytest.raises(ValueError, match=r"there are no generations in .*give the folder with"):
        runs.read(tmp_path)
    (shard,) = tmp_path.glob("*/shard-*.parquet")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"cannot be read .*{shard.name}.* delete it"):
        runs.read(table.attrs["run"])


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
        ("one prompt", "expected a list of prompts, got a single str"),
        (["fine", None], "prompt 1 must be a str, got NoneType"),
        (["fine", ""], "prompt 1 is empty"),
        (["fine", "word " * 8200], r"prompt 1 has \d+ tokens and 6 new ones exceed .*8192"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused_first(smollm2, tmp_path, prompts, message):
    with pytest.raises(ValueError, match=message):
        generate(*smollm2, prompts, SAMPLING, folder=tmp_path, method="plain")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "a/b"}, "method must be a name of letters.*got 'a/b'"),
        ({"batch_sequences": 0}, "batch_sequences must be a whole number of at least 1, got 0"),
    ],
)
def test_parameters_of_a_run_out_of_range_are_refused(tiny, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        generate(*tiny, ["it"], SAMPLING, folder=tmp_path, **{"method": "plain"} | options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generations": 0}, "generations must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number of at least 1, got 2.5"),
        ({"top_k": -1}, "top_k must be a whole number of at least 0, got -1"),
        ({"top_p": 0}, "top_p must be a finite number above 0 and at most 1, got 0"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0, got 0.0"),
    ],
)
def test_sampling_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


@pytest.mark.parametrize(
    "method",
    [None, sl.decoding.PlainSampling(0), sl.BestOf(tiny_boundary(), 2)],
    ids=["default", "plain", "best-of"],
)
def test_prompts_are_independent_without_top_k_and_whatever_the_batch(tmp_path, method):
    """A model for which every next token is as likely, so that equal noise makes equal texts."""
    model, tokenizer = tiny_lm()
    torch.nn.init.zeros_(model.lm_head.weight)
    model.generation_config.eos_token_id = None
    sampling = Sampling(generations=4, max_new_tokens=6, top_k=0, top_p=1.0)
    prompts = ["he", "the cat", "bird", "a dog sees"]
    found = [
        generate(
            model, tokenizer, prompts, sampling, folder=tmp_path / str(size), method="plain",
            custom_generate=method, batch_sequences=size, progress=False,
        )["text"].tolist()
        for size in (4, 100)
    ]  # fmt: skip
    assert found[0] == found[1]
    assert len(set(found[0])) == 16
    words = " ".join(found[0]).split()
    assert len(set(words)) > 12


@pytest.mark.parametrize("setting", [
    {"min_length": 14}, {"no_repeat_ngram_size": 1}, {"encoder_repetition_penalty": 5.0},
    {"encoder_no_repeat_ngram_size": 1}, {"forced_bos_token_id": 4}, {"bad_words_ids": [[2, 4]]},
    {"sequence_bias": [[[2, 4], 9.0]]}, {"repetition_penalty": 9.0}, {"min_new_tokens": 4},
    {"exponential_decay_length_penalty": (1, 5.0)}, {"begin_suppress_tokens": [4]},
], ids=str)  # fmt: skip
@pytest.mark.parametrize(
    "method", [None, sl.BestOf(tiny_boundary(), 2, seed=1)], ids=["plain", "best"]
)
def test_what_counts_a_prompts_tokens_does_not_count_padding(tmp_path, setting, method):
    model, tokenizer = tiny_lm()
    tokenizer.pad_token = tokenizer.eos_token
    model.generation_config.pad_token_id = tokenizer.eos_token_id
    for name, value in setting.items():
        setattr(model.generation_config, name, value)
    sampling = Sampling(generations=4, max_new_tokens=8, top_k=0, top_p=1.0)
    prompts = ["the cat sees a dog and a bird or not", "it", "a dog"]
    found = [
        generate(
            model, tokenizer, prompts, sampling, folder=tmp_path / str(size), method="plain",
            custom_generate=method, batch_sequences=size, progress=False,
        )["text"].tolist()
        for size in (4, 100)
    ]  # fmt: skip
    assert found[0] == found[1]


def test_what_a_method_is_made_of_is_in_its_key_and_its_source_is_not(tiny, tmp_path, monkeypatch):
    class Other(sl.decoding.PlainSampling):
        """Has the parameters of plain sampling, and is another method."""

    tokenizer = tiny[1]
    words = sl.baselines.WordFilter

    def methods():
        for then in (sl.decoding.PlainSampling(0), Other(0), sl.decoding.PlainSampling(1)):
            yield words(tokenizer, ["cat"], then=then)
            yield sl.BestOf(tiny_boundary(), 2, then=then)
            yield sl.BestOf(tiny_boundary(), 2, then=words(tokenizer, ["cat"], then=then))
        yield words(tokenizer, ["dog"])
        yield words(tokenizer, ["cat"])

    def made():
        return [
            generate(
                *tiny, ["it"], SAMPLING, folder=tmp_path, method="m", custom_generate=method,
                progress=False,
            ).attrs["run"]
            for method in methods()
        ]  # fmt: skip

    first = made()
    assert len(set(first)) == 11
    embedded = sl.embeddings.extract(*tiny, ["it"], folder=tmp_path / "e", progress=False)
    files = shards(tmp_path) | shards(tmp_path / "e")
    with monkeypatch.context() as patch:  # a comment more in every file
        read = inspect.getsource
        patch.setattr(inspect, "getsource", lambda thing: read(thing) + "# a comment")
        assert made() == first
        again = sl.embeddings.extract(*tiny, ["it"], folder=tmp_path / "e", progress=False)
    assert (again == embedded).all() and len(list((tmp_path / "e").iterdir())) == 1
    assert shards(tmp_path) | shards(tmp_path / "e") == files


def test_a_run_is_that_of_a_kind_of_device_and_not_of_one_of_them(tiny, tmp_path, monkeypatch):
    model, tokenizer = tiny

    def run(device):
        def stop(folder):
            raise InterruptedError(str(folder))

        with monkeypatch.context() as patch, pytest.raises(InterruptedError) as stopped:
            patch.setattr(type(model), "device", property(lambda self: torch.device(device)))
            patch.setattr(runs, "alone", stop)
            generate(model, tokenizer, ["it"], SAMPLING, folder=tmp_path, method="plain")
        return str(stopped.value)

    assert run("cuda:1") == run("cuda:0") == run("cuda") != run("cpu")
