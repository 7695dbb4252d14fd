"""Several values at once: their boundaries from one reading, and what each does to the others.

Values that are annotated on the same texts are rarely independent. The normals say how far two
boundaries are the same direction, the margins over texts how far two values come together, and
`interference` what steering by one did to the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib._moved import names_of
from sasa_lib.checks import as_list, check_choice, check_finite
from sasa_lib.subspace.boundary import AUTO, COVARIANCES, Boundary
from sasa_lib.subspace.embeddings import check_layer, extract
from sasa_lib.texts.corpora import fingerprint, labelled


def fit_values(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset,
    attributes: Sequence[str],
    *,
    threshold: float = 0.5,
    layer: int | float = -1,
    pooling: str = "last",
    covariance: str = "empirical",
    held_out: Dataset | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Boundary]:
    """Fit a boundary for every attribute, from one reading of the texts.

    Each is what `Boundary.fit` makes of its attribute: fitted on the rows that are annotated for
    it, which need not be those of the others. Embeddings agree within floating-point rounding,
    since the batches are others.

    Parameters
    ----------
    model, tokenizer, corpus, threshold, layer, pooling, covariance, held_out, folder, progress
        As in `Boundary.fit`, but "auto" is refused: it could put every value in another layer.
    attributes : sequence of str
        Annotated values of the corpus, and of `held_out` if given, each once.

    Returns
    -------
    dict of Boundary, by attribute, in the order given
    """
    attributes = as_list(attributes, "attributes")
    if not attributes:
        raise ValueError("attributes must be a list of at least one name")
    twice = next((name for name in attributes if attributes.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the attribute {twice!r} is named more than once")
    for name, choice in (("layer", layer), ("pooling", pooling), ("covariance", covariance)):
        if choice == AUTO:
            raise ValueError(
                f"{name}={AUTO!r} could choose another {name} for every value; choose one for "
                f"all, such as the one that Boundary.fit(..., {name}={AUTO!r}) finds for one"
            )
    if isinstance(layer, str):
        raise ValueError(f"unknown layer {layer!r}; give a number")
    check_choice("covariance", covariance, COVARIANCES)
    layer = check_layer(model, layer)
    corpus, labels = _union(corpus, attributes, threshold, minimum=2)
    if held_out is not None:
        held_out, held_out_labels = _union(held_out, attributes, threshold, minimum=1)
    reading = {"layers": [layer], "pooling": pooling, "folder": folder, "progress": progress}
    embeddings = extract(model, tokenizer, corpus, **reading)[:, 0]
    boundaries = {}
    for name, (rows, toxic) in labels.items():
        boundaries[name] = Boundary.from_embeddings(
            embeddings[rows],
            toxic,
            layer=layer,
            pooling=pooling,
            covariance=covariance,
            model=model,
            metadata={
                "attribute": name,
                "threshold": threshold,
                "data_fingerprint": fingerprint(corpus.select(rows), name),
            },
        )
    if held_out is not None:
        embeddings = extract(model, tokenizer, held_out, **reading)[:, 0]
        for name, (rows, toxic) in held_out_labels.items():
            margins = boundaries[name].margins(embeddings[rows])
            boundaries[name].metadata["held_out_auc"] = float(roc_auc_score(~toxic, margins))
    return boundaries


def cosines(boundaries: Mapping[str, Boundary]) -> pd.DataFrame:
    """Cosine of the normals of every two boundaries.

    1 is the same direction, 0 a right angle, and below 0 a step away from one value is a step
    towards the other, if steps in all directions were alike. They are not: see `correlations`.

    Parameters
    ----------
    boundaries : mapping from name to Boundary
        Of one model and layer.

    Returns
    -------
    pandas.DataFrame of float in [-1, 1], indexed by name, a column a name
    """
    normals = normals_of(boundaries)
    return pd.DataFrame(normals @ normals.T, list(boundaries), list(boundaries))


def correlations(boundaries: Mapping[str, Boundary], embeddings: np.ndarray) -> pd.DataFrame:
    """Correlation over texts of the margins from every two boundaries.

    Parameters
    ----------
    boundaries : mapping from name to Boundary
        Of one model and layer.
    embeddings : numpy.ndarray, shape [n, hidden_size]
        At least two texts, at the boundaries' layer.

    Returns
    -------
    pandas.DataFrame of float in [-1, 1], indexed by name, a column a name

    Notes
    -----
    With C the covariance of the embeddings it is the normals' cosine in the metric of C,

        corr(i, j) = u_i C u_j / sqrt(u_i C u_i * u_j C u_j),

    and were C a multiple of the identity, the two would agree. Hidden states are anisotropic: a
    few directions hold most of their variance (Ethayarajh 2019; `embeddings.anisotropy`).
    Normals at a right angle may share a small part of such a direction and then move together on
    every real text, while much of what makes up their angle lies where texts hardly vary. So the
    cosine is about the directions, the correlation about what texts do. The latter depends on
    which texts are looked at: among toxic texts, values that are alternatives exclude each other.
    """
    normals = normals_of(boundaries)
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 2 or embeddings.shape[1] != normals.shape[1] or len(embeddings) < 2:
        raise ValueError(
            f"expected embeddings [n, {normals.shape[1]}] of at least two texts, got shape "
            f"{embeddings.shape}"
        )
    check_finite("embeddings", embeddings)
    margins = (embeddings - embeddings.mean(axis=0)) @ normals.T  # midpoints do not matter
    length = np.linalg.norm(margins, axis=0)
    if not length.all():
        name = list(boundaries)[int(np.argmin(length))]
        raise ValueError(f"all texts have the same margin from {name!r}: nothing varies with it")
    margins /= length
    return pd.DataFrame(margins.T @ margins, list(boundaries), list(boundaries))


def _union(
    corpus: Dataset, attributes: Sequence[str], threshold: float, minimum: int
) -> tuple[Dataset, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Rows annotated for any attribute; and for each, which of these rows, and which are toxic."""
    toxic = {name: labelled(corpus, name, threshold, minimum)[1] for name in attributes}
    annotated = {name: ~np.isnan(np.array(corpus[name], dtype=float)) for name in attributes}
    union = np.logical_or.reduce(list(annotated.values()))
    labels = {name: (np.flatnonzero(annotated[name][union]), toxic[name]) for name in attributes}
    return corpus.select(np.flatnonzero(union)), labels


def normals_of(boundaries: Mapping[str, Boundary]) -> np.ndarray:
    """Unit normals, float64 [boundaries, hidden_size], of boundaries in one space."""
    if not boundaries:
        raise ValueError("there is no boundary to compare")
    first, *others = boundaries.values()
    if not all(first.same_space(other) for other in others):
        places = {f"layer {one.layer} of {one.model!r}" for one in boundaries.values()}
        raise ValueError(
            "boundaries can be compared in one model and layer, not in "
            + ", ".join(sorted(places))
            + (" with different weights" if len(places) == 1 else "")
        )
    normals = np.array([boundary.normal for boundary in boundaries.values()], dtype=np.float64)
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


__getattr__ = names_of("values")
