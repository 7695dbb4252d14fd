"""Generations with their scores and likelihoods, kept so that nothing is judged twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from upath import UPath

from sasa_lib.checks import as_list, check_columns, check_count, text_fault
from sasa_lib.checks import set_aside as warn_of
from sasa_lib.engine import cluster
from sasa_lib.engine.identity import depends_on, key
from sasa_lib.engine.models import language_model, load_lm
from sasa_lib.engine.storage import place
from sasa_lib.engine.table import KeyedTable
from sasa_lib.engine.tokens import first_fault, readable
from sasa_lib.evaluation.likelihood import negative_log_likelihoods
from sasa_lib.evaluation.scorers.scorer import Scorer

JUDGED_AT_ONCE = 500  # texts whose judgements are one file, and the work of an actor
ASKED_AT_ONCE = 20  # of a service, some seconds


def load_judge(
    name: str, judged_model: str, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model under which perplexity is measured.

    Parameters
    ----------
    name, judged_model : str
        Names of the judge and of the model whose texts it is to judge.
    **options
        Of `sasa_lib.load_lm`.

    Raises
    ------
    ValueError
        The names are the same: a model finds its own habits likely. The same weights under another
        name are not noticed.
    """
    if name == judged_model:
        raise ValueError(
            f"judge and model are both {name!r}, and a model finds its own habits likely: give "
            "another judge"
        )
    return load_lm(name, **options)


