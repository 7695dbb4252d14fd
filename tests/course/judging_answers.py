"""Answers to the checks of `exercises.judging`, right and wrong, for test_exercises."""

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, bootstrap, nct, norm, t, ttest_rel


def steered(log_p, margin, beta):
    return np.exp(log_p + beta * margin)


def loop(step, ids, beta, uniforms, law=steered, key=None, context=None):
    """The loop over candidates one by one; what is given as an option is a slip."""
    drawn = []
    for u in uniforms:
        candidates, log_p, margins = step(context(ids, drawn) if context else [*ids, *drawn])
        weights = [law(*both, beta) for both in zip(log_p, margins, strict=True)]
        left = u * sum(weights)
        for place in sorted(range(len(weights)), key=key and key(weights)):
            left -= weights[place]
            if left < 0:
                break
        drawn.append(candidates[place])
    return drawn


def loop_in_torch(step, ids, beta, uniforms):
    ids = torch.tensor(ids)
    start = len(ids)
    for u in uniforms:
        candidates, log_p, margins = step(ids)
        q = torch.softmax(torch.tensor(log_p) + beta * torch.tensor(margins), 0).float()
        place = torch.searchsorted(q.cumsum(0), torch.tensor([u]).float(), right=True)
        ids = torch.cat([ids, torch.tensor(candidates)[place]])
    return ids[start:]


def slip(**options):
    return lambda *case: loop(*case, **options)


def at_most_likely(step, ids, beta, uniforms):
    return loop(step, ids, beta, 0 * np.asarray(uniforms), key=lambda w: lambda i: -w[i])


def places(step, ids, beta, uniforms):
    drawn = loop(step, ids, beta, uniforms)
    contexts = [[*ids, *drawn[:n]] for n in range(len(drawn))]
    return [step(c)[0].index(token) for c, token in zip(contexts, drawn, strict=True)]


def unnormalised(step, ids, beta, uniforms):
    ids, start = list(ids), len(ids)
    for u in uniforms:
        candidates, log_p, margins = step(ids)
        ids.append(candidates[np.argmax(np.cumsum(np.exp(log_p + beta * margins)) > u)])
    return ids[start:]


def paired(plain, other):
    ends = ttest_rel(other, plain).confidence_interval(0.95)
    return (other - plain).mean(), ends.low, ends.high


def resampled(plain, other, low=2.5, resamples=4000):
    d = other - plain
    drawn = np.random.default_rng(3).integers(len(d), size=(resamples, len(d)))
    return [d.mean(), *np.percentile(d[drawn].mean(axis=1), [low, 100 - low])]


def accelerated(plain, other):
    found = bootstrap((other - plain,), np.mean, method="BCa", rng=1).confidence_interval
    return pd.Series([np.mean(other - plain), found.low, found.high])


def around(plain, other, times, error=None):
    d = other - plain
    error = d.std(ddof=1) / np.sqrt(len(d)) if error is None else error
    return d.mean(), d.mean() - times * error, d.mean() + times * error


def strangers(plain, other):
    error = np.sqrt((plain.var(ddof=1) + other.var(ddof=1)) / len(plain))
    return around(plain, other, 1.96, error)


def share_of(labels, scores):
    return np.mean(np.argmax(scores, axis=1) == labels)


def wilson(share, n, z=1.96):
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return share, middle - half, middle + half


def agreement(labels, scores):
    return wilson(share_of(labels, scores), len(labels))


def by_scipy(labels, scores):
    agreed = int(sum(scores[i, label] > scores[i, 1 - label] for i, label in enumerate(labels)))
    found = binomtest(agreed, len(labels)).proportion_ci(method="wilson")
    return torch.tensor([agreed / len(labels), found.low, found.high])


def exactly(labels, scores, method="exact"):
    agreed = int(share_of(labels, scores) * len(labels) + 0.5)
    found = binomtest(agreed, len(labels)).proportion_ci(method=method)
    return agreed / len(labels), found.low, found.high


def wald(labels, scores):
    share = share_of(labels, scores)
    half = 1.96 * np.sqrt(share * (1 - share) / len(labels))
    return share, share - half, share + half


def pairs(sd, difference, level=0.975, power=0.8):
    return ((norm.ppf(level) + norm.ppf(power)) * sd / difference) ** 2


def pairs_by_t(sd, difference):
    n, power = 2, 0.0
    while power < 0.8:
        n += 1
        at, shift = t.ppf(0.975, n - 1), np.sqrt(n) * difference / sd
        power = nct.sf(at, n - 1, shift) + nct.cdf(-at, n - 1, shift)
    return n


