"""Checks of the notebooks on the method: 01 to 05."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist
from scipy.special import rel_entr, softmax
from scipy.stats import entropy, norm
from sklearn.metrics import roc_auc_score

from sasa_lib.course.exercises.answers import (
    Truth,
    compare,
    compare_direction,
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


@exercise("an AUC sees the order of the texts alone, neither distances nor calibration")
def check_auc_of_maps(answer: object, margins: np.ndarray, toxic: np.ndarray) -> None:
    """02: AUC of 2m + 1, m^3, exp(m) and -m: four numbers."""
    m, toxic = np.asarray(margins, dtype=float), np.asarray(toxic, dtype=bool)
    aucs = [roc_auc_score(~toxic, mapped) for mapped in (2 * m + 1, m**3, np.exp(m), -m)]
    slips = {
        "the last map turns the order round: every pair that was right is wrong": [aucs[0]] * 4,
        "0.5 would be chance; turned round, what was right is wrong": [*aucs[:3], 0.5],
    }
    names = [f"the AUC of {name}" for name in ("2m + 1", "m^3", "exp(m)", "-m")]
    compare(answer, aucs, slips, names=names, rtol=2e-3, atol=2e-3, share=True)


@of_function(
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


@of_function(
    "the covariance turns the normal away from directions that vary anyway",
    [(V[0], V[1], V.T @ V), (*V[2:4, :2], np.cov(V[:, :2].T)), (M8[:1], V[0, :1], np.eye(1))],
    compare=compare_direction,
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
