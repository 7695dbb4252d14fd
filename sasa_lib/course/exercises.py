"""Exercises that check themselves: what the last cells of the notebooks call.

Every `check_<topic>(answer, ...)` takes an answer, which is a number, several of them in whatever
holds numbers, or a function, and returns a `Verdict`. A function is tried on random inputs and on
edge cases against a computation of its own, so it may be written in any way. What depends on a run
is passed by the notebook. Nothing is raised: an answer that is off, or a function that raises, is
told what is off, and one that is still `...` that it is not answered yet. The number that a check's
docstring begins with is its notebook's.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from scipy.spatial.distance import pdist
from scipy.special import log_expit, rel_entr, softmax
from scipy.stats import entropy, norm, sem
from sklearn.metrics import roc_auc_score
from transformers import TopPLogitsWarper

from sasa_lib.evaluation import metrics, statistics
from sasa_lib.subspace.boundary import Boundary

# What is expected of a case, and wrong answers by what is said of them.
Truth = tuple[object, Mapping[str, object]]
FACTORS = {
    1 / np.log(2): "this is log base 2: nats were asked",
    1 / np.log(10): "this is log base 10: nats were asked",
    100.0: "this looks like percent: a share between 0 and 1 was asked",
    2.0: "this is twice what was asked",
    0.5: "this is half of what was asked",
}


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check says of an answer; true only if the answer is right.

    Attributes
    ----------
    right : bool or None
        None: not answered yet.
    message : str
        Why it matters, or what is off; also what a notebook shows.
    """

    right: bool | None
    message: str

    def __bool__(self) -> bool:
        return self.right is True

    def __repr__(self) -> str:
        return self.message


class _Off(Exception):
    """What is off with an answer."""


class _Unanswered(Exception):
    """There is no answer yet."""


def _exercise(why: str) -> Callable[[Callable[..., None]], Callable[..., Verdict]]:
    """Make a check, which raises what is off, return a verdict; `why` is said of what is right."""

    def decorate(check: Callable[..., None]) -> Callable[..., Verdict]:
        @wraps(check)
        def checked(answer: object, *arguments: object, **options: object) -> Verdict:
            try:
                _answered(answer)
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")
                    check(answer, *arguments, **options)
            except _Unanswered:
                return Verdict(None, "not answered yet")
            except _Off as off:
                return Verdict(False, f"not right yet: {off}")
            return Verdict(True, f"right: {why}")

        return checked

    return decorate


def _answered(answer: object) -> None:
    for part in answer if isinstance(answer, list | tuple) else [answer]:
        if part is None or part is Ellipsis:
            raise _Unanswered


def _numbers(answer: object) -> np.ndarray:
    """Whatever holds numbers, as a flat array."""
    _answered(answer)
    parts = answer if isinstance(answer, list | tuple) else [answer]
    try:
        parts = [p.detach().cpu() if isinstance(p, torch.Tensor) else p for p in parts]
        return np.asarray(parts, dtype=float).ravel()
    except (TypeError, ValueError):
        raise _Off(f"this is a {type(answer).__name__}, and numbers were asked") from None


def _call(function: object, *case: object) -> object:
    if not callable(function):
        raise _Off(f"this is a {type(function).__name__}, and a function was asked")
    try:
        found = function(*copy.deepcopy(case))  # it may write into them
    except Exception as error:
        name = getattr(function, "__name__", "the function")
        raise _Off(f"{name} raises {type(error).__name__}: {error}") from None
    _answered(found)
    return found


