"""Checks of the notebooks on use and beyond the paper: 05 to 15."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import log_expit, softmax
from scipy.stats import entropy, sem
from transformers import TopPLogitsWarper

from sasa_lib.course.exercises.answers import (
    Truth,
    WrongAnswer,
    called,
    compare,
    compare_distribution,
    exercise,
    numbers,
    of_function,
)
from sasa_lib.course.exercises.method import GAP, M8, P4, P8, U, V
from sasa_lib.evaluation import metrics, statistics


@of_function(
    "RAD and SASA differ in what is added to the logits, and in who computes it",
    [(M8, V[4], 5.0, 4), (M8, V[5], 2.0, 8), (M8, V[6], 3.0, 1), (M8, V[7], 0.0, 2)],
    compare=compare_distribution,
)
def check_rad(logits: np.ndarray, toxicity: np.ndarray, beta: float, k: int) -> Truth:
    """05: RAD's distribution over the vocabulary: a function of logits, toxicity, beta and k."""

    def top(x: np.ndarray) -> np.ndarray:
        return np.where(x >= np.sort(x)[-k], x, -np.inf)

    added = beta * (1 - np.clip(toxicity, 0, 1))
    return softmax(top(logits) + added), {
        "only the k likeliest are candidates": softmax(logits + added),
        "the k likeliest are the model's, before the reward": softmax(top(logits + added)),
        "it rewards what is toxic": softmax(top(logits) - added),
        "clip the toxicity to [0, 1] first": softmax(top(logits) - beta * toxicity),
    }


@of_function(
    "what twins share, the rest of the sentence, drops out of the interval as well",
    [(U[:12, :4] + U[12:, :1], U[:12, 4:] + U[12:, :1] - 0.1), (U[:3, :1], U[3:6, :1])],
)
def check_twin_difference(first: np.ndarray, second: np.ndarray) -> Truth:
    """10: difference of twins and its standard error: a function of two [pairs, generations]."""
    a, b, every = first.mean(axis=1), second.mean(axis=1), first - second
    d, strangers = np.mean(a - b), np.hypot(sem(a), sem(b))
    return [d, sem(a - b)], {
        "this takes twins for strangers: subtract pair by pair first": [d, strangers],
        "the sample standard deviation divides by n - 1": [d, sem(a - b, ddof=0)],
        "take each prompt's mean first: its generations are alike": [d, sem(every.ravel())],
        "this is the spread of the differences, not of their mean": [d, np.std(a - b, ddof=1)],
        "this is second minus first": [-d, sem(a - b)],
    }


@of_function(
    "generations of a prompt resemble each other, so prompts are what must be drawn",
    [(U[:, :1] + 0.2 * U[:, 1:],)],
    compare=partial(compare, rtol=0, atol=0.012),
)
def check_bootstrap(values: np.ndarray) -> Truth:
    """11: 95% interval of the mean over prompts: a function of values [prompts, generations]."""
    mean, rows = values.mean(), values.mean(axis=1)
    ends = np.array(
        statistics.bootstrap_interval(lambda d: rows[d].mean(), len(rows), resamples=10_000)
    )
    alone = mean + np.array([-1.96, 1.96]) * sem(values.ravel())
    return ends, {
        "too narrow: generations were drawn, and prompts were asked": alone,
        "this is where prompts lie, not their mean": np.percentile(rows, [2.5, 97.5]),
        "this is a 90% interval: leave 2.5% out at either end": mean + (ends - mean) * 1.645 / 1.96,
    }


@exercise("one word is many tokens; a filter that forgets one lets the word through")
def check_bad_words(answer: object) -> None:
    """12: strings in which a tokenizer may meet a word: a function of a word in lower case."""
    for word in ("hoe", "mongrel", "x"):
        found = called(answer, word)
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise WrongAnswer(f"this is a {type(found).__name__}, and several strings were asked")
        forms, found = {word, word.capitalize(), word.upper()}, set(found)
        asked = {space + form for space in ("", " ") for form in forms}
        spaced = {string.startswith(" ") for string in asked - found}
        if spaced == {True}:
            raise WrongAnswer(f"behind a space it is another token: {' ' + word!r} is not {word!r}")
        if spaced == {False}:
            raise WrongAnswer("what stands at the beginning of a text has no space before it")
        if spaced:
            raise WrongAnswer(
                f"{len(asked - found)} strings are missing for {word!r}: which casings?"
            )
        if found - asked:
            raise WrongAnswer(f"{min(map(repr, found - asked))} was not asked for {word!r}")


