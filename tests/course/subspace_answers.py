"""Answers to checks of notebooks 02 and 03, right and wrong, for test_exercises."""

import numpy as np
import pandas as pd
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

import sasa_lib as sl

KNOWN = pd.DataFrame(
    {"AUC, training": [0.68, np.nan, 0.65], "held out": [0.54, 0.83, 0.61]},
    index=["labels shuffled, mean of 5", "random direction, best of 200", "number of words"],
)
ROWS = {
    "fitted on pairs": {"pairs": 0.991, "web": 0.931, "all": 0.957},
    "fitted on web": {"pairs": 0.924, "web": 0.996, "all": 0.969},
    "origin, within toxic": {"origin": 1.0},
}
GIVEN = {"check_controls": (KNOWN,), "check_origins": (ROWS,)}


def four(*predicted):
    names = ["shuffled labels, training", "shuffled labels, held out"]
    names += ["best of 200 random directions", "number of words"]
    return dict(zip(names, predicted, strict=True))


def three(*read):
    names = ["pairs to web", "web to pairs", "origin within toxic"]
    return dict(zip(names, read, strict=True))


def library(x, toxic, covariance="empirical"):
    one = sl.Boundary.from_embeddings(
        x, toxic, layer=0, pooling="mean", model="", covariance=covariance
    )
    return one.normal, one.midpoint


def parts(x, toxic):
    a, b = x[~toxic].mean(0), x[toxic].mean(0)
    centred = x - np.where(toxic[:, None], b, a)
    return a, b, centred


def closed(x, toxic, invert=np.linalg.pinv, length=True, turn=1):
    a, b, centred = parts(x, toxic)
    w = turn * invert(centred.T @ centred / len(x)) @ (a - b)
    return w / (np.linalg.norm(w) if length else 1), (a + b) / 2


def means(x, toxic):
    a, b, _ = parts(x, toxic)
    return (a - b) / np.linalg.norm(a - b), (a + b) / 2


def read_off(x, toxic, unseen, unseen_toxic, fit=library, take_out=True, of_training=False):
    aucs = [1.0]
    while aucs[-1] >= 0.6 and len(aucs) <= x.shape[1]:
        normal = np.asarray(fit(x, toxic)[0], dtype=float)
        of, labels = (x, toxic) if of_training else (unseen, unseen_toxic)
        aucs.append(roc_auc_score(~labels, of @ normal))
        if take_out:
            x, unseen = (e - np.outer(e @ normal, normal) for e in (x, unseen))
    return aucs[1:]


def in_coordinates(x, toxic, unseen, unseen_toxic):
    """With one dimension less after each fit, instead of a projection."""
    aucs = []
    while not aucs or aucs[-1] >= 0.6:
        a, b, centred = parts(x, toxic)
        w = np.linalg.solve(centred.T @ centred, a - b)
        aucs.append(roc_auc_score(unseen_toxic, -unseen @ w))
        others = np.linalg.qr(np.column_stack([w, np.eye(len(w))[:, 1:]]))[0][:, 1:]
        x, unseen = x @ others, unseen @ others
    return aucs


def of_all(x, toxic):
    w = LinearDiscriminantAnalysis(solver="lsqr").fit(x, ~toxic).coef_[0]
    return w / np.linalg.norm(w), (x[~toxic].mean(0) + x[toxic].mean(0)) / 2


def in_torch(x, toxic):
    x, toxic = torch.tensor(x), torch.tensor(toxic)
    w = torch.linalg.solve(torch.cov(x.T), x[~toxic].mean(0) - x[toxic].mean(0))
    return torch.nn.functional.normalize(w, dim=0), (x[~toxic].mean(0) + x[toxic].mean(0)) / 2


def each_alike(x, toxic):
    a, b, _ = parts(x, toxic)
    w = np.linalg.solve(np.cov(x[toxic].T, ddof=0) + np.cov(x[~toxic].T, ddof=0), a - b)
    return w / np.linalg.norm(w), (a + b) / 2


def uncentred(x, toxic):
    a, b, _ = parts(x, toxic)
    w = np.linalg.solve(x.T @ x, a - b)
    return w / np.linalg.norm(w), (a + b) / 2


