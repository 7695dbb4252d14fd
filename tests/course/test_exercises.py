"""The checks of the exercises, and their solutions; the released cells hold no solution."""

import ast
import re
from functools import cache
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from judging_answers import RIGHT as RIGHT_OF_JUDGING
from judging_answers import WRONG as WRONG_OF_JUDGING
from nbclient import NotebookClient
from scipy.special import expit, log_softmax, softmax
from scipy.stats import bootstrap, entropy, rankdata
from sklearn.metrics import roc_auc_score
from subspace_answers import GIVEN as GIVEN_OF_SUBSPACES
from subspace_answers import RIGHT as RIGHT_OF_SUBSPACES
from subspace_answers import WRONG as WRONG_OF_SUBSPACES
from traitlets.config import Config

from sasa_lib.course import exercises

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))
CHECKS = sorted(name for name in dir(exercises) if name.startswith("check_"))

STEP = pd.DataFrame({"reference": [0.5, 0.3, 0.2], "new": [0.1, 0.2, 0.7]})
GIVEN = {"check_beta_zero": (STEP,)} | GIVEN_OF_SUBSPACES


def verdict(topic, answer):
    check = f"check_{topic}"
    return getattr(exercises, check)(answer, *GIVEN.get(check, ()))


def with_loops(embeddings):
    rows = [row / np.linalg.norm(row) for row in embeddings]
    pairs = [a @ b for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    return sum(pairs) / len(pairs)


def in_torch(embeddings):
    unit = torch.nn.functional.normalize(torch.tensor(embeddings, requires_grad=True), dim=1)
    n = len(unit)
    return (unit.sum(0).square().sum() - n) / (n * (n - 1))


def auc_by_ranks(margins, toxic):
    high, low = (~toxic).sum(), toxic.sum()
    return (rankdata(margins)[~toxic].sum() - high * (high + 1) / 2) / (high * low)


def kl_in_loops(q, p):
    total = 0.0
    for one, other in zip(q, p, strict=True):
        if one > 0:
            total += one * np.log(one / other) if other > 0 else float("inf")
    return total


def reweighted(p, margins, beta, tau):
    return softmax((np.log(p) + beta * margins) / (1 + beta * tau))


def reweighted_in_torch(p, margins, beta, tau):
    logits = torch.tensor(p).log() + beta * torch.tensor(margins)
    return torch.softmax(logits.float() / (1 + beta * tau), 0)


def rad(logits, toxicity, beta, k):
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:k]
    weights = [0.0] * len(logits)
    for i in order:
        weights[i] = np.exp(logits[i] + beta * (1 - min(max(toxicity[i], 0), 1)))
    return [weight / sum(weights) for weight in weights]


def twins(first, second):
    d = pd.Series((first - second).mean(axis=1))
    return pd.Series({"difference": d.mean(), "error": d.sem()})


def resampled(values, resamples=10_000, low=2.5):
    rows = values.mean(axis=1)
    means = rows[np.random.default_rng(5).integers(len(rows), size=(resamples, len(rows)))].mean(1)
    return tuple(np.percentile(means, [low, 100 - low]))


def cells_resampled(values):
    drawn = np.random.default_rng(5).choice(values.ravel(), size=(4000, values.size))
    return np.percentile(drawn.mean(axis=1), [2.5, 97.5])


def of_scipy(values):
    found = bootstrap((values.mean(axis=1),), np.mean, method="percentile", rng=3)
    return list(found.confidence_interval)


def strings(word):
    return {s + f(word) for s in ("", " ") for f in (str.lower, str.capitalize, str.upper)}


def nucleus(p, top_p):
    held, kept = 0.0, 0
    for probability in sorted(p, reverse=True):
        if held < top_p:
            held, kept = held + probability, kept + 1
    return kept


def running(margins, decay):
    found = [margins[0]]
    weight = 1.0
    for margin in margins[1:]:
        found.append((decay * weight * found[-1] + margin) / (decay * weight + 1))
        weight = decay * weight + 1
    return found