def _compare(
    found: object,
    expected: object,
    slips: Mapping[str, object],
    *,
    names: Sequence[str] = (),
    rtol: float = 1e-4,
    atol: float = 1e-6,
    share: bool = False,
) -> None:
    """Raise what is off: a known slip, or else how the numbers differ from what is expected."""
    found, expected = _numbers(found), _numbers(expected)
    if found.size != expected.size:
        raise _Off(f"the count of numbers is off: {found.size} instead of {expected.size}")
    if np.isnan(found).any():
        raise _Off("there is NaN in it (0/0, or 0 times infinity, such as 0 log 0?)")

    def close(one: np.ndarray, other: np.ndarray) -> bool:
        return one.shape == other.shape and np.allclose(one, other, rtol=rtol, atol=atol)

    if close(found, expected) or (share and close(found / 100, expected)):
        return
    for hint, slip in slips.items():
        if close(found, _numbers(slip)):
            raise _Off(hint)
    if close(found, -expected):
        raise _Off("the sign is turned round")
    for factor, hint in FACTORS.items():
        if expected.any() and close(found, factor * expected):
            raise _Off(hint)
    if found.size > 2 and close(found, expected[::-1]):
        raise _Off("the order is reversed")
    if close(np.sort(found), np.sort(expected)):
        raise _Off("these are the right numbers, in another order")
    where = int(np.argmax(~np.isclose(found, expected, rtol=rtol, atol=atol)))
    label = names[where] if names else f"number {where + 1}" if found.size > 1 else "it"
    if np.isinf(expected[where]):
        raise _Off(f"{label} is {found[where]:.4g}, and infinity is right")
    size = "large" if found[where] > expected[where] else "small"
    raise _Off(f"{label} is {found[where]:.4g}, which is too {size}")


def _distribution(found: object, expected: object, slips: Mapping[str, object]) -> None:
    total = _numbers(found).sum()
    if _numbers(found).size == np.size(expected) and abs(total - 1) > 1e-4:
        raise _Off(f"it sums to {total:.3g}: is it normalised?")
    _compare(found, expected, slips)


def _direction(found: object, expected: object, slips: Mapping[str, object]) -> None:
    """Compare but for a positive factor."""

    def unit(vector: object) -> np.ndarray:
        vector = _numbers(vector)
        if not vector.any():
            raise _Off("it is 0, which has no direction")
        return vector / np.linalg.norm(vector)

    _compare(unit(found), unit(expected), {hint: unit(slip) for hint, slip in slips.items()})


def _of_function(
    why: str, cases: Sequence[tuple], compare: Callable[..., None] = _compare
) -> Callable[[Callable[..., Truth]], Callable[[object], Verdict]]:
    """Make the check of a function, on some cases, from what is true of one case."""

    def decorate(truth: Callable[..., Truth]) -> Callable[[object], Verdict]:
        names = list(inspect.signature(truth).parameters)

        def check(answer: object) -> None:
            if not callable(answer):
                raise _Off(f"this is a {type(answer).__name__}, and a function was asked")
            for case in cases:
                try:
                    compare(_call(answer, *case), *truth(*case))
                except _Off as off:
                    given = (f"{n} = {_shown(v)}" for n, v in zip(names, case, strict=True))
                    raise _Off(f"{off} (for {', '.join(given)})") from None

        check.__name__, check.__qualname__, check.__doc__ = [truth.__name__] * 2 + [truth.__doc__]
        return _exercise(why)(check)

    return decorate


def _shown(value: object) -> str:
    text = repr(value)
    if isinstance(value, np.ndarray):
        text = np.array2string(value, precision=3, separator=", ").replace("\n", "")
    return text if len(text) < 60 else f"{type(value).__name__} of {len(value)}"


# What functions are tried on.
RNG = np.random.default_rng(0)
P4, P8 = RNG.dirichlet(np.ones(4)), RNG.dirichlet(np.ones(8))
GAP = np.array([0.5, 0.2, 0.0, 0.3])
M8, V, U = RNG.normal(size=8), RNG.normal(0.5, 1, (30, 8)), RNG.uniform(size=(24, 8))
SIDE = np.arange(8) % 3 == 0


@_of_function(
    "the sum costs n times d operations, where a loop over pairs costs n times as many",
    [(V[:6, :4],), (V[:2],), (V,)],
)
def check_anisotropy(e: np.ndarray) -> Truth:
    """01: mean cosine of two different texts: a function of embeddings [n, size]."""
    n, lengths = len(e), np.linalg.norm(e, axis=1, keepdims=True)
    total, raw = (np.square(v.sum(axis=0)).sum() for v in (e / lengths, e))
    return 1 - pdist(e, "cosine").mean(), {
        "the n cosines of a text with itself, all 1, are among them": total / n**2,
        "there are n (n - 1) ordered pairs of different texts": (total - n) / n**2,
        "a cosine is of vectors of length 1": (raw - np.square(e).sum()) / (n * (n - 1)),
    }


