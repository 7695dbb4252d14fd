"""Checks of the loop itself, and of what its texts are worth: notebooks 04, 05 and 10."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from scipy.special import log_softmax, softmax
from scipy.stats import norm, sem, t

from sasa_lib.course.exercises.answers import (
    Truth,
    WrongAnswer,
    called,
    compare,
    exercise,
    numbers,
    of_function,
)

Law = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


RNG = np.random.default_rng(4)


# A model of six tokens: what may follow each, in this order, how likely, and on which side it lies.
FOLLOWERS = np.array([RNG.permutation(6) for _ in range(6)])


LOGITS, SIDES = RNG.normal(size=(2, 6, 6))


# Prompts, betas and uniform numbers that the loop is tried with.
LOOPS = [
    ([2, 4], 1.5, RNG.uniform(size=30)),
    ([0], 0.0, RNG.uniform(size=12)),
    ([5, 5, 1], 3.0, RNG.uniform(size=20)),
]


def made_up(ids: Sequence[int]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Candidates behind a context, their log p and their margins: a step of the made-up model."""
    last, total = int(ids[-1]), sum(int(token) for token in ids)
    candidates = FOLLOWERS[last, : 2 + total % 5]
    log_p = log_softmax(LOGITS[last, : len(candidates)])
    return candidates.tolist(), log_p, SIDES[total % 6, candidates]


def steered(log_p: np.ndarray, margins: np.ndarray, beta: float) -> np.ndarray:
    """Law of one step."""
    return softmax(log_p + beta * margins)


def in_order(q: np.ndarray, u: float) -> int:
    """Place of the first candidate with which the sum of q exceeds u."""
    return int(np.argmax(np.cumsum(q) > u))


def likeliest_first(q: np.ndarray, u: float) -> int:
    """Place of a candidate, were they in the order of q."""
    order = np.argsort(-q)
    return int(order[in_order(q[order], u)])


def walk(
    ids: Sequence[int], beta: float, uniforms: Sequence[float], *, law: Law = steered,
    draw: Callable[[np.ndarray, float], int] = in_order, read: slice = slice(None),
    grows: bool = True, places: bool = False,
) -> list[int]:  # fmt: skip
    """Tokens that are drawn with uniform numbers; every option is a slip."""
    drawn, found = [], []
    for u in uniforms:
        candidates, *of_step = made_up([*ids, *(drawn if grows else [])][read])
        place = draw(law(*of_step, beta), u)
        drawn.append(candidates[place])
        found.append(place if places else drawn[-1])
    return found


@exercise("this is all of SASA: what a library adds is that nothing is read twice")
def check_naive_loop(answer: object) -> None:
    """04: tokens of a continuation: a function of step, ids, beta and uniform numbers."""
    slips = {
        "the token drawn belongs to the context of the next step": {"grows": False},
        "hand the whole context over, not its last token alone": {"read": slice(-1, None)},
        "this draws from p: where do the margins come in?": {"law": lambda p, m, b: np.exp(p)},
        "it draws towards the toxic side": {"law": lambda p, m, b: steered(p, m, -b)},
        "p is left out: beta times the margin is added to log p": {
            "law": lambda p, m, b: softmax(b * m)
        },
        "add to log p, not to p": {"law": lambda p, m, b: softmax(np.exp(p) + b * m)},
        "beta is left out": {"law": lambda p, m, b: steered(p, m, 1.0)},
        "these weights do not sum to 1: normalise before you add up": {
            "law": lambda p, m, b: np.exp(p + b * m)
        },
        "this takes the likeliest candidate: draw": {"draw": lambda q, u: int(np.argmax(q))},
        "add up in the order in which the candidates come, not the likeliest first": {
            "draw": likeliest_first
        },
        "these are places among the candidates: their ids were asked": {"places": True},
    }
    for ids, beta, uniforms in LOOPS:
        found = numbers(called(answer, made_up, ids, beta, uniforms)).tolist()
        right = walk(ids, beta, uniforms)
        if found == right:
            continue
        if found == [*ids, *right]:
            raise WrongAnswer("the prompt is among them: only the tokens drawn were asked")
        for hint, slip in slips.items():
            if found == walk(ids, beta, uniforms, **slip):
                raise WrongAnswer(hint)
        if len(found) != len(right):
            raise WrongAnswer(f"{len(right)} uniform numbers draw no {len(found)} tokens")
        step = next(i for i, token in enumerate(right) if found[i] != token)
        raise WrongAnswer(
            f"token {step + 1} is {found[step]:g}, and {uniforms[step]:.2f} draws {right[step]} "
            f"behind {[*ids, *right[:step]]} at beta {beta:g}"
        )


def compare_interval(found: object, expected: object, slips: Mapping[str, object]) -> None:
    """Compare a mean and its interval, which a bootstrap finds but for chance."""
    found, (mean, low, high) = numbers(found), numbers(expected)
    if found.size != 3 or np.isnan(found).any():
        compare(found, expected, {})  # which says so
    error = (high - low) / 4

    def near(other: object) -> bool:
        other = numbers(other)
        width, ends = other[2] - other[1], np.abs(found[1:] - other[1:]).max()
        same_width = abs(found[2] - found[1] - width) < 0.14 * width
        return same_width and abs(found[0] - other[0]) < 0.12 * error and ends < 0.12 * width

    if near(expected):
        return
    for hint, slip in slips.items():
        if near(slip):
            raise WrongAnswer(hint)
    if abs(found[0] - mean) >= 0.12 * error:
        size = "large" if found[0] > mean else "small"
        raise WrongAnswer(f"the difference is {found[0]:.3g}, which is too {size}")
    wide = "wide" if found[2] - found[1] > high - low else "narrow"
    same = abs(found[2] - found[1] - high + low) < 0.14 * (high - low)
    how = "lies in the wrong place" if same else f"is too {wide}"
    raise WrongAnswer(f"the interval from {found[1]:.3g} to {found[2]:.3g} {how}")


