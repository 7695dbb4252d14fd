"""Resumable generation runs: what was asked, what was generated, and what it scored."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import torch
from filelock import FileLock, Timeout
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sasa_lib import cluster, decoding, phrases
from sasa_lib.assets import AssetError, atomic_file, provenance
from sasa_lib.models import fingerprint, text_config
from sasa_lib.scorers import Scorer

SHARD_PROMPTS = 64  # at most in a file, so that a large run is not ten thousand files
SHARD_SECONDS = 60.0  # at most lost by a kill, plus one batch
SHARDS_OF_ACTOR = 8  # at least, if there is as much to do: so none ends long after the others
SCORED_AT_ONCE = 4096  # texts between two writes of a score file
SHARD_SCHEMA = pa.schema(
    {
        "prompt": pa.string(),
        "generation": pa.int64(),
        "text": pa.string(),
        "n_tokens": pa.int64(),
        "seconds": pa.float64(),
    }
)
SCORES_SCHEMA = pa.schema(
    {"text": pa.string(), "score": pa.float64(), "scorer": pa.string(), "version": pa.string()}
)


@dataclass(frozen=True)
class Sampling:
    """How every method of a comparison samples.

    Attributes
    ----------
    generations : int
        Continuations of each prompt, at least 1.
    max_new_tokens : int
        Length of a continuation, at most; at least 1.
    top_k, top_p, temperature
        As in `transformers.GenerationConfig`; top_k = 0 is no top-k.
    seed : int
        The randomness of a prompt's generations comes from this seed and the prompt, and so does
        not depend on which other prompts are in the run.

    Raises
    ------
    ValueError
        A value out of its range.
    """

    generations: int = 25
    max_new_tokens: int = 20
    top_k: int = 10
    top_p: float = 0.9
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("generations", 1), ("max_new_tokens", 1), ("top_k", 0)):
            _check_count(name, getattr(self, name), least)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be a number above 0, got {self.temperature}")


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    folder: str | Path,
    method: str,
    custom_generate: Callable | None = None,
    batch_sequences: int = 100,
    engine: str | None = None,
    actors: int | None = None,
    table: bool = True,
    progress: bool = True,
) -> pd.DataFrame | Path:
    """Generate continuations of every prompt, resuming whatever is already there.

    The longest prompts come first, some in a batch. Whole batches are written together as a
    Parquet file, a shard, of up to `SHARD_PROMPTS` prompts or `SHARD_SECONDS` of work; a run that
    was killed goes on after the last of them, with the batches that it would have made. What is
    all there is only read.

    Parameters
    ----------
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    prompts : sequence of str
        A prompt that is there twice is continued once, and its continuations returned twice.
    sampling : Sampling
    folder : str or Path
        Where runs live. A run's own folder is named after all that it depends on, so that other
        parameters are another run.
    method : str
        Name in the results, such as "plain" or "sasa": letters, digits, "_", "-" and ".".
    custom_generate : callable, optional
        Such as `SASA`; None is plain sampling. What it says of itself by a method `describe`
        belongs to the run's parameters, and so do the source code and the libraries' versions.
    batch_sequences : int
        Sequences in a batch, at most, but at least the generations of one prompt.
    engine : {"local", "ray"}, optional
        As `sasa_lib.cluster.pool` takes it. Ray's actors load the model by its name, and write
        into the folder, which all machines must see. A run may begin on one engine and end on
        another.
    actors : int, optional
        Ray's, as `sasa_lib.cluster.pool` takes it.
    table : bool
        False: return the run's folder, whose rows then need not fit into memory.
    progress : bool

    Returns
    -------
    pandas.DataFrame
        One row a generation: `prompt_id`, `prompt`, `generation`, `text` (without the prompt),
        `n_tokens` (up to and with the end token) and `seconds` (its share of its batch's time).
        `attrs["run"]` names the run's folder. With `table=False` that folder, a Path, instead.

    Raises
    ------
    ValueError
        No prompts, a prompt that leaves no room in the model's context, a parameter out of its
        range, or a model or method that Ray's actors cannot have.
    RuntimeError
        Another process is at work on the same run.
    ImportError
        The engine is Ray, and Ray is not installed.

    Notes
    -----
    A prompt's generations do not depend on the batch, but for ties that floating-point numbers
    break: the noise is keyed by seed, prompt and occurrence (see `SASA.seed`). Plain sampling's
    seed is that of `sampling`; a method with the same one draws with the same noise, which pairs
    the two. A method without a `seed`, and plain sampling without top-k, draw from torch's
    generator; but for SASA they get one prompt a batch, seeded for it. To compare their speed
    with that of others, let `batch_sequences` be `sampling.generations`.
    """
    if not re.fullmatch(r"[\w.-]+", method):
        raise ValueError(
            f"method must be a name of letters, digits, '_', '-' and '.', got {method!r}"
        )
    _check_count("batch_sequences", batch_sequences, 1)
    found = check_prompts(model, tokenizer, prompts, sampling.max_new_tokens)
    pool = cluster.pool(engine, actors)
    tokens = dict(zip(prompts, found, strict=True))
    if custom_generate is None and sampling.top_k:
        custom_generate = decoding.PlainSampling(sampling.seed)
    described = custom_generate.describe() if hasattr(custom_generate, "describe") else {}
    manifest = {
        "model": model.name_or_path,
        "model_fingerprint": fingerprint(model),
        "method": method,
        "parameters": described,
        "sampling": asdict(sampling),
        "device": pool.device if pool else str(model.device),
        "code": provenance(*_modules(custom_generate)),
    }
    text = json.dumps(manifest, indent=1, sort_keys=True)
    run = Path(folder) / f"{method}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    keyed = _is_keyed(custom_generate, sampling)
    size = max(1, batch_sequences // sampling.generations) if keyed else 1
    with _alone(run):
        with atomic_file(run / "manifest.json") as temporary:
            temporary.write_text(text)
        done = _done(run)
        # Like lengths pad little, and what needs the most memory fails at once, if it does.
        pending = sorted((p for p in tokens if p not in done), key=lambda p: -len(tokens[p]))
        batches = [
            {prompt: tokens[prompt] for prompt in pending[start : start + size]}
            for start in range(0, len(pending), size)
        ]
        with tqdm(
            total=len(tokens),
            initial=len(tokens) - len(pending),
            desc=f"{method} {described.get('beta', '')}".strip(),
            unit="prompt",
            disable=not progress,
        ) as bar:
            if pool:
                copy = cluster.ModelCopy.of(model, tokenizer, pool.device)
                make = partial(_shard_maker, copy, sampling, custom_generate, run.absolute())
                for shard in pool.each(make, _grouped(batches, size, pool.size)):
                    bar.update(_committed(*shard))
            else:
                with _shards(run) as write:
                    for batch in batches:
                        write(_continuations(model, tokenizer, batch, sampling, custom_generate))
                        bar.update(len(batch))
        if not table:
            return run
        rows = _rows(run, filter=ds.field("prompt").isin(list(tokens)))
    order = pd.DataFrame({"prompt_id": range(len(prompts)), "prompt": list(prompts)})
    rows = order.merge(rows, on="prompt").sort_values(
        ["prompt_id", "generation"], ignore_index=True
    )
    rows.attrs["run"] = str(run)
    return rows


def read(run: str | Path) -> pd.DataFrame:
    """Read everything that a run has generated so far, without its model.

    Parameters
    ----------
    run : str or Path
        The run's own folder, that with manifest.json.

    Returns
    -------
    pandas.DataFrame
        As `generate` returns it, but the prompts are in alphabetical order: the same order in
        every run of the same prompts.

    Raises
    ------
    ValueError
        There are no generations in the folder, or a file of them is damaged.
    """
    rows = _rows(Path(run)).sort_values(["prompt", "generation"], ignore_index=True)
    if rows.empty:
        raise ValueError(
            f"there are no generations in {run}: give the folder with manifest.json that "
            "runs.generate made"
        )
    rows.insert(0, "prompt_id", rows["prompt"].factorize()[0])
    rows.attrs["run"] = str(run)
    return rows


def score(
    run: str | Path | pd.DataFrame,
    scorer: Scorer,
    *,
    engine: str | None = None,
    actors: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Score a run's generations; every text once, whenever that was.

    The scores lie in `scores-<scorer>.parquet` beside the shards, by text and by the scorer's
    version: what is there is read, the rest is scored, and a kill loses only the latest texts.

    Parameters
    ----------
    run : str, Path or pandas.DataFrame
        The run's own folder, or what `generate` or `read` returned.
    scorer : Scorer
        Only `text`, not the prompt, is scored.
    engine, actors : optional
        As `sasa_lib.cluster.pool` takes them. A scorer that asks a service gets one actor, so
        that its quota is kept, whatever `actors` says.
    progress : bool

    Returns
    -------
    pandas.DataFrame
        The run's table with a column more, of scores in [0, 1], named after the scorer.

    Raises
    ------
    ValueError
        No generations, a table that no run gave, a damaged file, or a scorer that Ray's actors
        cannot have.
    RuntimeError
        Another process is at work on the same run.
    ImportError
        The engine is Ray, and Ray is not installed.
    """
    table = run.copy() if isinstance(run, pd.DataFrame) else read(run)
    if "run" not in table.attrs:
        raise ValueError(
            "this table does not name its run in attrs['run']: give the run's folder, or the "
            "table as runs.generate or runs.read returned it"
        )
    pool = cluster.pool(engine, actors)
    folder = Path(table.attrs["run"])
    file = folder / ("scores-" + re.sub(r"[^\w.-]", "-", scorer.name) + ".parquet")
    known = _scores(file, scorer)
    missing = [text for text in table["text"].unique() if text not in known]
    if missing:
        with (
            _alone(folder),
            tqdm(total=len(missing), desc=scorer.name, unit="text", disable=not progress) as bar,
        ):
            for texts, scores in _scored(missing, scorer, pool):
                known |= dict(zip(texts, scores, strict=True))
                frame = pd.DataFrame({"text": known.keys(), "score": known.values()})
                frame = frame.assign(scorer=scorer.name, version=scorer.version)
                with atomic_file(file) as temporary:
                    frame.to_parquet(temporary, index=False, schema=SCORES_SCHEMA)
                bar.update(len(texts))
    table[scorer.name] = table["text"].map(known).astype(float)
    return table


def check_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the prompts' token ids, if all can be continued.

    Raises
    ------
    ValueError
        There is no prompt, or one that is no text, is empty, or leaves no room to generate.
    """
    if isinstance(prompts, str) or len(prompts) == 0:
        raise ValueError("expected a list of at least one prompt")
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {row} must be a str, got {type(prompt).__name__}")
    limit = getattr(text_config(model), "max_position_embeddings", None) or float("inf")
    tokens = tokenizer(list(prompts))["input_ids"]
    for row, ids in enumerate(tokens):
        if not ids:
            raise ValueError(f"prompt {row} is empty")
        if len(ids) + max_new_tokens > limit:
            raise ValueError(
                f"prompt {row} has {len(ids)} tokens; with {max_new_tokens} new ones it exceeds "
                f"the context of {model.name_or_path} ({limit})"
            )
    return tokens


def _continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, list[int]],
    sampling: Sampling,
    custom_generate: Callable | None,
) -> pd.DataFrame:
    """Rows of one batch, from its prompts and their token ids."""
    # Texts of the same tokens are one prompt: how often noise saw it must not vary with the batch.
    distinct = list(dict.fromkeys(map(tuple, batch.values())))
    sequences = [torch.tensor(ids) for ids in distinct]
    padding = {"batch_first": True, "padding_side": "left"}
    ids = pad_sequence(sequences, padding_value=tokenizer.pad_token_id or 0, **padding)
    mask = pad_sequence([torch.ones_like(sequence) for sequence in sequences], **padding)
    _seed(sampling.seed, None if _is_keyed(custom_generate, sampling) else next(iter(batch)))
    start = time.perf_counter()
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        custom_generate=custom_generate,
        do_sample=True,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        temperature=sampling.temperature,
        max_new_tokens=sampling.max_new_tokens,
        num_return_sequences=sampling.generations,
    )
    new = output[:, ids.shape[1] :].tolist()
    seconds = time.perf_counter() - start
    new = [sequence[: _length(sequence, _ends(model))] for sequence in new]
    number = sampling.generations
    first = {ids: row * number for row, ids in enumerate(distinct)}
    rows = [first[tuple(ids)] + i for ids in batch.values() for i in range(number)]
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    return pd.DataFrame(
        {
            "prompt": [prompt for prompt in batch for _ in range(number)],
            "generation": list(range(number)) * len(batch),
            "text": [texts[row] for row in rows],
            "n_tokens": [len(new[row]) for row in rows],
            "seconds": seconds / len(rows),
        }
    )


def _shard_maker(
    copy: cluster.ModelCopy, sampling: Sampling, custom_generate: Callable | None, run: Path
) -> Callable[[list[dict[str, list[int]]]], tuple[Path, Path, int]]:
    """Load the model in an actor; return what makes a shard of batches, all but its name."""
    model, tokenizer = copy.load()

    def make(batches: list[dict[str, list[int]]]) -> tuple[Path, Path, int]:
        rows = pd.concat(
            [_continuations(model, tokenizer, b, sampling, custom_generate) for b in batches],
            ignore_index=True,
        )
        shard = _shard_file(run, rows)
        # A name of its own, for what another actor, given up for dead, may still be writing.
        temporary = shard.with_name(f".{shard.name}.{uuid4().hex}.tmp")
        rows.to_parquet(temporary, index=False, schema=SHARD_SCHEMA)
        return temporary, shard, sum(map(len, batches))

    return make


def _committed(temporary: Path, shard: Path, prompts: int) -> int:
    """Name a shard that an actor wrote, and return how many prompts it holds.

    Only the process that has the run to itself does so: an actor that outlives its driver can
    not bring prompts into the run that the next driver's actors make as well.
    """
    try:
        temporary.replace(shard)
    except FileNotFoundError as error:
        raise AssetError(
            f"what an actor wrote into {shard.parent} is not to be seen here: give a folder on a "
            "disk that all machines of the cluster share"
        ) from error
    return prompts


def _grouped(
    batches: list[dict[str, list[int]]], size: int, actors: int
) -> list[list[dict[str, list[int]]]]:
    """Batches of `size` prompts each, together as the shards that actors make."""
    number = max(1, min(SHARD_PROMPTS // size, len(batches) // (SHARDS_OF_ACTOR * actors)))
    return [batches[start : start + number] for start in range(0, len(batches), number)]


def _is_keyed(custom_generate: Callable | None, sampling: Sampling) -> bool:
    """Whether a method draws with noise of its own, whatever else is in the batch."""
    inner = getattr(custom_generate, "then", None) or custom_generate
    if isinstance(inner, decoding.SASA | decoding.PlainSampling):
        return True
    return getattr(inner, "seed", None) is not None and sampling.top_k > 0


def _seed(seed: int, prompt: str | None) -> None:
    """Seed torch's generator, from which keyed noise takes its seed and the rest all it draws."""
    if prompt is not None:
        digest = hashlib.sha256(f"{seed}|{prompt}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big", signed=True)
    torch.manual_seed(seed)


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Keep other processes off a run. The lock of a killed process is nobody's."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        held = FileLock(run / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(
            f"another process is at work on {run}: wait until it has ended"
        ) from error
    except OSError as error:
        raise AssetError(f"cannot write {run}: {error.strerror or error}") from error
    with held:
        _sweep(run)
        try:
            yield
        finally:
            _sweep(run)