@exercise("candidates are dear below the boundary only, which is why its layer matters")
def check_grows_with_k(answer: object) -> None:
    """13: letters of the operations that have more rows to compute where k is larger."""
    step = {
        "a": lambda k: k,  # the blocks up to the boundary's layer
        "b": lambda k: 1,  # the blocks above it
        "c": lambda k: 1,  # the language model's head
        "d": lambda k: k,  # the products with the boundary's normal
        "e": lambda k: 0,  # reading the prompt, before the first step
        "f": lambda k: 1,  # keeping keys and values for the steps after
    }
    grow = {letter for letter, rows in step.items() if rows(9) > rows(2)}
    if not isinstance(answer, Iterable):
        raise WrongAnswer(f"this is a {type(answer).__name__}, and letters were asked")
    found = {letter for part in answer for letter in str(part).lower() if letter.isalnum()}
    if found - set(step):
        raise WrongAnswer(f"{min(found - set(step))!r} is none of the letters {', '.join(step)}")
    if found - grow:
        raise WrongAnswer(
            "there is something in it that only the drawn candidate, or the prompt, needs"
        )
    if grow - found:
        raise WrongAnswer("something is missing that every candidate needs before one can be drawn")


@of_function(
    "where the model is sure there is little to compute, and little to choose from",
    [(P8, 0.9), (P8, 0.35), (np.array([0.05, 0.92, 0.03]), 0.9), (np.full(4, 0.25), 1.0)],
)
def check_nucleus(p: np.ndarray, top_p: float) -> Truth:
    """13: how many candidates top-p keeps: a function of p and top_p."""
    scores = torch.tensor(np.log(p))[None]
    kept = int(TopPLogitsWarper(top_p)(None, scores).isfinite().sum())
    unsorted = np.searchsorted(np.cumsum(p), top_p) + 1
    return kept, {
        "the token with which the sum reaches top_p is kept as well": kept - 1,
        "the likeliest come first: sort before adding up": unsorted,
        "this is how many are removed": p.size - kept,
    }


@of_function(
    "a mean that is a running sum costs nothing, so the choice of the phrase is free",
    [(M8, 0.8), (V[0], 1.0), (M8[:1], 0.5)],
)
def check_running_margins(m: np.ndarray, decay: float) -> Truth:
    """06: margins of all beginnings of a text: a function of its tokens' margins and the decay."""
    t = np.arange(len(m))
    age = t[:, None] - t
    weights = np.where(age >= 0, decay ** np.maximum(age, 0.0), 0)
    means, young = weights @ m / weights.sum(axis=1), decay**t
    smoothed = [m[0]]
    for margin in m[1:]:
        smoothed.append(decay * smoothed[-1] + (1 - decay) * margin)
    return means, {
        "the first token weighs most here": np.cumsum(m * young) / np.cumsum(young),
        "this is the sum: divide by the sum of the weights": weights @ m,
        "divide by the sum of the weights, not by their number": weights @ m / (t + 1),
        "the decay is left out": np.cumsum(m) / (t + 1),
        "smoothing like this gives the first token a weight of its own": smoothed,
    }


@of_function(
    "far on the toxic side only beta times slope counts: a smaller slope is a smaller beta",
    [(2.0, 3.0, 1.2), (1.0, 1.5, 2.5), (0.0, 3.0, 1.0)],
)
def check_calibrated_beta(beta: float, slope: float, new: float) -> Truth:
    """06: beta that pulls clearly toxic texts as hard: a function of beta, slope and new slope."""
    near, far = log_expit(np.outer([-1e3, -2e3], [slope, new]))
    before, after = near - far
    return beta * before / after, {
        "is it the other way round? Does a smaller slope need more beta?": beta * new / slope,
        "the slope does matter for clearly toxic texts": beta,
        "this is what is added, not the beta that adds it": beta * slope,
    }