def spent(beta, p, margins):
    return entropy(softmax(np.log(p) + beta * margins), p)


def budget_beta(p, margins, budget, high=60.0):
    low = 0.0
    if spent(high, p, margins) < budget:
        return np.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle, p, margins) < budget else (low, middle)
    return low


def line(nontoxic, toxic, sd):
    return (nontoxic - toxic) / sd**2, (toxic**2 - nontoxic**2) / (2 * sd**2)


def cosine_of_sum(cosine, first, second):
    u = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]])
    total = torch.tensor([first, second]) @ u
    return torch.cosine_similarity(total, u[0], dim=0)


def distinct(texts, n, per=None):
    grams = [tuple(t.split()[i : i + n]) for t in texts for i in range(len(t.split()) - n + 1)]
    return len(set(grams)) / (per or len(" ".join(texts).split()))


def best_of(p, margins, n):
    return [p[margins <= m].sum() ** n - p[margins < m].sum() ** n for m in margins]


def accepted(p, margins, above):
    kept = np.array([a if m > above else 0.0 for a, m in zip(p, margins, strict=True)])
    return kept / kept.sum()


def looped(margins, above, at_most):
    drawn = []
    for margin in margins[:at_most]:
        drawn.append(margin)
        if margin > above:
            return len(drawn) - 1, len(drawn)
    return int(np.argmax(drawn)), at_most


RIGHT = {
    "anisotropy": [with_loops, in_torch],
    "auc": [auc_by_ranks, lambda m, t: torch.tensor([roc_auc_score(~t, m)])],
    "scaled_states": [[10, 1, 1], np.array([10.0, 1.0, 1.0]), (torch.tensor(10.0), 1, 1)],
    "posterior_line": [line, lambda *case: np.array(line(*case)), lambda *case: list(line(*case))],
    "beta_zero": [STEP["reference"], [0.5, 0.3, 0.2], torch.tensor([0.5, 0.3, 0.2])],
    "kl": [kl_in_loops, entropy, lambda q, p: torch.tensor([entropy(q, p)])],
    "reweighting": [reweighted, reweighted_in_torch, lambda *case: list(reweighted(*case))],
    "expected_max": [
        lambda s: s.max(axis=1).mean(),
        lambda s: torch.tensor(s).max(dim=1).values.mean(),
        lambda s: pd.DataFrame(s).max(axis="columns").mean(),
    ],
    "perplexity": [
        lambda n, t: np.exp(n.sum() / t.sum()),
        lambda n, t: 2 ** (sum(n) / sum(t) / np.log(2)),
    ],
    "rad": [rad, lambda *case: torch.tensor(rad(*case))],
    "twin_difference": [twins],
    "bootstrap": [resampled, of_scipy, lambda v: torch.tensor(resampled(v))],
    "bad_words": [strings, lambda w: list(strings(w)), lambda w: pd.Series(sorted(strings(w)))],
    "grows_with_k": ["ad", "DA", ["d", "a"], {"a", "d"}, "a, d"],
    "nucleus": [nucleus, lambda p, t: torch.tensor(nucleus(p, t))],
    "running_margins": [running, lambda m, d: np.array(running(m, d))],
    "calibrated_beta": [lambda b, a, new: b * a / new, lambda b, a, new: np.divide(b * a, [new])],
    "pinsker": [0.005, np.float64(0.005), torch.tensor(0.005), [0.005]],
    "budget_beta": [budget_beta],
    "direction_of_sum": [cosine_of_sum, lambda *case: float(cosine_of_sum(*case))],
    "surplus": [
        [[3, -1], [0.5, 0.5]],
        np.array([[10.0, -2.0], [1.0, 1.0]]),
        pd.DataFrame([[3, -1], [0.5, 0.5]]),
    ],
    "distinct": [distinct],
    "best_of_law": [best_of, lambda *case: torch.tensor(best_of(*case))],
    "accepted_law": [accepted, lambda p, m, t: torch.tensor(accepted(p, m, t))],
    "acceptance_nats": [lambda s, n: -np.log(s) / n, lambda s, n: np.log(s ** (-1 / n))],
    "accept_loop": [looped, lambda m, t, n: np.array(looped(m, t, n))],
}

