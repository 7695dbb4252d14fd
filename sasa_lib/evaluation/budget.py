"""A budget of divergence from what one wants to pay: so much more perplexity, and no more."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.checks import check_count, check_finite, check_number
from sasa_lib.decoding.method import Decoder, PlainSampling
from sasa_lib.decoding.sasa import SASA
from sasa_lib.engine.storage import place
from sasa_lib.evaluation import judging, metrics, runs, statistics

LEAST, MOST = 1e-3, 10.0  # nats a token: hardly a draw changes; nothing that is sampled is cut


def calibrate(
    sasa: SASA,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    sampling: runs.Sampling,
    folder: str | Path,
    target_perplexity_ratio: float = 1.05,
    judge: PreTrainedModel | None = None,
    judge_tokenizer: PreTrainedTokenizerBase | None = None,
    tolerance: float = 0.01,
    steps: int = 7,
    progress: bool = True,
) -> tuple[SASA, pd.DataFrame]:
    """Find the budget `max_kl` at which SASA raises perplexity as far as one allows.

    Plain sampling and SASA without a budget continue the prompts first. If the latter raises
    perplexity by more than is allowed, the logarithm of max_kl is bisected between 0.001 and 10
    nats a token. All draw with the same noise, that of `sasa.seed`, so that they differ by the
    budget and not by chance.

    Parameters
    ----------
    sasa : SASA
        With a seed. Its own max_kl plays no part.
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    prompts : sequence of str
        Like those that SASA is meant for; some ten or more, or the ratio is mostly chance.
    sampling : Sampling
    folder : str or Path
        Every budget tried is a run of its own here (`runs.generate`), and judgements lie in its
        folder `judged`: a calibration that was killed goes on where it was.
    target_perplexity_ratio : float
        Perplexity allowed, over that of plain sampling on the same prompts; above 1.
    judge, judge_tokenizer : optional
        The model under which perplexity is measured: that of the generations given their prompts,
        all together, under the judge's whole distribution, as in `metrics.perplexity`. None is
        `model` itself, which takes its own habits for fluency.
    tolerance : float
        The search ends early where the ratio is at most so far below the target.
    steps : int
        Budgets tried, at most; seven leave the budget uncertain by 7%.
    progress : bool

    Returns
    -------
    SASA
        With the largest budget tried whose ratio is within the target; with max_kl = None, where
        even without a budget it is.
    pandas.DataFrame
        What was tried, sorted by `max_kl` (nats a token; 0 is plain sampling, infinity no budget):
        `perplexity`, `ratio`, `ratio_low` and `ratio_high` (the ends of its 95% bootstrap interval
        over prompts, NaN for one prompt), and `chosen`.

    Warns
    -----
    UserWarning
        Some larger budget has a ratio that is lower by more than the tolerance: the sample is too
        small, or the judge does not mind the steering.

    Notes
    -----
    The KL of a step grows with its budget, but the perplexity of a sample need not: where one
    other token is drawn, another sentence follows. So the ratio may cross the target more than
    once, of which bisection finds one place. All larger budgets that were tried are beyond the
    target, all smaller ones within. A larger target never leads to a smaller budget.

    The interval says how much the ratio varies from prompt to prompt. It does not know that the
    budget was chosen on these very prompts: measure on others what it costs.

    Examples
    --------
    >>> sasa = SASA(boundary, beta=4.0, seed=0)  # doctest: +SKIP
    >>> sasa, tried = budget.calibrate(
    ...     sasa, model, tokenizer, prompts, sampling=runs.Sampling(), folder="runs/mine"
    ... )  # doctest: +SKIP
    """
    _check(sasa, target_perplexity_ratio, tolerance, steps)
    if (judge is None) != (judge_tokenizer is None):
        raise ValueError("give judge and judge_tokenizer both, or neither")
    if judge is None:
        judge, judge_tokenizer = model, tokenizer

    def continued(method: str, decoder: Decoder | None) -> pd.DataFrame:
        texts = runs.generate(
            model, tokenizer, prompts, sampling,
            folder=folder, method=method, custom_generate=decoder, progress=progress,
        )  # fmt: skip
        return judging.judged(
            texts, [], judge, judge_tokenizer, folder=place(folder) / "judged", progress=progress
        )

    plain = continued("plain", PlainSampling(sasa.seed))
    tried = {0.0: relative_perplexity(plain, plain)}

    def within(max_kl: float) -> bool:
        limited = sasa.with_max_kl(max_kl if max_kl < float("inf") else None)
        tried[max_kl] = relative_perplexity(continued("sasa", limited), plain)
        return tried[max_kl]["ratio"] <= target_perplexity_ratio

    if within(float("inf")):
        return sasa.with_max_kl(None), _table(tried, float("inf"))
    found, low, high = None, LEAST, MOST
    for _ in range(steps):
        max_kl = float(f"{np.sqrt(low * high):.3g}")  # a number that one can type
        if not low < max_kl < high:
            break
        if not within(max_kl):
            high = max_kl
            continue
        found = low = max_kl
        if tried[max_kl]["ratio"] >= target_perplexity_ratio - tolerance:
            break
    if found is None:
        raise ValueError(
            f"even with max_kl={high:g} the perplexity is {tried[high]['ratio']:.4g} times that of "
            f"plain sampling, above the target of {target_perplexity_ratio:g}: give more prompts "
            "or generations, more steps, or a larger target"
        )
    table = _table(tried, found)
    _warn_of_falls(table["ratio"].to_numpy(), tolerance)
    return sasa.with_max_kl(found), table


def _warn_of_falls(ratios: np.ndarray, tolerance: float) -> None:
    if (np.maximum.accumulate(ratios) - ratios > tolerance).any():
        warnings.warn(
            "a larger budget has a clearly lower perplexity here, so the budget found is uncertain "
            "(see the table): give more prompts or generations",
            stacklevel=3,
        )


def relative_perplexity(generations: pd.DataFrame, plain: pd.DataFrame) -> dict[str, float]:
    """Perplexity of generations over that of plain sampling on the same prompts.

    Parameters
    ----------
    generations, plain : pandas.DataFrame
        As `judging.judged` returns them: `prompt_id`, `prompt`, `nll` (nats) and `nll_tokens`.

    Returns
    -------
    dict
        `perplexity` of the generations, `ratio`, and `ratio_low` and `ratio_high`, the ends of its
        95% bootstrap interval over prompts, which are drawn for both together (NaN for one prompt).
    """
    for table in (generations, plain):
        check_finite("nll", table["nll"])  # which a sum would pass over
    steered, reference = (
        table.groupby(["prompt_id", "prompt"])[["nll", "nll_tokens"]].sum()
        for table in (generations, plain)
    )
    if not steered.index.equals(reference.index):
        raise ValueError("a perplexity ratio needs generations of the same prompts on both sides")
    if not reference["nll_tokens"].any():
        raise ValueError("plain sampling gave nothing but empty texts, which have no perplexity")
    totals = np.stack([reference.to_numpy(), steered.to_numpy()], axis=1)
    low, high = statistics.bootstrap_interval(
        lambda drawn: metrics.perplexity_ratio(totals[drawn]), len(totals)
    )
    return {
        "perplexity": metrics.perplexity(*totals[:, 1].T),
        "ratio": metrics.perplexity_ratio(totals),
        "ratio_low": low,
        "ratio_high": high,
    }


def _check(sasa: SASA, target: float, tolerance: float, steps: int) -> None:
    if sasa.seed is None:
        raise ValueError(
            "calibration needs a seed, SASA(..., seed=0), so that budgets are compared on the same "
            "noise"
        )
    check_number("target_perplexity_ratio", target, above=1)
    check_number("tolerance", tolerance, least=0)
    check_count("steps", steps)


def _table(tried: dict[float, dict[str, float]], chosen: float) -> pd.DataFrame:
    table = pd.DataFrame.from_dict(tried, orient="index").rename_axis("max_kl")
    table = table.sort_index().reset_index()
    return table.assign(chosen=table["max_kl"] == chosen)
