"""Resumable generation runs: what was asked, what was generated, and what it scored."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from upath import UPath

from sasa_lib.checks import as_list, check_count, to_json
from sasa_lib.checks import set_aside as warn_of
from sasa_lib.decoding.method import PlainSampling
from sasa_lib.engine import cluster
from sasa_lib.engine.identity import depends_on, generation_settings, key
from sasa_lib.engine.models import language_model
from sasa_lib.engine.storage import (
    alone,
    atomic_file,
    listed,
    not_seen,
    place,
    read_tables,
    rename,
    unnamed,
    write_table,
)
from sasa_lib.evaluation.sampling import SCHEMA, Continuer, Sampling, is_keyed, prompt_tokens

SHARD_PROMPTS = 64  # at most in a file, so that a large run is not ten thousand files
SHARD_SECONDS = 60.0  # at most lost by a kill, plus one batch
SHARDS_OF_ACTOR = 8  # at least, where batches allow it: so none ends long after the others
CPU_BATCH = 100  # sequences; more do not make a CPU faster
# Settings by which `generate` counts a prompt's padding as its tokens, with what leaves them off.
COUNT_PADDING = {
    "min_length": 0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0, "forced_bos_token_id": None, "bad_words_ids": None,
    "sequence_bias": None, "watermarking_config": None,
}  # fmt: skip
SET_ASIDE = "set-aside.parquet"
SET_ASIDE_SCHEMA = pa.schema({"row": pa.int64(), "prompt": pa.string(), "reason": pa.string()})


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    folder: str | Path | UPath,
    method: str,
    custom_generate: Callable | None = None,
    batch_sequences: int | None = None,
    set_aside: bool = False,
    engine: str | None = None,
    actors: int | None = None,
    table: bool = True,
    progress: bool = True,
) -> pd.DataFrame | Path | UPath:
    """Generate continuations of every prompt, resuming whatever is already there.

    The longest prompts come first, some in a batch. Whole batches are written together as a
    Parquet file, a shard, of up to `SHARD_PROMPTS` prompts or `SHARD_SECONDS` of work; a run that
    was killed goes on after the last of them. What is all there is only read.

    Parameters
    ----------
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    prompts : sequence of str
        A prompt that is there twice is continued once, and its continuations returned twice.
    sampling : Sampling
    folder : str, Path or UPath
        Where runs live: a folder, or an address that fsspec knows, such as "s3://bucket/runs". A
        run's own folder is named after all that it depends on (`sasa_lib.engine.identity`): other
        weights, adapters or hooks, another tokenizer, another setting of the model's
        `generation_config` or another method are another run.
    method : str
        Name in the results, such as "plain" or "sasa": letters, digits, "_", "-" and ".".
    custom_generate : callable, optional
        Such as `SASA`; None is plain sampling. A function of your own is known by its code and
        what it refers to, an object by its method `describe`, if it has one.
    batch_sequences : int, optional
        Sequences in a batch, at most, but at least the generations of one prompt. None is
        `CPU_BATCH` on a CPU, elsewhere those of `SHARD_PROMPTS` prompts. Where memory does not
        take so many it is halved until it does, once on each device; the progress bar says it.
    set_aside : bool
        Go on without prompts that cannot be continued, with a warning; the run's file
        set-aside.parquet holds their rows and the reasons. They are tried again by the next call.
        False: refuse them.
    engine : {"local", "ray"}, optional
        As `cluster.pool` takes it. Ray's actors load the model by its name, and write
        into the folder, which all machines must see. A run may begin on one engine and end on
        another.
    actors : int, optional
        Ray's, as `sasa_lib.engine.cluster.pool` takes it.
    table : bool
        False: return the run's folder, whose rows then need not fit into memory.
    progress : bool

    Returns
    -------
    pandas.DataFrame
        One row a generation: `prompt_id`, `prompt`, `generation`, `text` (without the prompt),
        `n_tokens` (up to and with the end token), `draws` (sequences drawn for this one: 4 by the
        best of 4, as many as it took by `Accept`) and `seconds` (its share of its batch's time).
        `attrs["run"]` names the run's folder. With `table=False` that folder instead.

    Raises
    ------
    RuntimeError
        Another process is at work on the same run; memory does not take a single prompt; or of
        the first `SHARD_PROMPTS` prompts that are tried, not one can be continued.
    AssetError
        The folder cannot be written, or actors write where this process cannot see it.
    ImportError
        The engine is Ray, and Ray is not installed.

    Notes
    -----
    A prompt's generations do not depend on the batch, but for ties that floating-point numbers
    break: the noise is keyed by seed, prompt and occurrence (see `SASA.seed`). Plain sampling's
    seed is that of `sampling`; a method with the same one draws with the same noise, which pairs
    the two. A method without a `seed`, but for SASA and plain sampling, draws from torch's
    generator and gets one prompt a batch, seeded for it; so does a model whose
    `generation_config` holds one of `COUNT_PADDING`. To compare its speed with that of others,
    let `batch_sequences` be `sampling.generations`.

    An address has no locks: let one driver at a time work on a run there. If two do, one may stop
    with an error; what both made is read once.
    """
    if not re.fullmatch(r"[\w.-]+", method):
        raise ValueError(
            f"method must be a name of letters, digits, '_', '-' and '.', got {method!r}"
        )
    if batch_sequences is not None:
        batch_sequences = check_count("batch_sequences", batch_sequences)
    model, prompts = language_model(model), as_list(prompts, "prompts")
    tokens, faults = prompt_tokens(model, tokenizer, prompts, sampling.max_new_tokens)
    if faults and not (set_aside and tokens):
        raise ValueError(next(iter(faults.values())))
    folder = place(folder)
    pool = cluster.pool(engine, actors)
    custom_generate = custom_generate or PlainSampling(sampling.seed)
    device = torch.device(pool.device) if pool else model.device
    facts = what_it_depends_on(
        model, tokenizer, sampling, method=method, custom_generate=custom_generate, device=device
    )
    run = folder / f"{method}-{key(facts, 12)}"
    text = to_json({"model": model.name_or_path, "depends_on": facts})
    size = _batch(batch_sequences, sampling, custom_generate, model, device.type)
    options = {"sampling": sampling, "custom_generate": custom_generate, "set_aside": set_aside}
    work = partial(Continuer, size=size, **options)
    with alone(run):
        with atomic_file(run / "manifest.json") as temporary:
            temporary.write_text(text)
        done = _done(run)
        # Like lengths pad little, and what needs the most memory fails at once, if it does.
        pending = sorted((p for p in tokens if p not in done), key=lambda p: -len(tokens[p]))
        waiting = {prompt: tokens[prompt] for prompt in pending}
        with tqdm(
            total=len(tokens),
            initial=len(tokens) - len(pending),
            desc=f"{method} {getattr(custom_generate, 'beta', '')}".strip(),
            unit="prompt",
            disable=not progress,
        ) as bar:
            report = _Report(bar, run, prompts, faults, least=0 if done else len(pending))
            for made in _made(model, tokenizer, waiting, work, run, size, pool):
                report.add(*made)
        if not table:
            return run
        rows = _rows(run, filter=ds.field("prompt").isin(list(tokens)))
    good = {row: prompt for row, prompt in enumerate(prompts) if row not in faults}
    return _in_order(rows, good, run)


def _in_order(rows: pd.DataFrame, prompts: dict[int, str], run: Path | UPath) -> pd.DataFrame:
    """Rows of prompts by their number; a prompt that is there twice has its rows twice."""
    order = pd.DataFrame(prompts.items(), columns=["prompt_id", "prompt"])
    rows = order.merge(rows, on="prompt")
    rows = rows.sort_values(["prompt_id", "generation"], ignore_index=True)
    rows.attrs["run"] = str(run)
    return rows


def _made(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[str, list[int]],
    work: Callable[..., Continuer],
    run: Path | UPath,
    size: int,
    pool: cluster.Pool | None,
) -> Iterator[tuple[pd.DataFrame, dict[str, str], int]]:
    """Continue prompts here or by actors; yield rows that are written, failures and batch size."""
    if pool:
        groups = [
            {prompt: prompts[prompt] for prompt in group}
            for group in _grouped(list(prompts), size, pool.size)
        ]
        for shard in pool.each(partial(_shard_maker, model, tokenizer, work, run), groups):
            yield _committed(*shard)
        return
    continuer = work(model, tokenizer)
    with _shards(run) as write:
        for rows, failed in continuer(prompts):
            write(rows)
            yield rows, failed, continuer.size


def what_it_depends_on(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    *,
    method: str,
    custom_generate: Callable | None,
    device: torch.device,
) -> dict[str, object]:
    """Return all that shapes a run's texts but its prompts; a run's folder is named after it.

    Parameters
    ----------
    model, tokenizer, sampling, method, custom_generate
        As in `generate`.
    device : torch.device
        Where it is generated: floating-point numbers differ between kinds of devices.
    """
    return depends_on(
        "run",
        model=model,
        tokenizer=tokenizer,
        generation=generation_settings(model),
        sampling=asdict(sampling),
        method=method,
        decoder=custom_generate,
        device=device.type,
    )


def read(run: str | Path | UPath) -> pd.DataFrame:
    """Read everything that a run has generated so far, without its model.

    Parameters
    ----------
    run : str, Path or UPath
        The run's own folder, that with manifest.json.

    Returns
    -------
    pandas.DataFrame
        As `generate` returns it, but the prompts are in alphabetical order: the same order in
        every run of the same prompts.
    """
    rows = _rows(place(run)).sort_values(["prompt", "generation"], ignore_index=True)
    if rows.empty:
        raise ValueError(
            f"there are no generations in {run}: give the folder with manifest.json that "
            "runs.generate made"
        )
    rows.insert(0, "prompt_id", rows["prompt"].factorize()[0])
    rows.attrs["run"] = str(run)
    return rows


class _Report:
    """The progress bar of a run, and its file of prompts that were set aside."""

    def __init__(
        self, bar: tqdm, run: Path | UPath, prompts: list[str], faults: dict[int, str], least: int
    ) -> None:
        self.bar, self.file, self.prompts = bar, run / SET_ASIDE, prompts
        self.least = min(least, SHARD_PROMPTS)  # failures without success that are not prompts'
        self.faults: dict[int, str] = {}
        self.failures = 0
        self.start, self.tokens = time.monotonic(), 0
        self.file.unlink(missing_ok=True)
        self._set_aside(faults)

    def add(self, rows: pd.DataFrame, failed: dict[str, str], size: int) -> None:
        """Take in what came of some prompts, `size` in a batch."""
        self.failures += len(failed)
        self.tokens += rows["n_tokens"].sum()
        if not self.tokens and self.least and self.failures >= self.least:
            reason = next(iter(failed.values()))
            raise RuntimeError(f"not one of {self.failures} prompts can be continued: {reason}")
        if failed:
            left = [row for row in range(len(self.prompts)) if row not in self.faults]
            why = {row: failed.get(self.prompts[row]) for row in left}
            self._set_aside({row: reason for row, reason in why.items() if reason})
        rate = self.tokens / (time.monotonic() - self.start)
        said = f"{rate:,.0f} tokens/s, {size} in a batch"
        if self.faults:
            said += f", {len(self.faults)} set aside"
        self.bar.set_postfix_str(said, refresh=False)
        self.bar.update(rows["prompt"].nunique() + len(failed))

    def _set_aside(self, faults: dict[int, str]) -> None:
        if not faults:
            return
        self.faults |= faults
        rows = [
            # Half a surrogate pair, which may be what is wrong with it, is in no file.
            (row, str(self.prompts[row]).encode(errors="backslashreplace").decode(), why)
            for row, why in sorted(self.faults.items())
        ]
        with atomic_file(self.file) as temporary:
            write_table(
                pd.DataFrame(rows, columns=SET_ASIDE_SCHEMA.names), temporary, SET_ASIDE_SCHEMA
            )
        warn_of("prompts", faults, len(self.prompts), f"all in {self.file}")


def _shard_maker(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    work: Callable[..., Continuer],
    run: Path | UPath,
) -> Callable[[dict[str, list[int]]], tuple]:
    """Return what makes a shard of prompts in an actor, all but its name."""
    continuer = work(model, tokenizer)

    def make(prompts: dict[str, list[int]]) -> tuple:
        made = list(continuer(prompts))
        rows = pd.concat([rows for rows, _ in made], ignore_index=True)
        failed = {prompt: why for _, faults in made for prompt, why in faults.items()}
        shard = _shard_file(run, rows)
        # A name of its own, for what another actor, given up for dead, may still be writing.
        temporary = unnamed(shard)
        if len(rows):
            write_table(rows, temporary, SCHEMA)
        return temporary, shard, rows[["prompt", "n_tokens"]], failed, continuer.size

    return make


def _committed(
    temporary: Path | UPath, shard: Path | UPath, rows: pd.DataFrame, *others: object
) -> tuple:
    """Name a shard that an actor wrote, and return what a report needs of it.

    Only the process that has the run to itself does so: an actor that outlives its driver can
    not bring prompts into the run that the next driver's actors make as well.
    """
    try:
        if len(rows):
            rename(temporary, shard)
    except FileNotFoundError as error:
        raise not_seen(shard.parent) from error
    return rows, *others


def _batch(
    sequences: int | None,
    sampling: Sampling,
    custom_generate: Callable | None,
    model: PreTrainedModel,
    device: str,
) -> int:
    """Prompts in a batch, before memory is asked."""
    config = model.generation_config
    counted = any(
        getattr(config, name, None) not in (None, off) for name, off in COUNT_PADDING.items()
    )
    if counted or not is_keyed(custom_generate):
        return 1
    each = sampling.generations * getattr(custom_generate, "draws", 1)
    if sequences is None:
        sequences = CPU_BATCH if device == "cpu" else SHARD_PROMPTS * sampling.generations
    return max(1, sequences // each)


def _grouped(prompts: list[str], size: int, actors: int) -> list[list[str]]:
    """Prompts of the shards that actors make, in batches of `size` where there are enough."""
    share = -(-len(prompts) // actors)
    number = len(prompts) // (SHARDS_OF_ACTOR * actors) // size * size or min(size, share)
    number = max(1, min(number, max(size, SHARD_PROMPTS // size * size)))
    return [prompts[start : start + number] for start in range(0, len(prompts), number)]


@contextmanager
def _shards(run: Path | UPath) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield a function that takes batches and writes them in shards; an interrupt writes too."""
    batches: list[pd.DataFrame] = []
    since = time.monotonic()

    def write() -> None:
        nonlocal since
        rows = pd.concat(batches, ignore_index=True)
        with atomic_file(_shard_file(run, rows)) as temporary:
            write_table(rows, temporary, SCHEMA)
        batches.clear()
        since = time.monotonic()

    def add(rows: pd.DataFrame) -> None:
        if rows.empty:
            return
        batches.append(rows)
        full = sum(batch["prompt"].nunique() for batch in batches) + rows["prompt"].nunique()
        if full > SHARD_PROMPTS or time.monotonic() - since > SHARD_SECONDS:
            write()

    try:
        yield add
    finally:
        if batches:
            write()


def _shard_file(run: Path | UPath, rows: pd.DataFrame) -> Path | UPath:
    """Return the file of a shard, whose name depends on its prompts alone."""
    prompts = json.dumps(rows["prompt"].unique().tolist())
    return run / f"shard-{hashlib.sha256(prompts.encode()).hexdigest()[:16]}.parquet"


def _done(run: Path | UPath) -> set[str]:
    """Prompts that are continued already, read file by file: there may be many generations."""
    files = listed(run, "shard-*.parquet")
    return {
        prompt for f in files for prompt in read_tables([f], SCHEMA, columns=["prompt"])["prompt"]
    }


def _rows(run: Path | UPath, **options: object) -> pd.DataFrame:
    """Rows of all shards, or those that `Dataset.to_table` is told to read."""
    rows = read_tables(listed(run, "shard-*.parquet"), SCHEMA, **options)
    return rows.drop_duplicates(["prompt", "generation"])