PLAIN, NOISE = RNG.uniform(0.2, 0.95, 60), RNG.normal(0, 0.1, (2, 60))


@of_function(
    "what a control loses at the same price is no merit of the boundary",
    [
        (PLAIN, np.clip(0.5 * PLAIN + NOISE[0], 0, 1)),
        (PLAIN, np.clip(PLAIN - 0.01 + NOISE[1], 0, 1)),
        (PLAIN[:30], PLAIN[:30] ** 2),
    ],
    compare=compare_interval,
)
def check_paired_interval(plain: np.ndarray, other: np.ndarray) -> Truth:
    """05: difference from plain and its 95% interval: a function of two arrays [prompts]."""
    d = other - plain
    ends = np.array([-1, 1]) * sem(d)
    low, high = d.mean() + t.ppf(0.975, len(d) - 1) * ends
    strangers = 1.96 * np.hypot(sem(plain), sem(other))
    return [d.mean(), low, high], {
        "this is plain minus the other: below 0 was to mean less toxic": [-d.mean(), -high, -low],
        "this takes the prompts for strangers: subtract prompt by prompt first": [
            d.mean(), d.mean() - strangers, d.mean() + strangers
        ],
        "this is where single differences lie, not their mean": [
            d.mean(), *np.percentile(d, [2.5, 97.5])
        ],
        "this is the spread of single differences, not of their mean": [
            d.mean(), *(d.mean() + 1.96 * np.sqrt(len(d)) * ends)
        ],
        "this is a 90% interval: leave 2.5% out at either end": [
            d.mean(), *(d.mean() + 1.645 * ends)
        ],
        "one standard error to either side is a 68% interval": [d.mean(), *(d.mean() + ends)],
        "the difference comes first, its interval behind it": [low, d.mean(), high],
    }  # fmt: skip


READER = RNG.integers(2, size=30)


SCORED = np.round(RNG.uniform(size=(30, 2)) + 0.4 * (np.arange(2) == READER[:, None]), 3)


@of_function(
    "twenty labels of one reader say this much about a scorer, and no more",
    [(READER[:20], SCORED[:20]), (READER, SCORED), (SCORED[:9].argmax(axis=1), SCORED[:9])],
    compare=partial(
        compare, names=("the share", "the lower end", "the upper end"), rtol=1e-3, share=True
    ),
)
def check_agreement(labels: np.ndarray, scores: np.ndarray) -> Truth:
    """05: share of pairs that two judge alike, with Wilson's interval: of labels, scores [n, 2]."""
    z, n = norm.ppf(0.975), len(labels)
    share = float(np.mean(labels == (scores[:, 1] > scores[:, 0])))

    def wilson(p: float, z: float) -> list[float]:
        # Where the true share lies just z of its own standard errors away from p.
        return [p, *sorted(np.roots([1 + z**2 / n, -2 * p - z**2 / n, p**2]).real)]

    wald = z * np.sqrt(share * (1 - share) / n)
    return wilson(share, z), {
        "the higher score is the worse text: this counts where the two differ": (
            wilson(1 - share, z)
        ),
        "this interval is Wald's, which shrinks to nothing at 0 and 1": [
            share, share - wald, share + wald
        ],
        "this is a 90% interval: z is 1.96": wilson(share, norm.ppf(0.95)),
        "this is how often the scorer finds the second text worse": wilson(
            float(np.mean(scores[:, 1] > scores[:, 0])), z
        ),
        "this is their number: divide by the number of pairs": np.multiply(wilson(share, z), n),
    }  # fmt: skip


def compare_count(found: object, expected: object, slips: Mapping[str, object]) -> None:
    """Compare a number of pairs; one by the t distribution, which asks for two more, is right."""
    one = numbers(found)
    (least,) = numbers(expected)
    if one.size == 1 and 0.98 * least <= one[0] <= max(1.02 * least, np.ceil(least + 2)):
        return
    compare(found, expected, slips, rtol=0.012)


@of_function(
    "half the difference takes four times the pairs, and half the spread a quarter",
    [(0.1, 0.02), (0.25, 0.06), (0.3, 0.2)],
    compare=compare_count,
)
def check_pairs_needed(sd: float, difference: float) -> Truth:
    """10: pairs for 80% power at the two-sided 5% level: a function of an sd and a difference."""
    two_sided, power, one_sided = norm.ppf([0.975, 0.8, 0.95])
    unit = (sd / difference) ** 2
    return (two_sided + power) ** 2 * unit, {
        "as many find it in one of two studies: where do the 80% come in?": two_sided**2 * unit,
        "this is for the one-sided level: two-sided leaves 2.5% at either end": (
            (one_sided + power) ** 2 * unit
        ),
        "sd is that of differences already: nothing doubles for the two groups": (
            2 * (two_sided + power) ** 2 * unit
        ),
        "pairs grow with the square of sd over difference": ((two_sided + power) * sd / difference),
        "it is sd over difference, not the other way round": (two_sided + power) ** 2 / unit,
        "0.8 is a probability: its quantile was asked": (two_sided + 0.8) ** 2 * unit,
        "power is missed on the other side: the quantiles are added": (
            (two_sided - power) ** 2 * unit
        ),
        "this is for 90% power": (two_sided + norm.ppf(0.9)) ** 2 * unit,
    }
