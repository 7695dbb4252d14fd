"""How well a boundary does: with more texts, and on the beginnings of texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedShuffleSplit

from sasa_lib.checks import check_count, check_labels
from sasa_lib.subspace.boundary import COVARIANCES, Boundary


def learning_curve(
    embeddings: np.ndarray,
    toxic: np.ndarray,
    held_out: np.ndarray,
    held_out_toxic: np.ndarray,
    *,
    sizes: Sequence[int],
    covariances: Sequence[str] = COVARIANCES,
    resamples: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Held-out AUC of boundaries fitted on random subsets, for several covariance estimators.

    Parameters
    ----------
    embeddings, toxic : arrays, shapes [n, hidden_size] and [n]
        Training data; subsets keep its share of toxic texts.
    held_out, held_out_toxic : arrays, shapes [m, hidden_size] and [m]
    sizes : sequence of int
        Numbers of training texts, each at least 8 and at most n - 2.
    covariances : sequence of str
        As in `Boundary.fit`.
    resamples : int
        Subsets of each size.
    seed : int

    Returns
    -------
    pandas.DataFrame
        Columns covariance, n, resample and auc.
    """
    rows = []
    toxic = check_labels("toxic", toxic)
    held_out_toxic = check_labels("held_out_toxic", held_out_toxic)
    for size in sizes:
        if not 8 <= check_count("size", size) <= len(toxic) - 2:
            raise ValueError(f"sizes must be from 8 to n - 2 = {len(toxic) - 2}, got {size}")
        splitter = StratifiedShuffleSplit(
            resamples, train_size=size, test_size=2, random_state=seed
        )
        for resample, (chosen, _) in enumerate(splitter.split(embeddings, toxic)):
            for covariance in covariances:
                boundary = Boundary.from_embeddings(
                    embeddings[chosen], toxic[chosen], covariance=covariance,
                    layer=0, pooling="mean", model="",
                )  # fmt: skip
                auc = roc_auc_score(~held_out_toxic, boundary.margins(held_out))
                rows.append((covariance, size, resample, auc))
    return pd.DataFrame(rows, columns=["covariance", "n", "resample", "auc"])


def prefix_auc(
    margins: Sequence[np.ndarray], toxic: np.ndarray, *, tokens: Sequence[int]
) -> pd.DataFrame:
    """How well the margin of a text's beginning tells what the whole text is.

    Parameters
    ----------
    margins : sequence of numpy.ndarray
        Of every text's growing phrase, as `Boundary.phrase_margins` returns them.
    toxic : numpy.ndarray of bool, shape [n]
        Labels of the whole texts.
    tokens : sequence of int
        After how many tokens to look; texts that end before are judged by all they have.

    Returns
    -------
    pandas.DataFrame
        Columns tokens and auc.
    """
    rows, toxic = [], check_labels("toxic", toxic)
    for read in tokens:
        read = check_count("tokens", read)
        seen = [of_text[min(read, len(of_text)) - 1] for of_text in margins]
        rows.append((read, roc_auc_score(~toxic, seen)))
    return pd.DataFrame(rows, columns=["tokens", "auc"])