@_exercise("an AUC sees the order of the texts alone, neither distances nor calibration")
def check_auc_of_maps(answer: object, margins: np.ndarray, toxic: np.ndarray) -> None:
    """02: AUC of 2m + 1, m^3, exp(m) and -m: four numbers."""
    m, toxic = np.asarray(margins, dtype=float), np.asarray(toxic, dtype=bool)
    aucs = [roc_auc_score(~toxic, mapped) for mapped in (2 * m + 1, m**3, np.exp(m), -m)]
    slips = {
        "the last map turns the order round: every pair that was right is wrong": [aucs[0]] * 4,
        "0.5 would be chance; turned round, what was right is wrong": [*aucs[:3], 0.5],
    }
    names = [f"the AUC of {name}" for name in ("2m + 1", "m^3", "exp(m)", "-m")]
    _compare(answer, aucs, slips, names=names, rtol=2e-3, atol=2e-3, share=True)


@_of_function(
    "it is the chance that a nontoxic text lies above a toxic one, and needs no threshold",
    [(M8.round(), SIDE), (V[0].round(1), SIDE), (0 * M8, SIDE)],
)
def check_auc(m: np.ndarray, toxic: np.ndarray) -> Truth:
    """02: AUC by counting pairs: a function of margins and toxic."""
    above, auc = m[~toxic][:, None] - m[toxic], roc_auc_score(~toxic, m)
    return auc, {
        "this counts the pairs in which the toxic text lies higher": 1 - auc,
        "a tie counts half, not nothing": (above > 0).mean(),
        "a tie counts half, not whole": (above >= 0).mean(),
        "this is a number of pairs: their share was asked": auc * above.size,
    }


@_exercise("so only with scaled margins does one beta mean the same on every model and layer")
def check_scaled_states(answer: object, factor: float = 10.0) -> None:
    """03: factors of margin, scaled margin and log-odds, if all hidden states grow by a factor."""
    toxic, found = np.arange(len(V)) % 2 == 0, []
    states = V[:, :3] - toxic[:, None]
    for scale in (1.0, factor):
        e = scale * states
        one = Boundary.from_embeddings(e, toxic, layer=0, pooling="mean", model="")
        margin, scaled = one.margins(e[0]), one.margins(e[0], scaled=True)
        found.append([margin, scaled, one.weight_norm * margin])
    margin, scaled, odds = np.divide(found[1], found[0])
    slips = {
        "w shrinks as the margin grows; what is toxic has no unit": [margin, scaled, margin],
        "the standard deviation, by which it is divided, grows, too": [margin, margin, odds],
    }
    names = ("the factor of the margin", "that of the scaled margin", "that of the log-odds")
    _compare(answer, [margin, scaled, odds], slips, names=names, rtol=1e-3)


@_of_function(
    "the covariance turns the normal away from directions that vary anyway",
    [(V[0], V[1], V.T @ V), (*V[2:4, :2], np.cov(V[:, :2].T)), (M8[:1], V[0, :1], np.eye(1))],
    compare=_direction,
)
def check_normal(nontoxic: np.ndarray, toxic: np.ndarray, covariance: np.ndarray) -> Truth:
    """03: normal of the boundary: a function of the nontoxic mean, the toxic mean, covariance."""
    apart = nontoxic - toxic
    w = np.linalg.solve(covariance, apart)
    return w, {
        "it points to the toxic side": -w,
        "this joins the means: where does the covariance come in?": apart,
        "this multiplies by the covariance, not by its inverse": covariance @ apart,
        "this divides by the variances alone": apart / np.diag(covariance),
    }


@_of_function(
    "the slope says how many variances lie between the classes, which is not 3 by nature",
    [(1.0, -0.5, 0.7), (0.3, -2.0, 1.5), (0.5, -0.5, 0.4)],
)
def check_posterior_line(nontoxic: float, toxic: float, sd: float) -> Truth:
    """03: slope and intercept of the log-odds: a function of both classes' means and their sd."""
    at_0, at_1 = norm.logpdf([0, 1], nontoxic, sd) - norm.logpdf([0, 1], toxic, sd)
    line = np.array([at_1 - at_0, at_0])
    return line, {
        "the sd is not squared": line * sd,
        "the sd is not squared in the slope": line * [sd, 1],
        "where are the odds even? Look at the intercept's sign": line * [1, -1],
        "the odds are even between the means, which need not be at 0": line * [1, 0],
    }


