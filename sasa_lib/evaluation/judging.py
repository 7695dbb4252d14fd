"""Generations with their scores and likelihoods, kept so that nothing is judged twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from upath import UPath

from sasa_lib.checks import as_list, check_columns, check_count
from sasa_lib.checks import set_aside as warn_of
from sasa_lib.engine import cluster
from sasa_lib.engine.identity import depends_on, key
from sasa_lib.engine.models import language_model
from sasa_lib.engine.storage import atomic_file, place, write_table
from sasa_lib.engine.tokens import first_fault, readable
from sasa_lib.evaluation.likelihood import negative_log_likelihoods
from sasa_lib.evaluation.scorers.scorer import Scorer

JUDGED_AT_ONCE = 500  # generations whose judgements are one file, and the work of an actor


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
        Keep the judgements here, `JUDGED_AT_ONCE` as they come; the same texts are not judged
        again by the same judges.
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
    ValueError
        No generations, `perplexity_generations` under 1, a text that cannot be judged, or a
        scorer or model that Ray's actors cannot have.
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
    names = [_name_of(scorer) for scorer in scorers]
    for name in (*names, "nll", "nll_tokens"):
        if name in generations or names.count(name) > 1:
            raise ValueError(
                f"{name!r} would be there twice: give each scorer once, and a table without its "
                "scores"
            )
    generations = generations.reset_index(drop=True)
    most = perplexity_generations or len(generations)
    texts = generations[["prompt", "text"]].astype(object)
    texts = texts.assign(read=generations.groupby("prompt_id", sort=False).cumcount() < most)
    read = texts[texts["read"]]
    _, found_faults = readable(model, tokenizer, read["prompt"], read["text"], empty=True)
    faults = {int(read.index[i]): fault for i, fault in found_faults.items()}
    if faults and not set_aside:
        raise first_fault(faults)
    texts.loc[list(faults), "read"] = False
    parts = [texts[i : i + JUDGED_AT_ONCE] for i in range(0, len(texts), JUDGED_AT_ONCE)]
    judges = depends_on(
        "judgement",
        model=model,
        tokenizer=tokenizer,
        scorers=[(scorer.name, scorer.version) for scorer in scorers],
    )
    found = {}
    files = [None if folder is None else _file(place(folder), judges, part) for part in parts]
    for i, file in enumerate(files):
        if file is not None and file.exists():
            with file.open("rb") as content:
                found[i] = pd.read_parquet(content)
    missing = [(i, part) for i, part in enumerate(parts) if i not in found]
    pool = cluster.pool(engine, actors) if missing else None
    asked = [scorer for scorer in scorers if scorer.asks_service]
    others = [scorer for scorer in scorers if not scorer.asks_service]
    with tqdm(
        total=len(texts), initial=len(texts) - sum(len(part) for _, part in missing),
        desc="judging", unit="text", disable=not progress,
    ) as bar:  # fmt: skip
        if pool:
            versions = [scorer.version for scorer in others]
            make = partial(_judge_maker, model, tokenizer, others, versions, set_aside)
            done = pool.each(make, missing)
        else:
            done = (
                (i, _judgements(others, model, tokenizer, part, set_aside)) for i, part in missing
            )
        with closing(done):  # or an error, as long as it is kept, would keep Ray's actors
            for i, judgements in done:
                for scorer in asked:
                    judgements[scorer.name] = _scores_of(scorer, parts[i]["text"], set_aside)
                found[i] = judgements
                if files[i] is not None:
                    with atomic_file(files[i]) as temporary:
                        write_table(judgements, temporary)
                bar.update(len(judgements))
    columns = [*(scorer.name for scorer in scorers), "nll", "nll_tokens"]
    judgements = pd.concat([found[i] for i in range(len(parts))], ignore_index=True)
    for scorer in scorers:
        for row in np.flatnonzero(judgements[scorer.name].isna()):
            faults.setdefault(int(row), f"has no score by {scorer.name!r}")
    if faults and not set_aside:  # kept from a call that set them aside
        raise first_fault(faults)
    judged_ones = generations.join(judgements[columns])
    if faults:
        bad = judged_ones.loc[list(faults), "prompt_id"].unique()
        warn_of("texts", faults, len(texts), f"with all of their {len(bad)} prompts")
        judged_ones = judged_ones[~judged_ones["prompt_id"].isin(bad)].reset_index(drop=True)
    return judged_ones


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


def _name_of(scorer: object) -> str:
    if not isinstance(scorer, Scorer):
        raise ValueError(f"expected scorers as load_scorer returns them, got {scorer!r}")
    return scorer.name


def _file(folder: Path | UPath, judges: dict, texts: pd.DataFrame) -> Path | UPath:
    """Return where the judgements of some texts are kept."""
    return folder / f"{key([judges, texts.to_numpy().tolist()])}.parquet"


def _judgements(
    scorers: Sequence[Scorer],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: pd.DataFrame,
    set_aside: bool,
) -> pd.DataFrame:
    """Scores of some texts, and the likelihood of those that are to be read."""
    scores = {scorer.name: _scores_of(scorer, texts["text"], set_aside) for scorer in scorers}
    judgements = pd.DataFrame(scores | {"nll": 0.0, "nll_tokens": 0}, index=range(len(texts)))
    read = texts["read"].to_numpy(dtype=bool)
    prompts, read_texts = (texts[name][read].tolist() for name in ("prompt", "text"))
    judgements.loc[read, "nll"], judgements.loc[read, "nll_tokens"] = negative_log_likelihoods(
        model, tokenizer, prompts, read_texts, progress=False
    )
    return judgements


def _scores_of(scorer: Scorer, texts: pd.Series, set_aside: bool) -> np.ndarray:
    """Scores of texts; where set aside, NaN for those that cannot be scored."""
    return scorer.scored(texts)[0] if set_aside else scorer(texts)


def _judge_maker(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scorers: Sequence[Scorer],
    versions: Sequence[str],
    set_aside: bool,
) -> Callable[[tuple[int, pd.DataFrame]], tuple[int, pd.DataFrame]]:
    """Return what judges some texts in an actor, and gives back their number."""
    for scorer, version in zip(scorers, versions, strict=True):
        scorer.check_version(version)
    return lambda part: (part[0], _judgements(scorers, model, tokenizer, part[1], set_aside))
