"""Which layer, pooling and covariance suit a corpus, by cross-validation on the corpus alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.covariance import OAS, empirical_covariance, ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from transformers import PreTrainedModel

from sasa_lib.engine.models import text_config
from sasa_lib.subspace.embeddings import check_layer

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the depth: candidate layers
FOLDS = 5
# Of choices that are as good, the earlier is taken.
SIMPLEST_POOLINGS = ("mean", "last")
SIMPLEST_COVARIANCES = ("ledoit_wolf", "oas", "empirical")
ESTIMATORS = ("discriminant", "logistic")  # the paper's closed form first
PENALTIES = np.logspace(-4, 1, 6)  # inverse strengths C of a logistic regression
PENALTY = 1e-2  # while places are compared
CUTS = ("relative", "published")
PUBLISHED_CUT = 1e-6
WORKERS = min(8, os.cpu_count() or 1)  # each holds a few covariances
Folds = list[tuple[np.ndarray, np.ndarray]]


def kept_eigenvalues(values: np.ndarray, cut: str = "relative") -> np.ndarray:
    """Say which eigenvalues of a covariance are more than rounding, so that it is inverted there.

    Parameters
    ----------
    values : numpy.ndarray, shape [hidden_size]
    cut : {"relative", "published"}
        "relative": above the largest one times the number of them times the precision of float64,
        as in `scipy.linalg.pinvh`: the boundary does not depend on the unit of the hidden states.
        "published": above 1e-6, as in the authors' code, which suits states of about unit size:
        of larger ones it keeps directions that are rounding, of smaller ones it drops real ones.

    Returns
    -------
    numpy.ndarray of bool, shape [hidden_size]
    """
    if cut == "published":
        return values > PUBLISHED_CUT
    return values > values.max() * len(values) * np.finfo(np.float64).eps


def candidate_layers(model: PreTrainedModel) -> list[int]:
    """Return the layers at `SHARES` of a model's depth, lowest first, each once.

    The token embeddings are none of them: they know nothing of the text around a token. Nor is
    a last layer that is projected to another size than the others, which cannot be embedded.
    """
    depth, config = check_layer(model, -1), text_config(model)
    layers = {max(1, round(share * depth)) for share in SHARES}
    projected = getattr(config, "word_embed_proj_dim", config.hidden_size) != config.hidden_size
    return sorted(layers - {depth} if projected else layers)


def grouped_folds(corpus: Dataset, toxic: np.ndarray) -> Folds:
    """Split a corpus for cross-validation; rows of one `group` are held out together.

    Parameters
    ----------
    corpus : datasets.Dataset
        With the column `group`.
    toxic : numpy.ndarray of bool, shape [n]

    Returns
    -------
    list of (training, held_out), arrays of row indices
        `FOLDS` of them, fewer where a class has fewer groups; always the same for a corpus. Both
        classes are in every held-out part, and at least two rows of either in every training part.
    """
    if "group" not in corpus.column_names:
        raise ValueError(
            "an 'auto' choice is cross-validated by the column 'group', which this corpus lacks"
        )
    groups = np.unique(np.array(corpus["group"], dtype=str), return_inverse=True)[1]
    fewest = min(len(np.unique(groups[rows])) for rows in (toxic, ~toxic))
    for count in range(min(FOLDS, fewest), 1, -1):
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=0)
        folds = list(splitter.split(groups, toxic, groups))
        # Groups are as large as they are, so that a class may be missing in a fold nevertheless.
        if all(
            min(_smaller(toxic[held_out]), _smaller(toxic[training]) - 1) >= 1
            for training, held_out in folds
        ):
            return folds
    raise ValueError(
        "the corpus has too few groups for an 'auto' choice: cross-validation needs both classes "
        f"in each of at least two folds, and the rarer class is in {fewest} group(s); choose "
        "layer, pooling and covariance yourself"
    )


def cross_validate(
    embeddings: Mapping[str, np.ndarray],
    layers: Sequence[int],
    covariances: Sequence[str],
    toxic: np.ndarray,
    folds: Folds,
    cut: str = "relative",
    estimators: Sequence[str] = ("discriminant",),
) -> list[dict[str, Any]]:
    """Judge every combination of layer, pooling, estimator and covariance, and choose one.

    Parameters
    ----------
    embeddings : mapping of pooling to numpy.ndarray, shape [n, layers, hidden_size]
    layers : sequence of int
        Indices of the layers in `embeddings`, from 0.
    covariances : sequence of str
        Of `SIMPLEST_COVARIANCES`.
    toxic : numpy.ndarray of bool, shape [n]
    folds : list of (training, held_out)
        As `grouped_folds` makes them.
    cut : {"relative", "published"}
        As in `kept_eigenvalues`.
    estimators : sequence of str
        Of `ESTIMATORS`. A logistic regression has no covariance: its rows have None.

    Returns
    -------
    list of dict
        One for each combination, simplest first, with layer, pooling, estimator, covariance, auc
        and standard_error (mean over the folds, and the standard error of that mean) and chosen.
        The best has the highest auc; chosen is the simplest of those that are at most one standard
        error of the best below it.
    """
    poolings = [pooling for pooling in SIMPLEST_POOLINGS if pooling in embeddings]
    covariances = [name for name in SIMPLEST_COVARIANCES if name in covariances]
    ways: list[tuple[str, str | None]] = []
    if "discriminant" in estimators:
        ways += [("discriminant", name) for name in covariances]
    if "logistic" in estimators:
        ways.append(("logistic", None))
    places = list(product(range(len(layers)), poolings))

    def judge(place: tuple[int, str]) -> np.ndarray:
        layer, pooling = place
        of_layer = embeddings[pooling][:, layer].astype(np.float64)
        aucs = []
        for fold in folds:
            found = []
            if "discriminant" in estimators:
                found += _held_out_aucs(of_layer, toxic, *fold, covariances, cut)
            if "logistic" in estimators:
                found.append(_logistic_auc(of_layer, toxic, *fold))
            aucs.append(found)
        return np.array(aucs)

    # Side by side, each on one thread: the threads of a linear algebra library, which wait for
    # each other many times in one decomposition, become a hundred times slower than one thread
    # where another program takes part of the machine.
    with threadpool_limits(1), ThreadPoolExecutor(WORKERS) as pool:
        judged = list(pool.map(judge, places))
    tried = []
    for (i, pooling), aucs in zip(places, judged, strict=True):
        errors = aucs.std(axis=0, ddof=1) / np.sqrt(len(folds))
        for (way, name), auc, error in zip(ways, aucs.mean(axis=0), errors, strict=True):
            place = {"layer": int(layers[i]), "pooling": pooling}
            place |= {"estimator": way, "covariance": name}
            tried.append(place | {"auc": float(auc), "standard_error": float(error)})
    best = max(tried, key=lambda row: row["auc"])
    enough = best["auc"] - best["standard_error"]
    chosen = next(row for row in tried if row["auc"] >= enough)
    return [row | {"chosen": row is chosen} for row in tried]


def _held_out_aucs(
    embeddings: np.ndarray,
    toxic: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray,
    covariances: Sequence[str],
    cut: str,
) -> list[float]:
    """Held-out AUC of the boundary of each covariance estimator, fitted on the training rows."""
    seen, seen_toxic = embeddings[training], toxic[training]
    means = seen[~seen_toxic].mean(axis=0), seen[seen_toxic].mean(axis=0)
    centred = seen - np.where(seen_toxic[:, None], means[1], means[0])
    # Shrinkage moves eigenvalues towards their mean and leaves the eigenvectors: one costly
    # decomposition serves all estimators.
    values, vectors = np.linalg.eigh(empirical_covariance(centred, assume_centered=True))
    difference = vectors.T @ (means[0] - means[1])
    coordinates = embeddings[held_out] @ vectors
    aucs = []
    for name in covariances:
        share = _shrinkage(centred, name)
        shrunk = (1 - share) * values + share * values.mean()
        kept = kept_eigenvalues(shrunk, cut)
        margins = coordinates[:, kept] @ (difference[kept] / shrunk[kept])
        aucs.append(roc_auc_score(~toxic[held_out], margins))
    return aucs


def logistic(embeddings: np.ndarray, toxic: np.ndarray) -> tuple[np.ndarray, float]:
    """Log-odds of nontoxic at equal priors, weight . embedding + offset, by logistic regression.

    Embeddings are standardised, which is folded into the weights; the L2 penalty is chosen by
    five-fold cross-validation of the log-loss.

    Parameters
    ----------
    embeddings : numpy.ndarray, shape [n, hidden_size]
    toxic : numpy.ndarray of bool, shape [n]
    """
    scaler = StandardScaler().fit(embeddings)
    folds = min(FOLDS, _smaller(toxic))
    fitted = LogisticRegressionCV(
        Cs=PENALTIES, cv=StratifiedKFold(folds, shuffle=True, random_state=0), max_iter=500,
        class_weight="balanced", scoring="neg_log_loss", l1_ratios=(0.0,),
        use_legacy_attributes=False,
    ).fit(scaler.transform(embeddings), ~toxic)  # fmt: skip
    weight = np.ravel(fitted.coef_) / scaler.scale_
    return weight, float(np.ravel(fitted.intercept_)[0] - weight @ scaler.mean_)


def _logistic_auc(
    embeddings: np.ndarray, toxic: np.ndarray, training: np.ndarray, held_out: np.ndarray
) -> float:
    """Held-out AUC of a logistic regression at one penalty."""
    scaler = StandardScaler().fit(embeddings[training])
    fitted = LogisticRegression(C=PENALTY, max_iter=500, class_weight="balanced")
    fitted.fit(scaler.transform(embeddings[training]), ~toxic[training])
    margins = fitted.decision_function(scaler.transform(embeddings[held_out]))
    return roc_auc_score(~toxic[held_out], margins)


def _shrinkage(centred: np.ndarray, estimator: str) -> float:
    if estimator == "empirical":
        return 0.0
    if estimator == "ledoit_wolf":
        return ledoit_wolf_shrinkage(centred, assume_centered=True)
    # The function `oas` would invert the covariance too, which costs more than all else here.
    return OAS(store_precision=False, assume_centered=True).fit(centred).shrinkage_


def _smaller(toxic: np.ndarray) -> int:
    """Size of the smaller class."""
    return int(min(toxic.sum(), (~toxic).sum()))