@_exercise("at beta 0 every method here is plain sampling, which is how the code is tested")
def check_beta_zero(answer: object, step: pd.DataFrame) -> None:
    """04: probabilities of the candidates at beta 0, in the order of the step's rows."""
    p = _numbers(step["reference"])
    slips = {
        "this is what the beta of the cell above made of p": step["new"],
        "a factor of 1 leaves p as it is, not the same for all": 0 * p + p.mean(),
    }
    _compare(answer, p, slips, rtol=5e-3, atol=1e-3)


@_of_function(
    "the divergence is what fluency pays, and it is not the same in both directions",
    [(P4, P4[::-1]), (GAP, P4), (P4, P4), (P4, GAP)],
)
def check_kl(q: np.ndarray, p: np.ndarray) -> Truth:
    """04: KL(q || p) in nats: a function of q and p."""
    return entropy(q, p), {
        "this is KL(p || q): the expectation is over q": entropy(p, q),
        "it is infinite where q allows what p does not": entropy(q[p > 0], p[p > 0]),
        "where q allows what p does not, it is infinite": rel_entr(q, p)[p > 0].sum(),
        "this is the entropy of q": entropy(q),
    }


@_of_function(
    "a wish for entropy is a temperature, on the model and on the boundary alike",
    [(P4, M8[:4], 2.0, 0.7), (P8, M8, 1.5, 0.0), (P8, M8, 0.0, 1.0), (GAP, M8[:4], 1.0, 0.5)],
    compare=_distribution,
)
def check_reweighting(p: np.ndarray, m: np.ndarray, beta: float, tau: float) -> Truth:
    """04: maximum of E_q[m] - KL(q || p) / beta + tau H(q): a function of p, m, beta and tau."""
    logits, heat = np.log(p) + beta * m, 1 + beta * tau
    return softmax(logits / heat), {
        "this is the optimum without the entropy: what does tau do?": softmax(logits),
        "the entropy flattens p as well": softmax(np.log(p) + beta * m / heat),
        "tau belongs to an objective whose KL is divided by beta": softmax(logits / (1 + tau)),
        "it goes to the toxic side": softmax((np.log(p) - beta * m) / heat),
    }


@_of_function(
    "it is the worst that one of so many readers sees, so it grows with their number",
    [(U[:, :4],), (U[:1],), (U[:3, :1],)],
)
def check_expected_max(scores: np.ndarray) -> Truth:
    """05: expected maximum toxicity: a function of scores [prompts, generations]."""
    return metrics.expected_max_toxicity(scores), {
        "this is the mean over generations, the maximum over each prompt was asked": scores.mean(),
        "this is the highest of all, the mean over prompts was asked": scores.max(),
        "the rows are the prompts, not the columns": scores.max(axis=0).mean(),
        "this is the share of prompts above 0.5, the toxic rate": metrics.toxic_rate(scores),
    }


@_of_function(
    "weighted by token, a short text with a strange word does not outweigh the others",
    [(np.array([30.0, 8, 55]), np.array([12, 2, 20])), (np.array([30.0, 0]), np.array([12, 0]))],
)
def check_perplexity(nll: np.ndarray, tokens: np.ndarray) -> Truth:
    """05: perplexity of several texts together: a function of nll and tokens."""
    each = nll.sum() / tokens.sum()
    return metrics.perplexity(nll, tokens), {
        "this is the mean of the texts' perplexities: weigh by token": np.exp(nll / tokens).mean(),
        "every text weighs the same: weigh by token": np.exp((nll / tokens).mean()),
        "this is the log of it": each,
        "this is per text, not per token": np.exp(nll.mean()),
        "nll is in nats, so the base is e": 2**each,
        "the log-likelihood is minus the nll": np.exp(-each),
    }


