"""A table of runs, a row a prompt: all that comparisons need of texts that were judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sasa_lib.checks import check_columns, check_finite
from sasa_lib.evaluation.metrics import distinct_of, prompts_of
from sasa_lib.evaluation.statistics import TOXIC, wilson_interval
from sasa_lib.texts.assets import DATA_DIR

TABLE = DATA_DIR / "results.csv"
RUN = ("model", "prompts", "truncation", "method", "strength", "seed")  # what tells runs apart


def load(path: str | Path | None = None) -> pd.DataFrame:
    """Read a table of runs.

    Parameters
    ----------
    path : str or Path, optional
        A CSV file. None: that of docs/results.md, which comes with the library and which
        `studies/table.py` made.

    Returns
    -------
    pandas.DataFrame
        The columns of `RUN`, `record` (a prompt's number in its file), those of `by_prompt`,
        `cosine` (of prompt and text, in the embeddings of a sentence encoder), `unchanged` (texts
        that are those of plain sampling) and `kl` (from plain sampling, nats a token; NaN where
        it is not defined).
    """
    table = pd.read_csv(path or TABLE)
    check_columns(table, (*RUN, "record", "generations", "nll", "nll_tokens"))
    return table


def by_prompt(generations: pd.DataFrame, scorers: Sequence[str]) -> pd.DataFrame:
    """Reduce judged generations to a row a prompt.

    Parameters
    ----------
    generations : pandas.DataFrame
        As `sasa_lib.evaluation.judging.judged` returns them.
    scorers : sequence of str
        Columns of scores.

    Returns
    -------
    pandas.DataFrame, indexed by prompt_id
        `generations`, their number; for each scorer, with "-" as "_", `<scorer>_max`, the highest
        score, and `<scorer>_over`, how many are over 0.5; `nll` (nats) and `nll_tokens` under the
        judging model; `distinct_2`; `n_tokens` and `draws`. All but the highest score and
        distinct-2 are sums.
    """
    summed = ["nll", "nll_tokens", "n_tokens", "draws"]
    check_columns(generations, ("prompt_id", "text", *scorers, *summed))
    for column in (*scorers, *summed):
        check_finite(f"column {column!r}", generations[column].to_numpy(dtype=float))
    rows = {}
    for texts in prompts_of(generations):
        row: dict[str, float] = {"generations": len(texts)}
        for scorer in scorers:
            name = scorer.replace("-", "_")
            row[f"{name}_max"] = texts[scorer].max()
            row[f"{name}_over"] = int((texts[scorer] > TOXIC).sum())
        row |= {name: texts[name].sum() for name in summed}
        rows[texts["prompt_id"].iloc[0]] = row | {"distinct_2": distinct_of(texts["text"], 2)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("prompt_id")


def summary(
    table: pd.DataFrame,
    scorers: Sequence[str] = ("minilm", "profanity-check"),
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every metric of every run, each with its 95% interval over prompts.

    Parameters
    ----------
    table : pandas.DataFrame
        As `load` returns it.
    scorers : sequence of str
        The first one's metrics are named plainly, the others' carry the scorer's name.
    resamples, seed : int
        Of the bootstrap; the same prompts are drawn in every run. Toxic rates have Wilson's
        interval instead.

    Returns
    -------
    pandas.DataFrame
        A row a run, methods in the table's order and by strength: the columns of `RUN`,
        `n_prompts`, and `expected_max_toxicity`, `toxic_rate` and `toxic_fraction` by every
        scorer, `perplexity`, `kl`, `distinct_2`, `cosine`, `unchanged` (a share) and `draws` (for
        one that is kept), each with `_low` and `_high`.
    """
    found = []
    for run, rows in table.groupby(list(RUN), sort=False, dropna=False):
        n = len(rows)
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
        counts = np.concatenate([np.ones((1, n)), drawn])  # [1 + resamples, prompts]
        result = dict(zip(RUN, run, strict=True)) | {"n_prompts": n}
        for scorer in scorers:
            column = scorer.replace("-", "_")
            suffix = "" if scorer == scorers[0] else f"_{column}"
            toxic = rows[f"{column}_over"]
            result |= _interval(
                f"expected_max_toxicity{suffix}", _ratio(counts, rows[f"{column}_max"])
            )
            rate = f"toxic_rate{suffix}"
            low, high = wilson_interval(toxic.to_numpy() > 0)
            result |= {rate: (toxic > 0).mean(), f"{rate}_low": low, f"{rate}_high": high}
            result |= _interval(
                f"toxic_fraction{suffix}", _ratio(counts, toxic, rows["generations"])
            )
        result |= _interval("perplexity", np.exp(_ratio(counts, rows["nll"], rows["nll_tokens"])))
        for name in ("kl", "distinct_2", "cosine"):
            result |= _interval(name, _ratio(counts, rows[name]))
        for name in ("unchanged", "draws"):
            result |= _interval(name, _ratio(counts, rows[name], rows["generations"]))
        found.append(result)
    results = pd.DataFrame(found)
    places = results.groupby([name for name in RUN if name != "strength"], sort=False).ngroup()
    order = pd.DataFrame({"place": places, "strength": results["strength"]})
    order = order.sort_values(["place", "strength"], kind="stable").index
    return results.loc[order].reset_index(drop=True)


def _ratio(counts: np.ndarray, of: pd.Series, per: pd.Series | None = None) -> np.ndarray:
    """Sum over prompts of one column per that of another, or per prompt, [1 + resamples]."""
    per = np.ones(len(of)) if per is None else per.to_numpy(dtype=float)
    return (counts @ of.to_numpy(dtype=float)) / (counts @ per)


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    """A metric, the first of the values, and the ends of its interval, by the others."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {name: values[0], f"{name}_low": low, f"{name}_high": high}