@exercise("so a budget is a promise about every single draw, whatever the margins are")
def check_pinsker(answer: object, moved: float = 0.05) -> None:
    """14: budget in nats with which no step moves more than a share of the probability."""
    budget = brentq(lambda nats: np.sqrt(nats / 2) - moved, 0, 2)
    slips = {
        "this is what a budget of that size moves: turn the bound round": np.sqrt(moved / 2),
        "the square is missing": 2 * moved,
        "the 2 is missing": moved**2,
        "the 2 is on the other side": moved**2 / 2,
    }
    compare(answer, budget, slips, rtol=1e-3, atol=1e-7)


@of_function(
    "one budget is a beta of its own at every step: large where candidates are alike",
    [(P4, M8[:4], 0.1), (P8, M8, 0.3), (np.array([0.9, 0.1]), np.array([0.2, -1.0]), 0.5)],
    compare=partial(compare, rtol=2e-3),
)
def check_budget_beta(p: np.ndarray, m: np.ndarray, budget: float) -> Truth:
    """14: beta that spends a budget: a function of p, margins and the budget in nats."""

    def left(beta: float) -> float:
        return budget - entropy(softmax(np.log(p) + beta * m), p)

    def root(end: float) -> float:
        return np.inf if left(end) > 0 else brentq(left, 0, end)

    small = np.sqrt(2 * budget / (p @ (m - p @ m) ** 2))
    return root(1e3), {
        "this is the approximation for small betas; solve for the exact one": small,
        "it spends the budget on the toxic side: beta is at least 0": root(-1e3),
    }


@of_function(
    "the stronger pull decides the direction, and opposed values leave little of either",
    [(-0.3, 4.0, 2.0), (0.6, 1.0, 3.0), (0.0, 0.0, 1.0), (-1.0, 2.0, 1.0)],
)
def check_direction_of_sum(cosine: float, one: float, other: float) -> Truth:
    """15: cosine of a sum of normals with the first: a function of their cosine and strengths."""
    first, second = np.array([1, 0]), np.array([cosine, np.sqrt(1 - cosine**2)])
    total = one * first + other * second
    along, length = total @ first, np.linalg.norm(total)
    return along / length, {
        "the sum is not of length 1: divide by its length": along,
        "the length of a sum depends on the cosine as well": along / np.hypot(one, other),
        "|a + b| is not |a| + |b|": along / (one + other),
        "this is the cosine with the second": total @ second / length,
    }


@exercise("in the margin form a surplus pays for a deficit; log sigma has no surplus to pay with")
def check_surplus(answer: object) -> None:
    """15: two candidates that margin and posterior form rank differently: margins [2, 2]."""
    margins = numbers(answer)
    if margins.size != 4:
        raise WrongAnswer(f"the count of numbers is off: {margins.size} instead of two times two")
    margins = margins.reshape(2, 2)
    if not margins[0, 1] < 0:
        raise WrongAnswer("the first candidate is no threat: its second margin must be below 0")
    first, second = margins.sum(axis=1)
    if not first > second:
        raise WrongAnswer(f"the margin form prefers the second: {first:.3g} against {second:.3g}")
    first, second = log_expit(3 * margins).sum(axis=1)
    if not first < second:
        raise WrongAnswer(
            f"the posterior form prefers the first, too: {first:.3g} against {second:.3g}"
        )


@of_function(
    "a method that says the same thing over and over is caught here, and nowhere else",
    [(["a b a b a", "b a  c b", "c d", "d"], 2), (["a b", "a b", "c"], 1), (["a", "b b"], 3)],
)
def check_distinct(texts: Sequence[str], n: int) -> Truth:
    """07: distinct n-grams per word: a function of the generations of one prompt, and n."""
    at_spaces = [text.split(" ") for text in texts]
    texts = [text.split() for text in texts]
    one = [word for words in texts for word in words]

    def grams(words: list[str]) -> list[tuple[str, ...]]:
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    every = [gram for words in texts for gram in grams(words)]
    with_empty = {gram for words in at_spaces for gram in grams(words)}
    alone = sum(len(set(grams(words))) for words in texts)
    return metrics.distinct_n([[" ".join(words) for words in texts]], n), {
        "per word was asked, not per n-gram": len(set(every)) / max(len(every), 1),
        "what two texts share counts once": alone / len(one),
        "no n-gram runs from one text into the next": len(set(grams(one))) / len(one),
        "this is their number: divide by the number of words": len(set(every)),
        "only different ones were asked": len(every) / len(one),
        "two spaces make no empty word between them: `split()`, not `split(' ')`": (
            len(with_empty) / sum(map(len, at_spaces))
        ),
    }