WRONG = [
    ("anisotropy", lambda e: np.corrcoef(e).mean(), "is .*, which is too"),
    ("anisotropy", lambda e: np.mean(unit(e) @ unit(e).T), "with itself, all 1"),
    ("anisotropy", lambda e: e @ e.T, "off: 36 instead of 1"),
    ("anisotropy", lambda e: with_loops(e) * 2, "twice what was asked"),
    ("anisotropy", lambda e: with_loops(e) * 100, "percent"),
    ("anisotropy", 0.5, "a float, and a function was asked"),
    ("auc", lambda m, t: roc_auc_score(t, m), "toxic text lies higher"),
    ("auc", lambda m, t: (m[~t][:, None] > m[t]).mean(), "half, not nothing"),
    ("auc", lambda m, t: (m[~t][:, None] >= m[t]).mean(), "half, not whole"),
    ("auc", lambda m, t: auc_by_ranks(m, t) * t.sum() * (~t).sum(), "their share"),
    ("scaled_states", [10, 1, 10], "w shrinks"),
    ("scaled_states", [10, 10, 1], "standard deviation"),
    ("scaled_states", [1, 1, 1], "factor of the margin is 1, which is too small"),
    ("posterior_line", lambda a, b, s: ((a - b) / s, line(a, b, s)[1]), "squared in the slope"),
    ("posterior_line", lambda a, b, s: (line(a, b, s)[0], -line(a, b, s)[1]), "intercept's sign"),
    ("posterior_line", lambda a, b, s: (line(a, b, s)[0], 0), "need not be at 0"),
    ("posterior_line", lambda a, b, s: line(b, a, s), "sign is turned round"),
    ("posterior_line", lambda a, b, s: line(a, b, s)[0], "off: 1 instead of 2"),
    ("beta_zero", [1 / 3] * 3, "not the same for all"),
    ("beta_zero", STEP["new"], "what the beta of the cell above"),
    ("beta_zero", [0.2, 0.3, 0.5], "order is reversed"),
    ("beta_zero", [0.3, 0.5, 0.2], "right numbers, in another order"),
    ("kl", lambda q, p: entropy(q, p + 1e-9), r"and infinity is right \(for q = \["),
    ("kl", lambda q, p: entropy(q, p) / np.log(2), "log base 2: nats"),
    ("kl", lambda q, p: entropy(q, p) / np.log(10), "log base 10: nats"),
    ("kl", lambda q, p: entropy(p, q), r"KL\(p \|\| q\)"),
    ("kl", lambda q, p: np.sum(q * np.log(q / p)), "NaN"),
    ("kl", lambda q, p: entropy(q[p > 0], p[p > 0]), "infinite where"),
    ("kl", lambda q, p: entropy(q), "entropy of q"),
    ("kl", lambda q, p: -entropy(q, p), "sign is turned round"),
    ("reweighting", lambda p, m, b, t: p * np.exp(b * m), r"sums to .*: is it normalised\?"),
    ("reweighting", lambda p, m, b, t: reweighted(p, m, b, 0), "what does tau do"),
    ("reweighting", lambda p, m, b, t: reweighted(p, -m, b, t), "toxic side"),
    ("reweighting", lambda p, m, b, t: softmax(np.log(p) + b * m / (1 + b * t)), "flattens p"),
    ("reweighting", lambda p, m, b, t: softmax((np.log(p) + b * m) / (1 + t)), "divided by beta"),
    ("reweighting", lambda p, m, b, t: log_softmax(np.log(p) + m), "normalised"),
    ("expected_max", np.mean, "mean over generations, the maximum over each prompt was asked"),
    ("expected_max", np.max, "highest of all"),
    ("expected_max", lambda s: s.max(axis=0).mean(), "rows are the prompts"),
    ("expected_max", lambda s: (s.max(axis=1) > 0.5).mean(), "toxic rate"),
    ("expected_max", lambda s: s.max(axis=1), "off: 24 instead of 1"),
    ("perplexity", lambda n, t: np.exp(n / t).mean(), "mean of the texts' perplexities"),
    ("perplexity", lambda n, t: np.exp((n / t).mean()), "every text weighs the same"),
    ("perplexity", lambda n, t: n.sum() / t.sum(), "log of it"),
    ("perplexity", lambda n, t: np.exp(n.mean()), "not per token"),
    ("perplexity", lambda n, t: 2 ** (n.sum() / t.sum()), "base is e"),
    ("perplexity", lambda n, t: np.exp(-n.sum() / t.sum()), "minus the nll"),
    ("rad", lambda x, t, b, k: rad(x, t, b, len(x)), "only the k likeliest"),
    ("rad", lambda x, t, b, k: rad(x, t, -b, k), "rewards what is toxic"),
    ("rad", lambda x, t, b, k: rad(x + b * (1 - np.clip(t, 0, 1)), t, 0, k), "before the reward"),
    ("rad", lambda x, t, b, k: list(softmax(x - b * t)), "number .* is"),
    ("rad", lambda x, t, b, k: softmax(np.where(x >= np.sort(x)[-k], x, -np.inf) - b * t), "clip"),
    ("twin_difference", lambda a, b: (twins(a, b)["difference"], 0.1), "number 2 is 0.1"),
    ("twin_difference", lambda a, b: twins(b, a), "second minus first"),
    ("twin_difference", lambda a, b: [twins(a, b).iloc[0], np.hypot(*map(se, (a, b)))], "stranger"),
    ("twin_difference", lambda a, b: [twins(a, b).iloc[0], se(a - b, 0)], r"divides by n - 1"),
    ("twin_difference", lambda a, b: [(a - b).mean(), pd.Series((a - b).ravel()).sem()], "alike"),
    ("twin_difference", lambda a, b: [(a - b).mean(), (a - b).mean(1).std(ddof=1)], "the spread"),
    ("bootstrap", cells_resampled, "too narrow: generations were drawn"),
    ("bootstrap", lambda v: np.percentile(v.mean(axis=1), [2.5, 97.5]), "where prompts lie"),
    ("bootstrap", lambda v: resampled(v, low=5), "90% interval"),
    ("bootstrap", lambda v: v.mean(), "off: 1 instead of 2"),
    ("bad_words", lambda w: [w, w.capitalize(), w.upper()], "behind a space"),
    ("bad_words", lambda w: [" " + w, " " + w.capitalize(), " " + w.upper()], "no space before"),
    ("bad_words", lambda w: [w, " " + w], "4 strings are missing for 'hoe'"),
    ("bad_words", lambda w: [*strings(w), w + "s"], "'hoes' was not asked"),
    ("bad_words", lambda w: w, "a str, and several strings"),
    ("grows_with_k", "a", "missing"),
    ("grows_with_k", "abd", "only the drawn candidate"),
    ("grows_with_k", "az", "'z' is none of the letters a, b, c, d, e, f"),
    ("grows_with_k", 2, "an? int, and letters"),
    ("nucleus", lambda p, t: nucleus(p, t) - 1, "reaches top_p is kept"),
    ("nucleus", lambda p, t: len(p) - nucleus(p, t), "removed"),
    ("nucleus", lambda p, t: np.searchsorted(np.cumsum(p), t) + 1, "sort before"),
    ("running_margins", lambda m, d: np.cumsum(m) / np.arange(1, len(m) + 1), "decay is left out"),
    ("running_margins", lambda m, d: sums(m, d), "this is the sum"),
    ("running_margins", lambda m, d: sums(m, d) / np.arange(1, len(m) + 1), "not by their number"),
    ("running_margins", lambda m, d: sums(m, 1 / d) / sums(1 + 0 * m, 1 / d), "first token weighs"),
    ("running_margins", lambda m, d: running(m, d)[-1], "off: 1 instead of 8"),
    ("running_margins", lambda m, d: smoothed(m, d), "smoothing"),
    ("calibrated_beta", lambda b, a, new: b * new / a, "other way round"),
    ("calibrated_beta", lambda b, a, new: b, "does matter"),
    ("calibrated_beta", lambda b, a, new: b * a, "not the beta"),
    ("pinsker", 0.05**0.5 / 2**0.5, "turn the bound round"),
    ("pinsker", 0.1, "square is missing"),
    ("pinsker", 0.0025, "2 is missing"),
    ("pinsker", 0.00125, "other side"),
    ("pinsker", 0.5, "percent"),
    ("pinsker", 7, "too large"),
    ("budget_beta", lambda p, m, e: np.sqrt(2 * e / np.cov(m, aweights=p, ddof=0)), "small betas"),
    ("budget_beta", lambda p, m, e: -budget_beta(p, -m, e), "toxic side"),
    ("budget_beta", lambda p, m, e: min(budget_beta(p, m, e), 60), "60, and infinity is right"),
    ("direction_of_sum", lambda c, a, b: a + b * c, "divide by its length"),
    ("direction_of_sum", lambda c, a, b: (a + b * c) / np.hypot(a, b), "depends on the cosine"),
    ("direction_of_sum", lambda c, a, b: (a + b * c) / (a + b), r"is not \|a\|"),
    ("direction_of_sum", lambda c, a, b: cosine_of_sum(c, b, a), "with the second"),
    ("surplus", [[3, 1], [0.5, 0.5]], "no threat"),
    ("surplus", [[1, -1], [0.5, 0.5]], "margin form prefers the second: 0 against 1"),
    ("surplus", [[3, -0.1], [0.1, 0.1]], "posterior form prefers the first"),
    ("surplus", [3, -1], "off: 2 instead of two times two"),
    ("distinct", lambda t, n: distinct(t, n, per=max(sum(counts(t, n)), 1)), "not per n-gram"),
    ("distinct", lambda t, n: distinct([" ".join(t)], n), "from one text into the next"),
    ("distinct", lambda t, n: distinct(t, n, per=1), "this is their number"),
    ("distinct", lambda t, n: sum(counts(t, n)) / words(t), "only different ones"),
    ("distinct", lambda t, n: sum(distinct([x], n, 1) for x in t) / words(t), "share counts once"),
    ("best_of_law", lambda p, m, n: best_of(p, -m, n), "worst of n"),
    ("best_of_law", lambda p, m, n: best_of(p, m, 1), "power n is missing"),
    ("best_of_law", lambda p, m, n: np.diff(np.cumsum(p) ** n, prepend=0), "as the texts stand"),
    ("best_of_law", lambda p, m, n: p**n, "power belongs to the sums"),
    ("best_of_law", lambda p, m, n: [p[m <= x].sum() ** n for x in m], "no higher"),
    (
        "best_of_law",
        lambda p, m, n: [n * p[m <= m[i]].sum() ** (n - 1) * p[i] for i in range(len(p))],
        "small probability",
    ),
    ("best_of_law", lambda p, m, n: 1 - (1 - p) ** n, "among the draws"),
    ("best_of_law", lambda p, m, n: np.sort(best_of(p, m, n)), "in another order"),
    ("best_of_law", lambda p, m, n: np.float32(best_of(p, m, n)), "double precision"),
    ("accepted_law", lambda p, m, t: accepted(p, m, t - 1e-9), "at the threshold"),
    ("accepted_law", lambda p, m, t: accepted(p, -m, -t), "what is refused"),
    ("accepted_law", lambda p, m, t: accepted(0 * p + 1, m, t), "same probability"),
    ("accepted_law", lambda p, m, t: accepted(p * np.exp(m), m, t), "re-weights by the margin"),
    ("accepted_law", lambda p, m, t: np.where(m > t, p, 0), "normalised"),
    ("acceptance_nats", lambda s, n: -np.log(s), "divide by its tokens"),
    ("acceptance_nats", lambda s, n: np.log(s) / n, "not below 0"),
    ("acceptance_nats", lambda s, n: -np.log2(s) / n, "bits"),
    ("acceptance_nats", lambda s, n: -np.log(s) * n, "not at every token"),
    ("accept_loop", lambda m, t, n: looped(m, t, n) - np.array([0, 1]), "count from 1"),
    ("accept_loop", lambda m, t, n: looped(m, t - 1e-9, n), "at the threshold"),
    ("accept_loop", lambda m, t, n: [np.argmax(m[:n]), n], "best of all"),
    ("accept_loop", lambda m, t, n: [looped(m, t, n)[1] - 1, looped(m, t, n)[1]], "largest of"),
]