def _sweep(run: Path) -> None:
    """Remove what killed processes were writing."""
    for left in run.glob(".*.tmp"):
        left.unlink(missing_ok=True)


@contextmanager
def _shards(run: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield a function that takes batches and writes them in shards; an interrupt writes too."""
    batches: list[pd.DataFrame] = []
    since = time.monotonic()

    def write() -> None:
        nonlocal since
        rows = pd.concat(batches, ignore_index=True)
        with atomic_file(_shard_file(run, rows)) as temporary:
            rows.to_parquet(temporary, index=False, schema=SHARD_SCHEMA)
        batches.clear()
        since = time.monotonic()

    def add(rows: pd.DataFrame) -> None:
        batches.append(rows)
        full = sum(batch["prompt"].nunique() for batch in batches) + rows["prompt"].nunique()
        if full > SHARD_PROMPTS or time.monotonic() - since > SHARD_SECONDS:
            write()

    try:
        yield add
    finally:
        if batches:
            write()


def _shard_file(run: Path, rows: pd.DataFrame) -> Path:
    """Return the file of a shard, whose name depends on its prompts alone."""
    prompts = json.dumps(rows["prompt"].unique().tolist())
    return run / f"shard-{hashlib.sha256(prompts.encode()).hexdigest()[:16]}.parquet"


def _done(run: Path) -> set[str]:
    """Prompts that are continued already, read file by file: there may be many generations."""
    files = run.glob("shard-*.parquet")
    return {
        prompt for f in files for prompt in _table([f], SHARD_SCHEMA, columns=["prompt"])["prompt"]
    }


def _rows(run: Path, **options: object) -> pd.DataFrame:
    """Rows of all shards, or those and the columns that `Dataset.to_table` is told to read."""
    return _table(sorted(run.glob("shard-*.parquet")), SHARD_SCHEMA, **options)


def _scores(file: Path, scorer: Scorer) -> dict[str, float]:
    """Score of every text that this version of the scorer has scored."""
    own = (ds.field("scorer") == scorer.name) & (ds.field("version") == scorer.version)
    found = _table([file] if file.exists() else [], SCORES_SCHEMA, filter=own)
    return dict(zip(found["text"], found["score"], strict=True))


def _scored(
    texts: list[str], scorer: Scorer, pool: cluster.Pool | None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield some texts at a time with their scores."""
    if pool and scorer.asks_service:
        pool = replace(pool, size=1)
    number = SCORED_AT_ONCE
    if pool:
        number = min(number, max(1, len(texts) // (SHARDS_OF_ACTOR * pool.size)))
    parts = [texts[start : start + number] for start in range(0, len(texts), number)]
    if pool:
        yield from pool.each(partial(_scorer_maker, scorer, scorer.version), parts)
    else:
        yield from ((part, scorer(part)) for part in parts)


def _scorer_maker(
    scorer: Scorer, version: str
) -> Callable[[list[str]], tuple[list[str], np.ndarray]]:
    """Check an actor's scorer, which it loaded itself, against the version of the driver's."""
    if scorer.version != version:
        raise ValueError(
            f"an actor's {scorer.name!r} is of version {scorer.version}, the one given of "
            f"{version}: install the same packages and models on all machines"
        )
    return lambda texts: (texts, scorer(texts))


def _table(files: list[Path], schema: pa.Schema, **options: object) -> pd.DataFrame:
    dataset = ds.dataset([str(file) for file in files], schema=schema, format="parquet")
    try:
        return dataset.to_table(**options).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"a file of a run is damaged ({error}): delete it, and what it held is made again"
        ) from error


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _ends(model: PreTrainedModel) -> set[int]:
    """Tokens at which `generate` stops."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


def _length(ids: list[int], ends: set[int]) -> int:
    return next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))


def _modules(custom_generate: Callable | None) -> list[ModuleType]:
    """Return the modules whose code makes the texts."""
    modules = [sys.modules[__name__], decoding, phrases, inspect.getmodule(custom_generate)]
    return [module for module in dict.fromkeys(modules) if hasattr(module, "__file__")]