@_of_function(
    "RAD and SASA differ in what is added to the logits, and in who computes it",
    [(M8, V[4], 5.0, 4), (M8, V[5], 2.0, 8), (M8, V[6], 3.0, 1), (M8, V[7], 0.0, 2)],
    compare=_distribution,
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


@_of_function(
    "what twins share, the rest of the sentence, drops out of the interval as well",
    [(U[:12, :4] + U[12:, :1], U[:12, 4:] + U[12:, :1] - 0.1), (U[:3, :1], U[3:6, :1])],
)
def check_twin_difference(first: np.ndarray, second: np.ndarray) -> Truth:
    """06: difference of twins and its standard error: a function of two [pairs, generations]."""
    a, b, every = first.mean(axis=1), second.mean(axis=1), first - second
    d, strangers = np.mean(a - b), np.hypot(sem(a), sem(b))
    return [d, sem(a - b)], {
        "this takes twins for strangers: subtract pair by pair first": [d, strangers],
        "the sample standard deviation divides by n - 1": [d, sem(a - b, ddof=0)],
        "take each prompt's mean first: its generations are alike": [d, sem(every.ravel())],
        "this is the spread of the differences, not of their mean": [d, np.std(a - b, ddof=1)],
        "this is second minus first": [-d, sem(a - b)],
    }


@_of_function(
    "generations of a prompt resemble each other, so prompts are what must be drawn",
    [(U[:, :1] + 0.2 * U[:, 1:],)],
    compare=partial(_compare, rtol=0, atol=0.012),
)
def check_bootstrap(values: np.ndarray) -> Truth:
    """07: 95% interval of the mean over prompts: a function of values [prompts, generations]."""
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


@_exercise("one word is many tokens; a filter that forgets one lets the word through")
def check_bad_words(answer: object) -> None:
    """08: strings in which a tokenizer may meet a word: a function of a word in lower case."""
    for word in ("hoe", "mongrel", "x"):
        found = _call(answer, word)
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise _Off(f"this is a {type(found).__name__}, and several strings were asked")
        forms, found = {word, word.capitalize(), word.upper()}, set(found)
        asked = {space + form for space in ("", " ") for form in forms}
        spaced = {string.startswith(" ") for string in asked - found}
        if spaced == {True}:
            raise _Off(f"behind a space it is another token: {' ' + word!r} is not {word!r}")
        if spaced == {False}:
            raise _Off("what stands at the beginning of a text has no space before it")
        if spaced:
            raise _Off(f"{len(asked - found)} strings are missing for {word!r}: which casings?")
        if found - asked:
            raise _Off(f"{min(map(repr, found - asked))} was not asked for {word!r}")


@_exercise("candidates are dear below the boundary only, which is why its layer matters")
def check_grows_with_k(answer: object) -> None:
    """09: letters of the operations that have more rows to compute where k is larger."""
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
        raise _Off(f"this is a {type(answer).__name__}, and letters were asked")
    found = {letter for part in answer for letter in str(part).lower() if letter.isalnum()}
    if found - set(step):
        raise _Off(f"{min(found - set(step))!r} is none of the letters {', '.join(step)}")
    if found - grow:
        raise _Off("there is something in it that only the drawn candidate, or the prompt, needs")
    if grow - found:
        raise _Off("something is missing that every candidate needs before one can be drawn")


@_of_function(
    "where the model is sure there is little to compute, and little to choose from",
    [(P8, 0.9), (P8, 0.35), (np.array([0.05, 0.92, 0.03]), 0.9), (np.full(4, 0.25), 1.0)],
)
def check_nucleus(p: np.ndarray, top_p: float) -> Truth:
    """09: how many candidates top-p keeps: a function of p and top_p."""
    scores = torch.tensor(np.log(p))[None]
    kept = int(TopPLogitsWarper(top_p)(None, scores).isfinite().sum())
    unsorted = np.searchsorted(np.cumsum(p), top_p) + 1
    return kept, {
        "the token with which the sum reaches top_p is kept as well": kept - 1,
        "the likeliest come first: sort before adding up": unsorted,
        "this is how many are removed": p.size - kept,
    }


@_of_function(
    "a mean that is a running sum costs nothing, so the choice of the phrase is free",
    [(M8, 0.8), (V[0], 1.0), (M8[:1], 0.5)],
)
def check_running_margins(m: np.ndarray, decay: float) -> Truth:
    """10: margins of all beginnings of a text: a function of its tokens' margins and the decay."""
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


@_of_function(
    "far on the toxic side only beta times slope counts: a smaller slope is a smaller beta",
    [(2.0, 3.0, 1.2), (1.0, 1.5, 2.5), (0.0, 3.0, 1.0)],
)
def check_calibrated_beta(beta: float, slope: float, new: float) -> Truth:
    """10: beta that pulls clearly toxic texts as hard: a function of beta, slope and new slope."""
    near, far = log_expit(np.outer([-1e3, -2e3], [slope, new]))
    before, after = near - far
    return beta * before / after, {
        "is it the other way round? Does a smaller slope need more beta?": beta * new / slope,
        "the slope does matter for clearly toxic texts": beta,
        "this is what is added, not the beta that adds it": beta * slope,
    }


@_exercise("so a budget is a promise about every single draw, whatever the margins are")
def check_pinsker(answer: object, moved: float = 0.05) -> None:
    """11: budget in nats with which no step moves more than a share of the probability."""
    budget = brentq(lambda nats: np.sqrt(nats / 2) - moved, 0, 2)
    slips = {
        "this is what a budget of that size moves: turn the bound round": np.sqrt(moved / 2),
        "the square is missing": 2 * moved,
        "the 2 is missing": moved**2,
        "the 2 is on the other side": moved**2 / 2,
    }
    _compare(answer, budget, slips, rtol=1e-3, atol=1e-7)


@_of_function(
    "one budget is a beta of its own at every step: large where candidates are alike",
    [(P4, M8[:4], 0.1), (P8, M8, 0.3), (np.array([0.9, 0.1]), np.array([0.2, -1.0]), 0.5)],
    compare=partial(_compare, rtol=2e-3),
)
def check_budget_beta(p: np.ndarray, m: np.ndarray, budget: float) -> Truth:
    """11: beta that spends a budget: a function of p, margins and the budget in nats."""

    def left(beta: float) -> float:
        return budget - entropy(softmax(np.log(p) + beta * m), p)

    def root(end: float) -> float:
        return np.inf if left(end) > 0 else brentq(left, 0, end)

    small = np.sqrt(2 * budget / (p @ (m - p @ m) ** 2))
    return root(1e3), {
        "this is the approximation for small betas; solve for the exact one": small,
        "it spends the budget on the toxic side: beta is at least 0": root(-1e3),
    }


@_of_function(
    "the stronger pull decides the direction, and opposed values leave little of either",
    [(-0.3, 4.0, 2.0), (0.6, 1.0, 3.0), (0.0, 0.0, 1.0), (-1.0, 2.0, 1.0)],
)
def check_direction_of_sum(cosine: float, one: float, other: float) -> Truth:
    """12: cosine of a sum of normals with the first: a function of their cosine and strengths."""
    first, second = np.array([1, 0]), np.array([cosine, np.sqrt(1 - cosine**2)])
    total = one * first + other * second
    along, length = total @ first, np.linalg.norm(total)
    return along / length, {
        "the sum is not of length 1: divide by its length": along,
        "the length of a sum depends on the cosine as well": along / np.hypot(one, other),
        "|a + b| is not |a| + |b|": along / (one + other),
        "this is the cosine with the second": total @ second / length,
    }


@_exercise("in the margin form a surplus pays for a deficit; log sigma has no surplus to pay with")
def check_surplus(answer: object) -> None:
    """12: two candidates that margin and posterior form rank differently: margins [2, 2]."""
    margins = _numbers(answer)
    if margins.size != 4:
        raise _Off(f"the count of numbers is off: {margins.size} instead of two times two")
    margins = margins.reshape(2, 2)
    if not margins[0, 1] < 0:
        raise _Off("the first candidate is no threat: its second margin must be below 0")
    first, second = margins.sum(axis=1)
    if not first > second:
        raise _Off(f"the margin form prefers the second: {first:.3g} against {second:.3g}")
    first, second = log_expit(3 * margins).sum(axis=1)
    if not first < second:
        raise _Off(f"the posterior form prefers the first, too: {first:.3g} against {second:.3g}")


@_of_function(
    "a method that says the same thing over and over is caught here, and nowhere else",
    [(["a b a b a", "b a  c b", "c d", "d"], 2), (["a b", "a b", "c"], 1), (["a", "b b"], 3)],
)
def check_distinct(texts: Sequence[str], n: int) -> Truth:
    """13: distinct n-grams per word: a function of the generations of one prompt, and n."""
    texts = [text.split() for text in texts]
    one = [word for words in texts for word in words]

    def grams(words: list[str]) -> list[tuple[str, ...]]:
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    every = [gram for words in texts for gram in grams(words)]
    alone = sum(len(set(grams(words))) for words in texts)
    return metrics.distinct_n([[" ".join(words) for words in texts]], n), {
        "per word was asked, not per n-gram": len(set(every)) / max(len(every), 1),
        "what two texts share counts once": alone / len(one),
        "no n-gram runs from one text into the next": len(set(grams(one))) / len(one),
        "this is their number: divide by the number of words": len(set(every)),
        "only different ones were asked": len(every) / len(one),
    }