RIGHT |= RIGHT_OF_JUDGING | RIGHT_OF_SUBSPACES
WRONG += WRONG_OF_JUDGING + WRONG_OF_SUBSPACES


def unit(e):
    return e / np.linalg.norm(e, axis=1, keepdims=True)


def se(a, ddof=1):
    return a.mean(axis=1).std(ddof=ddof) / np.sqrt(len(a))


def sums(m, d):
    return np.array([np.sum(m[: t + 1] * d ** np.arange(t, -1, -1.0)) for t in range(len(m))])


def smoothed(m, d):
    return pd.Series(m).ewm(alpha=1 - d, adjust=False).mean()


def words(texts):
    return len(" ".join(texts).split())


def counts(texts, n):
    return [max(len(text.split()) - n + 1, 0) for text in texts]


def test_every_check_has_right_and_wrong_answers_here():
    topics = [check.removeprefix("check_") for check in CHECKS]
    assert len(topics) >= 20
    assert sorted(RIGHT) == topics and sorted({topic for topic, *_ in WRONG}) == topics


@pytest.mark.parametrize("topic", RIGHT)
def test_a_right_answer_of_any_form_is_right_and_says_why(topic):
    for answer in RIGHT[topic]:
        found = verdict(topic, answer)
        assert found.right is True and found, found
        assert repr(found).startswith("right: ") and len(repr(found)) > 40


