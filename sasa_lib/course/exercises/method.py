"""Checks of the notebooks on the method: 01 to 05."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import pdist
from scipy.special import rel_entr, softmax
from scipy.stats import entropy, norm
from sklearn.covariance import empirical_covariance, ledoit_wolf
from sklearn.metrics import roc_auc_score

from sasa_lib.course.exercises.answers import (
    Truth,
    WrongAnswer,
    compare,
    compare_distribution,
    exercise,
    numbers,
    of_function,
)
from sasa_lib.evaluation import metrics
from sasa_lib.subspace.boundary import Boundary

# What functions are tried on.
RNG = np.random.default_rng(0)


P4, P8 = RNG.dirichlet(np.ones(4)), RNG.dirichlet(np.ones(8))


GAP = np.array([0.5, 0.2, 0.0, 0.3])


M8, V, U = RNG.normal(size=8), RNG.normal(0.5, 1, (30, 8)), RNG.uniform(size=(24, 8))


SIDE = np.arange(8) % 3 == 0


FIFTH = np.arange(30) % 5 == 0


UNEVEN = V[:, 2:6] * np.where(FIFTH[:, None], [4, 1, 1, 1], [1, 1, 3, 1]) @ (np.eye(4) + 0.5)


def two_classes(seed: int, gap: np.ndarray, n: int = 120) -> tuple[np.ndarray, ...]:
    """Training and held-out embeddings [n, size], each with its labels; a share of 0.4 is toxic."""
    rng, toxic = np.random.default_rng(seed), np.arange(n) % 5 < 2
    mix = np.eye(gap.size) + rng.normal(size=(gap.size, gap.size)) / 4
    x, unseen = (rng.normal(size=(n, gap.size)) @ mix - np.outer(toxic, gap) for _ in range(2))
    return x, toxic, unseen, toxic.copy()


def named_numbers(answer: object, names: Mapping[str, object]) -> dict[str, float]:
    """One number for each name, from whatever has names."""
    if not isinstance(answer, Mapping | pd.Series):
        raise WrongAnswer(f"this is a {type(answer).__name__}, and a dict was asked")
    answer = dict(answer.items())
    missing, other = [n for n in names if n not in answer], [n for n in answer if n not in names]
    if missing or other:
        known = ", ".join(map(repr, names))
        said = f"{missing[0]!r} is missing" if missing else f"{other[0]!r} is not among the keys"
        raise WrongAnswer(f"{said}: the keys are {known}")
    found = {}
    for name in names:
        one = numbers(answer[name])
        if one.size != 1 or np.isnan(one).any():
            raise WrongAnswer(f"{name!r} needs one number")
        if not 0 <= one[0] <= 1:
            raise WrongAnswer(f"{name!r} is {one[0]:.4g}, and an AUC lies between 0 and 1")
        found[name] = float(one[0])
    return found


CONTROLS = {
    "shuffled labels, training": ("labels shuffled, mean of 5", "AUC, training"),
    "shuffled labels, held out": ("labels shuffled, mean of 5", "held out"),
    "best of 200 random directions": ("random direction, best of 200", "held out"),
    "number of words": ("number of words", "held out"),
}


@exercise("all four lie within 0.1 of what was measured, and above 0.5 is no argument by itself")
def check_controls(answer: object, known: pd.DataFrame) -> None:
    """02: AUC that four controls will have, by name; `known` is what was measured."""
    predicted = named_numbers(answer, CONTROLS)
    measured = {name: float(known.loc[row, column]) for name, (row, column) in CONTROLS.items()}
    off = {name: abs(predicted[name] - measured[name]) > 0.1 for name in CONTROLS}
    if any(off.values()):
        said = "; ".join(
            f"{name}: {predicted[name]:.2f} predicted, {measured[name]:.2f} measured, "
            f"{'further off than 0.1' if off[name] else 'within 0.1'}"
            for name in CONTROLS
        )
        raise WrongAnswer(said)


def compare_aucs(found: object, expected: object, slips: Mapping[str, object]) -> None:
    """Compare AUCs that end with the first below 0.6; a slip is known by how it begins."""
    found, expected = numbers(found), numbers(expected)

    def begins(one: np.ndarray, other: np.ndarray) -> bool:
        return len(one) >= len(other) and np.allclose(one[: len(other)], other, rtol=0, atol=1e-3)

    if begins(found, expected) and len(found) > len(expected):
        raise WrongAnswer("it goes on after the first AUC below 0.6")
    if begins(expected, found) and len(found) == len(expected) - 1:
        raise WrongAnswer("the AUC below 0.6 belongs to the list, as its last")
    if not begins(found, expected):
        for hint, slip in slips.items():
            if begins(found, numbers(slip)):
                raise WrongAnswer(hint)
    compare(found, expected, {}, rtol=0, atol=1e-3)


@of_function(
    "how many there are depends on the covariance, so this counts no dimensions of toxicity",
    [
        two_classes(4, np.linspace(1, 0, 12)),
        two_classes(8, np.repeat([0.8, 0], 6)),
        two_classes(4, np.zeros(12)),
    ],
    compare=compare_aucs,
)
def check_directions(
    x: np.ndarray, toxic: np.ndarray, unseen: np.ndarray, unseen_toxic: np.ndarray
) -> Truth:
    """02: AUCs, one direction after the other taken out: a function of x, toxic and held out."""

    def fitted(of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means = np.stack([of[~toxic].mean(axis=0), of[toxic].mean(axis=0)])
        return means[0] - means[1], of - means[toxic.astype(int)]

    def auc(along: np.ndarray, of: np.ndarray, labels: np.ndarray) -> float:
        return roc_auc_score(~labels, of @ along)

    left, aucs = x, []
    while len(aucs) < x.shape[1] and (not aucs or aucs[-1] >= 0.6):
        apart, centred = fitted(left)
        sigma = empirical_covariance(centred, assume_centered=True)
        w = np.linalg.pinv(sigma, rcond=1e-10, hermitian=True) @ apart
        aucs.append(auc(w, unseen, unseen_toxic))  # w has no part in what was taken out
        left = left - np.outer(left @ w, w) / (w @ w)
    apart, centred = fitted(x)
    w = np.linalg.solve(empirical_covariance(centred, assume_centered=True), apart)
    shrunk = np.linalg.solve(ledoit_wolf(centred, assume_centered=True)[0], apart)
    return aucs, {
        "the second AUC is the first: nothing is taken out unless the normal has length 1": (
            aucs[:1] * 2
        ),
        "this is of the training texts: the held-out ones were asked": [auc(w, x, toxic)],
        "turn it round: the nontoxic texts lie higher": [1 - aucs[0]],
        "this shrinks the covariance: the empirical one was asked": (
            [auc(shrunk, unseen, unseen_toxic)]
        ),
        "this joins the means: where does the covariance come in?": (
            [auc(apart, unseen, unseen_toxic)]
        ),
    }


@exercise("an axis is worth what it is on an origin that it has not seen")
def check_origins(answer: object, rows: Mapping[str, Mapping[str, float]]) -> None:
    """02: AUC from pairs to web, from web to pairs and of the origin within toxic, by name."""
    asked = {
        "pairs to web": ("fitted on pairs", "web", "pairs"),
        "web to pairs": ("fitted on web", "pairs", "web"),
        "origin within toxic": ("origin, within toxic", "origin", None),
    }
    found = named_numbers(answer, asked)
    if any(row not in rows for row, *_ in asked.values()):
        raise WrongAnswer("this corpus has one origin, so there is no other to try it on")
    for name, (row, column, same) in asked.items():
        right, near = rows[row][column], 0.0051  # two digits
        slips = {same: "on texts of the origin that it was fitted on", "all": "on all texts"}
        for other, hint in slips.items():
            slip = rows[row].get(other, np.nan)
            if abs(found[name] - slip) < near <= abs(found[name] - right):
                raise WrongAnswer(f"{found[name]:.2f} for {name!r} is {hint}")
        if abs(found[name] - right) > 0.03:
            size = "large" if found[name] > right else "small"
            raise WrongAnswer(f"{found[name]:.2f} for {name!r} is too {size}")


@of_function(
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


@of_function(
    "it is the chance that a nontoxic text lies above a toxic one, and needs no threshold",
    [(M8.round(), SIDE), (V[0].round(1), SIDE), (0 * M8, SIDE)],
)
def check_auc(m: np.ndarray, toxic: np.ndarray) -> Truth:
    """03: AUC by counting pairs: a function of margins and toxic."""
    above, auc = m[~toxic][:, None] - m[toxic], roc_auc_score(~toxic, m)
    return auc, {
        "this counts the pairs in which the toxic text lies higher": 1 - auc,
        "a tie counts half, not nothing": (above > 0).mean(),
        "a tie counts half, not whole": (above >= 0).mean(),
        "this is a number of pairs: their share was asked": auc * above.size,
    }


@exercise("so only with scaled margins does one beta mean the same on every model and layer")
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
    compare(answer, [margin, scaled, odds], slips, names=names, rtol=1e-3)


def compare_boundary(found: object, expected: tuple, slips: Mapping[str, np.ndarray]) -> None:
    """Compare a unit normal, by its cosine, and a midpoint."""
    if not isinstance(found, tuple | list | np.ndarray | torch.Tensor) or len(found) != 2:
        raise WrongAnswer("two things were asked: the unit normal and the midpoint")
    (normal, midpoint), (right, middle) = map(numbers, found), expected
    for name, vector in (("normal", normal), ("midpoint", midpoint)):
        if vector.size != right.size:
            raise WrongAnswer(f"the {name} has {vector.size} numbers instead of {right.size}")
        if not np.isfinite(vector).all():
            raise WrongAnswer(f"there is NaN or infinity in the {name} (an inverse of 0?)")
    if np.allclose(normal, middle, atol=1e-4):
        raise WrongAnswer("the normal comes first, then the midpoint")
    length = np.linalg.norm(normal)
    if length == 0:
        raise WrongAnswer("the normal is 0, which has no direction")

    def cosine(other: np.ndarray) -> float:
        return normal @ other / (length * np.linalg.norm(other))

    if cosine(right) < 0.999:
        hints = [hint for hint, other in slips.items() if cosine(other) > 0.999]
        said = f"the normal has a cosine of {cosine(right):.3f} with the right one"
        raise WrongAnswer(hints[0] if hints else said)
    if abs(length - 1) > 1e-3:
        raise WrongAnswer(f"the normal has the length {length:.3g}, and 1 was asked")
    if np.abs(midpoint - middle).max() > 1e-4:
        hints = [hint for hint, other in slips.items() if np.allclose(midpoint, other, atol=1e-4)]
        raise WrongAnswer(hints[0] if hints else "the midpoint is not halfway between the means")


@of_function(
    "the covariance turns the normal away from directions that vary anyway",
    [two_classes(1, np.linspace(2, 0, 6), 90)[:2], (UNEVEN, FIFTH)],
    compare=compare_boundary,
)
def check_fit(embeddings: np.ndarray, toxic: np.ndarray) -> Truth:
    """03: unit normal and midpoint of the boundary: a function of embeddings and toxic."""
    right = Boundary.from_embeddings(embeddings, toxic, layer=0, pooling="mean", model="")
    nontoxic_mean, toxic_mean = embeddings[~toxic].mean(axis=0), embeddings[toxic].mean(axis=0)
    apart, of_each = nontoxic_mean - toxic_mean, [embeddings[toxic], embeddings[~toxic]]
    sums = np.stack([np.cov(of.T, ddof=0) * len(of) for of in of_each])
    sigma, alike = sums.sum(axis=0), sums[0] / len(of_each[0]) + sums[1] / len(of_each[1])
    return (right.normal, right.midpoint), {
        "it points to the toxic side": -right.normal,
        "this joins the means: where does the covariance come in?": apart,
        "this multiplies by the covariance, not by its inverse": sigma @ apart,
        "this divides by the variances alone": apart / np.diag(sigma),
        "take the mean of its class from each text before the products": (
            np.linalg.solve(embeddings.T @ embeddings, apart)
        ),
        "a class's covariance weighs as much as it has texts": np.linalg.solve(alike, apart),
        "the mean of all texts lies nearer to the larger class: halfway was asked": (
            embeddings.mean(axis=0)
        ),
    }


@of_function(
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


@exercise("at beta 0 every method here is plain sampling, which is how the code is tested")
def check_beta_zero(answer: object, step: pd.DataFrame) -> None:
    """04: probabilities of the candidates at beta 0, in the order of the step's rows."""
    p = numbers(step["reference"])
    slips = {
        "this is what the beta of the cell above made of p": step["new"],
        "a factor of 1 leaves p as it is, not the same for all": 0 * p + p.mean(),
    }
    compare(answer, p, slips, rtol=5e-3, atol=1e-3)


@of_function(
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


@of_function(
    "a wish for entropy is a temperature, on the model and on the boundary alike",
    [(P4, M8[:4], 2.0, 0.7), (P8, M8, 1.5, 0.0), (P8, M8, 0.0, 1.0), (GAP, M8[:4], 1.0, 0.5)],
    compare=compare_distribution,
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


@of_function(
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


@of_function(
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