RIGHT = {
    "controls": [
        four(0.7, 0.5, 0.8, 0.6),
        four(*torch.tensor([0.65, 0.5, 0.9, 0.55])),
        pd.Series(four(0.6, 0.5, 0.75, 0.6)),
    ],
    "directions": [
        read_off,
        in_coordinates,
        lambda *case: read_off(*case, fit=closed),
        lambda *case: torch.tensor(read_off(*case, fit=of_all)),
    ],
    "origins": [three(0.93, 0.92, 1.0), three(0.92, 0.92, 1), pd.Series(three(0.93, 0.92, 0.99))],
    "fit": [library, closed, of_all, in_torch, lambda *case: np.stack(closed(*case))],
}

WRONG = [
    ("controls", four(0.5, 0.5, 0.5, 0.5), "training: 0.50 predicted, 0.68 measured, further off"),
    ("controls", four(0.5, 0.5, 0.5, 0.5), "held out: 0.50 predicted, 0.54 measured, within"),
    ("controls", four(0.7, 0.5, 83, 0.6), "'best of 200 random directions' is 83, and an AUC lies"),
    ("controls", four(0.7, -0.1, 0.8, 0.6), "an AUC lies between 0 and 1"),
    ("controls", four(0.7, np.nan, 0.8, 0.6), "'shuffled labels, held out' needs one number"),
    ("controls", four(0.7, [0.5, 0.5], 0.8, 0.6), "needs one number"),
    ("controls", [0.7, 0.5, 0.8, 0.6], "a list, and a dict was asked"),
    ("controls", {"number of words": 0.6}, "'shuffled labels, training' is missing: the keys are"),
    ("controls", four(0.7, 0.5, 0.8, 0.6) | {"words": 0.9}, "'words' is not among the keys"),
    ("directions", lambda *case: read_off(*case)[:-1], "belongs to the list, as its last"),
    ("directions", lambda *case: [*read_off(*case), 0.5], "goes on after the first AUC below"),
    ("directions", lambda *case: read_off(*case, take_out=False), "nothing is taken out unless"),
    (
        "directions",
        lambda *case: read_off(*case, fit=lambda *of: closed(*of, length=False)),
        "unless the normal has length 1",
    ),
    ("directions", lambda *case: read_off(*case, of_training=True), "of the training texts"),
    ("directions", lambda x, t, u, v: [roc_auc_score(v, u @ closed(x, t)[0])], "turn it round"),
    (
        "directions",
        lambda *case: read_off(*case, fit=lambda *of: library(*of, covariance="ledoit_wolf")),
        "this shrinks the covariance",
    ),
    ("directions", lambda *case: read_off(*case, fit=means), "this joins the means"),
    ("directions", lambda *case: len(read_off(*case)), "off: 1 instead of 5"),
    ("origins", three(0.99, 0.92, 1.0), "'pairs to web' is on texts of the origin that it was"),
    ("origins", three(0.93, 0.97, 1.0), "'web to pairs' is on all texts"),
    ("origins", three(0.96, 0.92, 1.0), "'pairs to web' is on all texts"),
    ("origins", three(0.93, 0.92, 0.5), "0.50 for 'origin within toxic' is too small"),
    ("origins", three(0.93, 0.92, 100), "an AUC lies between 0 and 1"),
    ("fit", lambda *case: closed(*case, turn=-1), "points to the toxic side"),
    ("fit", means, "this joins the means"),
    ("fit", lambda *case: closed(*case, invert=lambda s: s), "not by its inverse"),
    ("fit", lambda *case: closed(*case, invert=lambda s: np.diag(1 / s.diagonal())), "variances"),
    ("fit", lambda *case: closed(*case, invert=lambda s: ledoit_wolf(s)[0]), "has a cosine of"),
    ("fit", uncentred, "the mean of its class from each text"),
    ("fit", each_alike, r"weighs as much as it has texts \(for embeddings = "),
    ("fit", lambda *case: closed(*case, length=False), "has the length .*, and 1 was asked"),
    ("fit", lambda *case: closed(*case)[::-1], "the normal comes first"),
    ("fit", lambda *case: closed(*case)[0], "two things were asked"),
    ("fit", lambda x, t: (closed(x, t)[0], x.mean(0)), "nearer to the larger class"),
    ("fit", lambda x, t: (closed(x, t)[0], 0 * x[0]), "not halfway between"),
    ("fit", lambda x, t: (closed(x, t)[0], 0), "midpoint has 1 numbers? instead of 6"),
    ("fit", lambda x, t: (0 * x[0], closed(x, t)[1]), "the normal is 0"),
    ("fit", lambda x, t: (x[0] / 0, closed(x, t)[1]), "NaN or infinity in the normal"),
]