@pytest.mark.parametrize(("topic", "answer", "hint"), WRONG)
def test_a_wrong_answer_says_what_is_off(topic, answer, hint):
    found = verdict(topic, answer)
    assert found.right is False and not found
    assert found.message.startswith("not right yet: ")
    assert re.search(hint, found.message), found


@pytest.mark.parametrize("topic", RIGHT)
def test_no_answer_is_no_wrong_answer(topic):
    nothing = [..., None, [..., 1.0]]
    if callable(RIGHT[topic][0]):
        nothing += [lambda *case: ..., lambda *case: (..., ...)]
    for answer in nothing:
        found = verdict(topic, answer)
        assert found.right is None and not found
        assert repr(found) == "not answered yet"


def test_a_dict_that_is_not_filled_in_is_not_answered_yet():
    for topic in ("controls", "origins"):
        begun = RIGHT[topic][0] | {next(iter(RIGHT[topic][0])): ...}
        assert repr(verdict(topic, begun)) == "not answered yet"
    assert "one origin" in repr(exercises.check_origins(RIGHT["origins"][0], {}))


@pytest.mark.parametrize("topic", [topic for topic in RIGHT if callable(RIGHT[topic][0])])
def test_a_function_without_a_result_is_told_so(topic):
    found = verdict(topic, lambda *case: None)
    assert found.right is False and "returns nothing" in repr(found)