def judged(
    generations: pd.DataFrame,
    scorers: Sequence[Scorer],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: str | Path | UPath | None = None,
    perplexity_generations: int | None = None,
    set_aside: bool = False,
    engine: str | None = None,
    actors: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Add to generations their toxicity by every scorer, and their likelihood under a model.

    Parameters
    ----------
    generations : pandas.DataFrame
        As `sasa_lib.evaluation.runs.generate` returns it; only `text`, not the prompt, is scored.
    scorers : sequence of Scorer
    model, tokenizer
        The judging model, another than the generating one.
    folder : str, Path or UPath, optional
        Keep the judgements here, `JUDGED_AT_ONCE` as they come, of every judge by itself: no text
        is judged twice by the same one, and one judge more costs that one alone.
    perplexity_generations : int, optional
        The judging model reads only the first so many generations of a prompt: it costs more than
        the scorers, and perplexity needs fewer texts than a maximum. None is all.
    set_aside : bool
        Leave out, with a warning, the prompts of which some text cannot be judged: it exceeds the
        judging model's context, or a scorer refuses it. False: refuse them, before anything is
        judged where that can be known.
    engine, actors : optional
        As `sasa_lib.engine.cluster.pool` takes them. A scorer that asks a service is asked by this
        process, so that its quota is kept, however many actors there are.
    progress : bool

    Returns
    -------
    pandas.DataFrame
        With a column of scores in [0, 1] for each scorer, `nll` (nats) and `nll_tokens`; both are
        0 where nothing was read, which leaves these texts out of `perplexity`.

    Raises
    ------
    AssetError
        The folder cannot be written.
    ImportError
        The engine is Ray, and Ray is not installed.
    """
    if perplexity_generations is not None:
        perplexity_generations = check_count("perplexity_generations", perplexity_generations)
    check_columns(generations, ("prompt_id", "prompt", "text"))
    if generations.empty:
        raise ValueError("there are no generations to judge")
    model, scorers = language_model(model), as_list(scorers, "scorers")
    _check_new(generations, [*map(_name_of, scorers), "nll", "nll_tokens"])
    generations = generations.reset_index(drop=True)
    pairs, faults = _to_be_read(generations, model, tokenizer, perplexity_generations)
    if faults and not set_aside:
        raise first_fault(faults)
    folder = None if folder is None else place(folder)
    judges = [
        *(_of_scorer(scorer, folder, generations["text"], set_aside) for scorer in scorers),
        _of_model(model, tokenizer, folder, pairs),
    ]
    pool = cache(partial(cluster.pool, engine, actors))
    total = sum(len(judge.items) for judge in judges)
    found = []
    with tqdm(total=total, desc="judging", unit="text", disable=not progress) as bar:
        for judge in judges:
            actors_of = (lambda: None) if judge.here else pool
            table = judge.table.fill(
                judge.items, judge.maker(), at_once=judge.at_once, pool=actors_of,
                maker=judge.maker, bar=bar,
            )  # fmt: skip
            found.append(table.reindex([judge.key_of.get(row) for row in generations.index]))
    for scorer, scores in zip(scorers, found, strict=False):
        generations[scorer.name] = scores["score"].to_numpy()
        for row in np.flatnonzero(scores["score"].isna()):
            faults.setdefault(int(row), f"has no score by {scorer.name!r}")
    if faults and not set_aside:  # kept from a call that set them aside
        raise first_fault(faults)
    generations["nll"] = found[-1]["nll"].fillna(0.0).to_numpy()
    generations["nll_tokens"] = found[-1]["nll_tokens"].fillna(0).to_numpy(dtype=int)
    if not faults:
        return generations
    bad = generations.loc[list(faults), "prompt_id"].unique()
    warn_of("texts", faults, len(generations), f"with all of their {len(bad)} prompts")
    return generations[~generations["prompt_id"].isin(bad)].reset_index(drop=True)


@dataclass
class _Judge:
    """What one judge reads, by key, and where its judgements are kept."""

    table: KeyedTable
    items: dict[str, Any]
    key_of: dict[int, str]  # from a row of the generations
    maker: Callable[[], Callable[[list[Any]], pd.DataFrame]]
    at_once: int = JUDGED_AT_ONCE
    here: bool = False  # whether this process asks, however many actors there are


def _judge(
    name: str, facts: dict[str, object], columns: dict[str, pa.DataType],
    folder: Path | UPath | None, read: dict[int, Any], **options: Any,
) -> _Judge:  # fmt: skip
    of = key(depends_on("judgement", **facts))
    table = KeyedTable(None if folder is None else folder / f"{name}-{of}", columns)
    key_of = {row: key(item, 32) for row, item in read.items()}
    items = {key_of[row]: item for row, item in read.items()}
    return _Judge(table, items, key_of, **options)


def _of_scorer(
    scorer: Scorer, folder: Path | UPath | None, texts: pd.Series, set_aside: bool
) -> _Judge:
    return _judge(
        re.sub(r"[^\w.-]", "-", scorer.name),
        {"scorer": [scorer.name, scorer.version]},
        {"score": pa.float64()},
        folder,
        dict(enumerate(texts)),
        maker=partial(_scoring, scorer, scorer.version, set_aside),
        at_once=ASKED_AT_ONCE if scorer.asks_service else JUDGED_AT_ONCE,
        here=scorer.asks_service,
    )


def _of_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | UPath | None,
    pairs: dict[int, list[str]],
) -> _Judge:
    return _judge(
        "likelihood",
        {"model": model, "tokenizer": tokenizer},
        {"nll": pa.float64(), "nll_tokens": pa.int64()},
        folder,
        pairs,
        maker=partial(_reading, model, tokenizer),
    )


def _scoring(scorer: Scorer, version: str, set_aside: bool) -> Callable[[list[str]], pd.DataFrame]:
    """Return what scores texts; where set aside, with NaN for those that cannot be scored."""
    scorer.check_version(version)
    score = (lambda texts: scorer.scored(texts)[0]) if set_aside else scorer
    return lambda texts: pd.DataFrame({"score": score(texts)})


def _reading(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[[list[list[str]]], pd.DataFrame]:
    """Return what reads pairs of prompt and text."""

    def read(pairs: list[list[str]]) -> pd.DataFrame:
        prompts, texts = zip(*pairs, strict=True)
        nll, tokens = negative_log_likelihoods(model, tokenizer, prompts, texts, progress=False)
        return pd.DataFrame({"nll": nll, "nll_tokens": tokens})

    return read


def _to_be_read(
    generations: pd.DataFrame,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    most: int | None,
) -> tuple[dict[int, list[str]], dict[int, str]]:
    """Prompts and texts that the judging model reads, by row, and why it cannot read others."""
    number = generations.groupby("prompt_id", sort=False).cumcount()
    rows = generations.index[number < (most or len(generations))]
    prompts, texts = (generations.loc[rows, name].tolist() for name in ("prompt", "text"))
    _, faults = readable(model, tokenizer, prompts, texts, empty=True)
    faults = {int(rows[i]): fault for i, fault in faults.items()}
    pairs = zip(rows, zip(prompts, texts, strict=True), strict=True)
    return {row: list(pair) for row, pair in pairs if row not in faults}, faults


def with_scores(
    table: pd.DataFrame,
    column: str,
    scorers: Sequence[Scorer],
    *,
    folder: str | Path | UPath | None = None,
    progress: bool = True,
) -> tuple[pd.DataFrame, dict[int, str]]:
    """Add to a table of any texts their toxicity by every scorer.

    Parameters
    ----------
    table : pandas.DataFrame
    column : str
        Of the texts; an empty one scores 0.
    scorers : sequence of Scorer
    folder : str, Path or UPath, optional
        Keep the scores here as they come: a call that was killed goes on where it stopped.
    progress : bool

    Returns
    -------
    table : pandas.DataFrame
        With a column of scores in [0, 1] for each scorer; NaN in the rows that are set aside.
    set_aside : dict from row to reason
        Rows, counted from 0, that hold no text or one that a scorer refuses.
    """
    scorers = as_list(scorers, "scorers")
    check_columns(table, (column,))
    _check_new(table, list(map(_name_of, scorers)))
    table = table.reset_index(drop=True)
    found = {row: text_fault(text, empty=True) for row, text in enumerate(table[column])}
    faults = {row: fault for row, fault in found.items() if fault}
    texts = table[column].drop(list(faults))
    folder = None if folder is None else place(folder)
    total = len(scorers) * texts.nunique()
    with tqdm(total=total, desc="scoring", unit="text", disable=not progress) as bar:
        for scorer in scorers:
            judge = _of_scorer(scorer, folder, texts, set_aside=True)
            found = judge.table.fill(
                judge.items, judge.maker(), at_once=judge.at_once, maker=judge.maker, bar=bar
            )
            scores = found["score"].reindex(list(judge.key_of.values())).to_numpy()
            table[scorer.name] = pd.Series(scores, texts.index, dtype=float)
            for row in texts.index[np.isnan(scores)]:
                faults.setdefault(int(row), f"has no score by {scorer.name!r}")
    return table, dict(sorted(faults.items()))


def on_common_prompts(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Keep the prompts that every method has continued, where some were set aside.

    Parameters
    ----------
    tables : sequence of pandas.DataFrame
        As `sasa_lib.evaluation.runs.generate` returns them, one a method.

    Returns
    -------
    list of pandas.DataFrame
        The tables without the other prompts, on which methods could not be compared.
    """
    tables = as_list(tables, "tables")
    for table in tables:
        check_columns(table, ("prompt",))
    if not tables:
        return []
    common = set.intersection(*(set(table["prompt"]) for table in tables))
    return [table[table["prompt"].isin(common)].reset_index(drop=True) for table in tables]


def _check_new(table: pd.DataFrame, names: list[str]) -> None:
    for name in names:
        if name in table or names.count(name) > 1:
            raise ValueError(
                f"{name!r} would be there twice: give each scorer once, and a table without its "
                "scores"
            )


def _name_of(scorer: object) -> str:
    if not isinstance(scorer, Scorer):
        raise ValueError(f"expected scorers as load_scorer returns them, got {scorer!r}")
    return scorer.name