RIGHT = {
    "naive_loop": [loop, loop_in_torch, lambda *case: np.array(loop(*case))],
    "paired_interval": [
        paired,
        resampled,
        accelerated,
        lambda a, b: torch.tensor(resampled(a, b, resamples=1000)),
        lambda a, b: around(a, b, 1.96),
    ],
    "agreement": [
        agreement,
        by_scipy,
        lambda labels, scores: wilson(share_of(labels, scores), len(labels), norm.ppf(0.975)),
        lambda labels, scores: 100 * np.array(agreement(labels, scores)),
    ],
    "pairs_needed": [
        pairs,
        pairs_by_t,
        lambda sd, d: int(np.ceil(pairs(sd, d))),
        lambda sd, d: 7.85 * sd**2 / d**2,
        lambda sd, d: [torch.tensor(7.9 * sd**2 / d**2)],
    ],
}

WRONG = [
    ("naive_loop", slip(context=lambda ids, drawn: ids), "belongs to the context of the next"),
    ("naive_loop", slip(context=lambda ids, drawn: [*ids, *drawn][-1:]), "the whole context"),
    ("naive_loop", slip(law=lambda p, m, b: np.exp(p)), "draws from p"),
    ("naive_loop", slip(law=lambda p, m, b: np.exp(p - b * m)), "toxic side"),
    ("naive_loop", slip(law=lambda p, m, b: np.exp(b * m)), "p is left out"),
    ("naive_loop", slip(law=lambda p, m, b: np.exp(np.exp(p) + b * m)), "not to p"),
    ("naive_loop", slip(law=lambda p, m, b: np.exp(p + m)), "beta is left out"),
    ("naive_loop", unnormalised, "normalise before"),
    ("naive_loop", at_most_likely, "takes the likeliest"),
    ("naive_loop", slip(key=lambda w: lambda i: -w[i]), "not the likeliest first"),
    ("naive_loop", slip(key=lambda w: lambda i: -i), r"token \d+ is \d, and 0.\d\d draws"),
    ("naive_loop", places, "their ids were asked"),
    ("naive_loop", lambda s, ids, b, u: [*ids, *loop(s, ids, b, u)], "the prompt is among them"),
    ("naive_loop", lambda *case: loop(*case)[:-1], "30 uniform numbers draw no 29 tokens"),
    ("naive_loop", [1, 2], "a list, and a function was asked"),
    ("paired_interval", lambda a, b: paired(b, a), "plain minus the other"),
    ("paired_interval", strangers, "for strangers"),
    (
        "paired_interval",
        lambda a, b: [*paired(a, b)[:1], *np.percentile(b - a, [2.5, 97.5])],
        "lie",
    ),
    ("paired_interval", lambda a, b: around(a, b, 1.96 * len(a) ** 0.5), "the spread of single"),
    ("paired_interval", lambda a, b: resampled(a, b, low=5), "90% interval"),
    ("paired_interval", lambda a, b: around(a, b, 1), "68% interval"),
    ("paired_interval", lambda a, b: sorted(paired(a, b)), "comes first"),
    ("paired_interval", lambda a, b: (0.0, *paired(a, b)[1:]), "difference is 0, which is too lar"),
    ("paired_interval", lambda a, b: around(a, b, 3), "is too wide"),
    ("paired_interval", lambda a, b: around(a, b, 0.3), "is too narrow"),
    ("paired_interval", lambda a, b: np.add(paired(a, b), [0, 1, 1]), "in the wrong place"),
    ("paired_interval", lambda a, b: paired(a, b)[1:], "off: 2 instead of 3"),
    ("agreement", lambda y, s: agreement(y, -s), "where the two differ"),
    ("agreement", wald, "is Wald's"),
    ("agreement", lambda y, s: wilson(share_of(y, s), len(y), 1.645), "90% interval"),
    ("agreement", lambda y, s: agreement(1 + 0 * y, s), "finds the second text worse"),
    ("agreement", lambda y, s: len(y) * np.array(agreement(y, s)), "divide by the number"),
    ("agreement", exactly, "the lower end is .*, which is too small"),
    (
        "agreement",
        lambda y, s: exactly(y, s, "wilsoncc"),
        "the lower end is .*, which is too small",
    ),
    ("agreement", share_of, "off: 1 instead of 3"),
    ("pairs_needed", lambda sd, d: pairs(sd, d, power=0.5), "where do the 80% come in"),
    ("pairs_needed", lambda sd, d: pairs(sd, d, level=0.95), "one-sided"),
    ("pairs_needed", lambda sd, d: 2 * pairs(sd, d), "nothing doubles"),
    ("pairs_needed", lambda sd, d: pairs(sd, d) ** 0.5, "with the square"),
    ("pairs_needed", lambda sd, d: pairs(d, sd), "other way round"),
    ("pairs_needed", lambda sd, d: (2.76 * sd / d) ** 2, "its quantile was asked"),
    ("pairs_needed", lambda sd, d: pairs(sd, d, power=0.2), "quantiles are added"),
    ("pairs_needed", lambda sd, d: pairs(sd, d, power=0.9), "90% power"),
    ("pairs_needed", lambda sd, d: 0.9 * pairs(sd, d), "it is 176.6, which is too small"),
]