def test_words_are_what_white_space_separates():
    def at_single_spaces(texts, n):
        words = [text.split(" ") for text in texts]
        grams = {tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)}
        return len(grams) / sum(map(len, words))

    assert "split()" in repr(exercises.check_distinct(at_single_spaces))


@pytest.mark.parametrize("topic", [topic for topic in RIGHT if callable(RIGHT[topic][0])])
def test_what_a_function_raises_is_said_in_one_sentence(topic):
    def divides(*case):
        return 1 / 0

    message = verdict(topic, divides).message
    raised = "not right yet: divides raises ZeroDivisionError: division by zero"
    assert message.startswith(raised)
    found = verdict(topic, lambda: 1)
    assert found.right is False and "raises TypeError" in found.message


def test_what_a_function_writes_into_its_arguments_does_no_harm():
    def sorts(p, top_p):
        p[::-1].sort()
        return nucleus(p, top_p)

    assert verdict("nucleus", sorts) and verdict("nucleus", nucleus)


def test_the_slope_of_two_classes_is_that_of_their_posterior():
    slope, intercept = line(1.0, -0.5, 0.7)
    rng = np.random.default_rng(0)
    margins = [rng.normal(mean, 0.7, 200_000) for mean in (1.0, -0.5)]
    near = [np.mean(np.abs(of_class - 0.4) < 0.05) for of_class in margins]
    assert near[0] / sum(near) == pytest.approx(expit(0.4 * slope + intercept), abs=0.02)


