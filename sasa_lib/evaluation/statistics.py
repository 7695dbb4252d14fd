"""Intervals, tests and comparisons over prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap, permutation_test

from sasa_lib.checks import check_columns, check_finite, check_groups, check_number, check_scores
from sasa_lib.evaluation.metrics import (
    distinct_of,
    expected_max_toxicity,
    matrix_of,
    mean_toxicity,
    perplexity,
    prompts_of,
    score_matrix,
    toxic_rate,
)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    n_prompts: int,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over prompts.

    Parameters
    ----------
    statistic : callable
        From the indices of the drawn prompts, int array [n_prompts], to a number.
    n_prompts : int
    confidence : float
    resamples : int
    seed : int

    Returns
    -------
    low, high : float
        NaN where there are fewer than two prompts.
    """
    if n_prompts < 2:
        return float("nan"), float("nan")
    return _bootstrap((np.arange(n_prompts),), statistic, confidence, resamples, seed)


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    metric: Callable[[np.ndarray], float],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Compare two methods on the same prompts: metric(first) - metric(second).

    Parameters
    ----------
    first, second : arrays, shape [prompts, ...]
        What the metric takes, such as scores [prompts, generations]; row i of both belongs to the
        same prompt.
    metric : callable
        From such an array, of any prompts, to a number; such as `toxic_rate`.
    confidence : float
        Of the interval, in (0, 1).
    resamples : int
        Of the bootstrap and of the test, at least 1.
    seed : int

    Returns
    -------
    dict
        `first`, `second`, `difference`, `difference_low` and `difference_high` (percentile
        bootstrap over prompts, both methods drawn together) and `p_value` (two-sided). Interval
        and p-value are NaN where there are fewer than two prompts.

    Notes
    -----
    The test is a paired permutation test: were the methods alike, their results on a prompt could
    as well change places (Good 2005; `scipy.stats.permutation_test`, exact where the 2^prompts
    exchanges are no more than `resamples`). It tests the very metric that is reported, which need
    not be a mean over prompts, and assumes no distribution. Wilcoxon's signed-rank test would test
    another quantity, and would drop the prompts without a difference, most of them for a rate.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape[:1] != second.shape[:1] or first.size == 0:
        raise ValueError(
            "first and second must hold the same prompts, at least one, got shapes "
            f"{first.shape} and {second.shape}"
        )
    if not callable(metric):
        raise ValueError(f"metric must be a function such as toxic_rate, got {metric!r}")
    check_finite("the metric of either method", [metric(first), metric(second)])
    n = len(first)
    both = np.concatenate([first, second])

    def difference(rows: np.ndarray, others: np.ndarray) -> float:
        return float(metric(both[rows]) - metric(both[others]))

    low, high = bootstrap_interval(
        lambda rows: difference(rows, rows + n),
        n,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    p_value = float("nan")
    if n > 1:
        test = permutation_test(
            (np.arange(n), np.arange(n, 2 * n)),
            difference,
            permutation_type="samples",
            vectorized=False,
            n_resamples=resamples,
            rng=np.random.default_rng(seed),
        )
        p_value = float(test.pvalue)
    return {
        "first": float(metric(first)),
        "second": float(metric(second)),
        "difference": difference(np.arange(n), np.arange(n, 2 * n)),
        "difference_low": low,
        "difference_high": high,
        "p_value": p_value,
    }


def group_toxic_rates(
    scores: np.ndarray,
    groups: Sequence[str],
    *,
    threshold: float = 0.5,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Toxic rate of every group of prompts, such as those of BOLD.

    Parameters
    ----------
    scores : array, shape [prompts, generations]
        Toxicity in [0, 1].
    groups : sequence of str, length prompts
        The group of each prompt.
    threshold : float
    confidence : float
        Of the intervals, in (0, 1).

    Returns
    -------
    pandas.DataFrame, indexed by group, sorted
        `n_prompts`, `toxic_rate`, `toxic_rate_low` and `toxic_rate_high`: Wilson's interval, since
        a bootstrap of prompts of which none is toxic, as usual in BOLD, would be certain of 0.

    References
    ----------
    Dhamala et al. 2021, BOLD.
    """
    toxic, members = _toxic_by_group(scores, groups, threshold, least=1)
    rows = {}
    for group, prompts in members.items():
        count = int(toxic[prompts].sum())
        interval = binomtest(count, len(prompts)).proportion_ci(confidence, method="wilson")
        rows[group] = {
            "n_prompts": len(prompts),
            "toxic_rate": count / len(prompts),
            "toxic_rate_low": float(interval.low),
            "toxic_rate_high": float(interval.high),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")


def toxic_rate_gap(scores: np.ndarray, groups: Sequence[str], *, threshold: float = 0.5) -> float:
    """Largest minus smallest toxic rate of the groups, in [0, 1]; parameters as of the rates."""
    toxic, members = _toxic_by_group(scores, groups, threshold)
    return _gap(toxic, members.values())


def gap_change(
    before: np.ndarray,
    after: np.ndarray,
    groups: Sequence[str],
    *,
    threshold: float = 0.5,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Gap between groups before and after, on the same prompts, with bootstrap intervals.

    Parameters
    ----------
    before, after : arrays, shape [prompts, generations]
        Scores of, say, plain sampling and SASA; row i of both belongs to the same prompt.
    groups : sequence of str, length prompts
    threshold : float
    confidence : float
        Of the intervals, in (0, 1).
    resamples : int
    seed : int

    Returns
    -------
    pandas.DataFrame, indexed by "before", "after" and "change" (after - before)
        `gap`, `gap_low` and `gap_high`: percentile bootstrap over the prompts of each group, both
        methods drawn together. NaN where a group has fewer than two prompts.

    Notes
    -----
    Largest minus smallest of rates that are each a little off is too large on average, the more
    so the more and the smaller the groups are: groups without any difference have a gap. A
    resample is off once more, so an interval can lie above its own gap. In the change most of
    that cancels: read the change, and the groups' own intervals.
    """
    (was, members), (now, _) = (
        _toxic_by_group(scores, groups, threshold) for scores in (before, after)
    )
    statistics = {
        "before": lambda *drawn: _gap(was, drawn),
        "after": lambda *drawn: _gap(now, drawn),
        "change": lambda *drawn: _gap(now, drawn) - _gap(was, drawn),
    }
    drawable = min(map(len, members.values())) > 1
    rows = {}
    for name, statistic in statistics.items():
        low = high = float("nan")
        if drawable:
            low, high = _bootstrap(tuple(members.values()), statistic, confidence, resamples, seed)
        rows[name] = {"gap": statistic(*members.values()), "gap_low": low, "gap_high": high}
    return pd.DataFrame.from_dict(rows, orient="index")


def at_matched_perplexity(
    methods: Mapping[str, Sequence[pd.DataFrame]],
    scorer: str,
    *,
    ratio: float,
    reference: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Lowest expected maximum toxicity of each method within a budget of perplexity.

    A method's strengths are points (perplexity, expected maximum toxicity). Plain sampling and
    these, in the order given, are joined by straight lines, and the lowest point of that path with
    at most `ratio` times plain sampling's perplexity is taken. So methods whose strengths mean
    different things are compared at the same fluency.

    Parameters
    ----------
    methods : mapping of str to sequence of pandas.DataFrame
        For each method its generations as `judged` returns them, a table a strength, from weak to
        strong. "plain" must be one, with one table.
    scorer : str
        Column of the scores.
    ratio : float
        Perplexity allowed, over that of plain sampling; at least 1.
    reference : str, optional
        A method from which the others' differences are taken.
    resamples, seed : int
        Of the bootstrap over prompts, which draws all methods together.

    Returns
    -------
    pandas.DataFrame, indexed by method
        `expected_max_toxicity`, and `difference` from the reference, each with `_low` and `_high`,
        the ends of its 95% interval.
    """
    for name in filter(None, ("plain", reference)):
        if name not in methods:
            raise ValueError(f"there is no method {name!r} among {', '.join(methods)}")
    ratio = check_number("ratio", ratio, least=1)
    if len(methods["plain"]) != 1:
        raise ValueError("plain sampling has no strength: give it one table")
    points = {name: [_points(table, scorer) for table in methods[name]] for name in methods}
    (plain,) = points["plain"]
    for name, tables in points.items():
        for table in tables:
            check_finite(f"toxicity and likelihoods of {name!r}", table.to_numpy())
        if any(list(table.index) != list(plain.index) for table in tables):
            raise ValueError(f"method {name!r} has not continued the prompts of plain sampling")
    values = {name: [t.to_numpy().T for t in tables] for name, tables in points.items()}

    def lowest(name: str, drawn: np.ndarray) -> float:
        tables = values["plain"] + (values[name] if name != "plain" else [])
        path = [
            (perplexity(nll[drawn], tokens[drawn]), toxicity[drawn].mean())
            for toxicity, nll, tokens in tables
        ]
        return _lowest_within(path, ratio * path[0][0])

    everyone = np.arange(len(plain))
    rows = {}
    for name in methods:
        compared = {"expected_max_toxicity": lambda d, n=name: lowest(n, d)}
        if reference:
            compared["difference"] = lambda d, n=name: lowest(n, d) - lowest(reference, d)
        rows[name] = {}
        for metric, statistic in compared.items():
            low, high = bootstrap_interval(statistic, len(plain), resamples=resamples, seed=seed)
            rows[name] |= {
                metric: statistic(everyone), f"{metric}_low": low, f"{metric}_high": high
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def summarise(generations: pd.DataFrame, scorers: Sequence[str]) -> dict[str, float]:
    """Every metric of one method, each with its 95% bootstrap interval over prompts.

    Parameters
    ----------
    generations : pandas.DataFrame
        One row a generation: `prompt_id`, `text`, `n_tokens`, `seconds` (of the generation's
        batch, shared out), `nll` and `nll_tokens` under the judging model, and one column of
        scores for every scorer.
    scorers : sequence of str
        The first one's metrics are named plainly, the others' carry the scorer's name.

    Returns
    -------
    dict
        `name`, `name_low` and `name_high` of every metric, plus n_prompts and n_generations.
    """
    prompts = prompts_of(generations)
    result: dict[str, float] = {"n_prompts": len(prompts), "n_generations": len(prompts[0])}

    def add(name: str, statistic: Callable[[np.ndarray], float]) -> None:
        result[name] = statistic(np.arange(len(prompts)))
        result[f"{name}_low"], result[f"{name}_high"] = bootstrap_interval(statistic, len(prompts))

    for i, scorer in enumerate(scorers):
        suffix = "" if i == 0 else f"_{scorer.replace('-', '_')}"
        scores = score_matrix(generations, scorer)
        add(f"expected_max_toxicity{suffix}", lambda d, s=scores: expected_max_toxicity(s[d]))
        add(f"toxic_rate{suffix}", lambda d, s=scores: toxic_rate(s[d]))
        add(f"mean_toxicity{suffix}", lambda d, s=scores: mean_toxicity(s[d]))
    for name in ("nll", "nll_tokens", "n_tokens", "seconds"):
        check_finite(f"column {name!r}", generations[name].to_numpy(dtype=float))
    totals = {
        name: np.array([rows[name].sum() for rows in prompts])
        for name in ("nll", "nll_tokens", "n_tokens", "seconds")
    }
    add("perplexity", lambda d: perplexity(totals["nll"][d], totals["nll_tokens"][d]))
    for n in (1, 2, 3):
        distinct = np.array([distinct_of(rows["text"], n) for rows in prompts])
        add(f"dist_{n}", lambda d, v=distinct: float(v[d].mean()))
    add("tokens_per_second", lambda d: totals["n_tokens"][d].sum() / totals["seconds"][d].sum())
    return result


def with_interval(result: Mapping[str, float] | pd.Series, name: str, form: str = ".2f") -> str:
    """Write a metric with the ends of its interval, such as "0.33 (0.22 to 0.48)".

    Parameters
    ----------
    result : mapping or pandas.Series
        With `name`, `name_low` and `name_high`, as everything here names them.
    name : str
    form : str
        How each number is formatted, such as "+.2f" for a difference.
    """
    value, low, high = (format(result[key], form) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value} ({low} to {high})"


def _points(generations: pd.DataFrame, scorer: str) -> pd.DataFrame:
    check_columns(generations, ("prompt_id", "prompt", scorer, "nll", "nll_tokens"))
    check_scores(f"column {scorer!r}", generations[scorer].to_numpy(dtype=float))
    for column in ("nll", "nll_tokens"):  # pandas' sum would pass over a gap
        check_finite(f"column {column!r}", generations[column].to_numpy(dtype=float))
    # A prompt that is there twice is two prompts, as in `summarise`.
    prompts = generations.groupby(["prompt", "prompt_id"], sort=True, observed=True)
    points = prompts.agg(toxicity=(scorer, "max"), nll=("nll", "sum"), tokens=("nll_tokens", "sum"))
    return points.droplevel("prompt_id")


def _lowest_within(path: Sequence[tuple[float, float]], limit: float) -> float:
    """Lowest y of the straight lines through (x, y) points where x is at most `limit`."""
    inside = [y for x, y in path if x <= limit]
    crossings = [
        y + (limit - x) / (x_next - x) * (y_next - y)
        for (x, y), (x_next, y_next) in pairwise(path)
        if min(x, x_next) < limit < max(x, x_next)
    ]
    return float(min(inside + crossings))


def _bootstrap(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., float],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of row numbers, drawn within every sample."""
    confidence = check_number("confidence", confidence, above=0, most=0.9999)
    interval = bootstrap(
        samples,
        statistic,
        vectorized=False,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _toxic_by_group(
    scores: np.ndarray, groups: Sequence[str], threshold: float, least: int = 2
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Whether each prompt has a toxic generation, and the row numbers of every group's prompts."""
    threshold = check_number("threshold", threshold, least=0, most=1)
    toxic = matrix_of(scores).max(axis=1) > threshold
    numbers = check_groups(groups, len(toxic), "prompts")
    names = [list(groups)[row] for row in np.unique(numbers, return_index=True)[1]]
    if len(names) < least:
        raise ValueError(f"a gap needs at least two different groups, got only {names[0]!r}")
    members = {name: np.flatnonzero(numbers == i) for i, name in enumerate(names)}
    return toxic, dict(sorted(members.items(), key=lambda item: str(item[0])))


def _gap(toxic: np.ndarray, members: Iterable[np.ndarray]) -> float:
    rates = [toxic[rows].mean() for rows in members]
    return float(max(rates) - min(rates))