@of_function(
    "what is kept has the model's own ratios: it is the model, restricted",
    [(P8, M8, 0.0), (P8, M8, float(M8[2])), (P4, M8[:4], -9.0)],
    compare=compare_distribution,
)
def check_accepted_law(p: np.ndarray, margins: np.ndarray, above: float) -> Truth:
    """08: law of what is accepted: a function of probabilities, margins and a threshold."""
    side = margins > above
    return np.where(side, p, 0) / p[side].sum(), {
        "a margin at the threshold does not lie above it": softmax(
            np.where(margins >= above, np.log(p), -np.inf)
        ),
        "this keeps what is refused": softmax(np.where(margins <= above, np.log(p), -np.inf)),
        "these have the same probability: the model's own ratios stay": side / side.sum(),
        "this re-weights by the margin: acceptance does not": softmax(
            np.where(side, np.log(p) + margins, -np.inf)
        ),
    }


@of_function(
    "it is paid once for a response, however long that is",
    [(0.5, 20), (0.9, 1), (1.0, 7)],
)
def check_acceptance_nats(share: float, tokens: int) -> Truth:
    """08: divergence from plain sampling in nats a token: a function of a share and a length."""
    return np.log(1 / share) / tokens, {
        "this is of the whole response: divide by its tokens": np.log(1 / share),
        "a divergence is not below 0": np.log(share) / tokens,
        "these are bits": np.log2(1 / share) / tokens,
        "it is paid once, not at every token": np.log(1 / share) * tokens,
    }


@of_function(
    "the first that lies above is kept, and nothing after it is drawn",
    [(M8, 0.5, 8), (M8, 9.0, 5), (-np.sort(-M8), float(M8.max()), 6), (np.sort(M8), 0.0, 8)],
)
def check_accept_loop(margins: np.ndarray, above: float, at_most: int) -> Truth:
    """08: which response is kept, and how many are drawn: of margins, threshold and a limit."""
    some = margins[:at_most]

    def loop(above_it: np.ndarray) -> list[int]:
        return [int(above_it.argmax())] * 2 if above_it.any() else [int(some.argmax()), at_most - 1]

    kept, last = loop(some > above)
    at_threshold, last_at = loop(some >= above)
    return [kept, last + 1], {
        "one draw is a draw: count from 1": [kept, last],
        "a margin at the threshold does not lie above it": [at_threshold, last_at + 1],
        "this is the best of all: the first that lies above is kept": [some.argmax(), at_most],
        "where none lies above, the largest of them is kept": [last, last + 1],
    }


def compare_exactly(found: object, expected: object, slips: Mapping[str, object]) -> None:
    """Compare to 1e-9, as an enumeration allows."""
    compare(found, expected, slips)
    off = np.abs(numbers(found) - numbers(expected)).max()
    if off > 1e-9:
        raise WrongAnswer(f"this is off by {off:.0e}: 1e-9 needs double precision")


@of_function(
    "the order of the margins decides, never their size, so no unit or slope matters",
    [(P4, M8[:4], 3), (P8, M8, 2), (GAP, V[1, :4], 4), (P4, M8[4:], 1)],
    compare=compare_exactly,
)
def check_best_of_law(p: np.ndarray, margins: np.ndarray, n: int) -> Truth:
    """07: law of the best of n draws: a function of p, distinct margins and n."""
    best, worst = np.zeros((2, len(p)))
    for drawn in product(range(len(p)), repeat=n):
        chance = np.prod(p[list(drawn)])
        best[max(drawn, key=lambda text: margins[text])] += chance
        worst[min(drawn, key=lambda text: margins[text])] += chance
    at_most = np.array([p[margins <= margin].sum() for margin in margins])
    return best, {
        "this is the worst of n: add up from the smallest margin to the largest": worst,
        "this is p, the law of a single draw: the power n is missing": p,
        "add up in the order of the margins, not as the texts stand": (
            np.diff(np.cumsum(p) ** n, prepend=0)
        ),
        "the power belongs to the sums, and the differences come after it": p**n,
        "this is the chance that the best lies no higher: take differences": at_most**n,
        "n F^(n-1) p holds for texts of small probability: take differences of F^n": (
            n * at_most ** (n - 1) * p
        ),
        "this is how often a text is among the draws, best or not": 1 - (1 - p) ** n,
    }