@cache
def read(path):
    return nbformat.read(path, as_version=4)


def checks(notebook):
    """The cells that end with a check, by the check that they end with."""
    found = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "exercises.check_" in cell.source:
            last = ast.parse(cell.source).body[-1]
            if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call):
                found[ast.unparse(last)] = cell
    return found


def test_every_check_is_solved_once():
    solved = [name for path in SOLUTIONS for name in checks(read(path))]
    names = sorted(call.split("(")[0].removeprefix("exercises.") for call in solved)
    assert names == CHECKS


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_solution_is_stripped_and_ends_with_all_its_checks(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (NOTEBOOKS / path.name).is_file()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert code[-1].source.startswith("assert all(")
    assert all(call in code[-1].source for call in checks(notebook))


def test_the_solutions_execute():
    # In one kernel, since the library takes longest to load; each begins with an empty namespace.
    together = nbformat.v4.new_notebook(metadata=read(SOLUTIONS[0]).metadata)
    for path in SOLUTIONS:
        together.cells += [nbformat.v4.new_code_cell("%reset -f"), *read(path).cells]
    for number, cell in enumerate(together.cells):
        cell = together.cells[number] = nbformat.from_dict(cell)
        cell["id"] = f"cell-{number}"
    config = Config({"KernelManager": {"transport": "ipc"}})
    NotebookClient(together, timeout=300, config=config).execute()
    shown = [
        output["data"]["text/plain"]
        for cell in together.cells
        for output in cell.get("outputs", [])
        if output.output_type == "execute_result"
    ]
    assert len(shown) == len(CHECKS) and all(text.startswith("right: ") for text in shown)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_released_notebook_asks_what_is_solved_and_does_not_tell(path):
    released, solved = read(NOTEBOOKS / path.name), read(path)
    if not checks(released):
        pytest.skip("this notebook has no checks yet")
    assert list(checks(released)) == list(checks(solved))
    statements = [cell.source for cell in solved.cells if cell.source.startswith("**")]
    assert len(statements) == len(checks(solved))
    assert set(statements) <= {cell.source for cell in released.cells}
    namespace = {}
    exec(next(cell.source for cell in solved.cells if cell.cell_type == "code"), namespace)
    for call, cell in checks(released).items():
        before = cell.source[: cell.source.rindex("exercises.check_")]
        (blank,) = [node for node in ast.parse(before).body if not isinstance(node, ast.ImportFrom)]
        value = blank.body[-1].value if isinstance(blank, ast.FunctionDef) else blank.value
        assert isinstance(value, ast.Constant) and value.value is Ellipsis
        exec(before, namespace)
        assert repr(eval(call, namespace)) == "not answered yet"
    # No line of a solution that is long enough to be one stands anywhere in the notebook.
    everything = "\n".join(cell.source for cell in released.cells)
    for call, cell in checks(solved).items():
        lines = [text.strip() for text in cell.source.splitlines() if not text.startswith("def ")]
        told = [text for text in lines if len(text) > 20 and text != call and text in everything]
        assert told == []
