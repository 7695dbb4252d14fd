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

from sasa_lib.boundary import AUTO, COVARIANCES, Boundary
from sasa_lib.checks import as_list, check_choice, check_columns, check_finite, check_texts
from sasa_lib.corpora import fingerprint, labelled
from sasa_lib.embeddings import check_layer, extract
from sasa_lib.metrics import bootstrap_interval
from sasa_lib.sampling import SCHEMA


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

    Raises
    ------
    ValueError
        For every argument that does not fit, an unknown attribute, one that is named twice, or
        one of which a class has too few examples; before anything is computed.
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

    Raises
    ------
    ValueError
        No boundaries, or boundaries of different models or layers.
    """
    normals = _normals(boundaries)
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

    Raises
    ------
    ValueError
        No boundaries, boundaries of different models or layers, embeddings of another shape, or
        a margin that is the same for all texts.

    Notes
    -----
    With C the covariance of the embeddings it is the normals' cosine in the metric of C,

        corr(i, j) = u_i C u_j / sqrt(u_i C u_i * u_j C u_j),

    and were C a multiple of the identity, the two would agree. Hidden states are anisotropic: a
    few directions hold most of their variance (Ethayarajh 2019; `sasa_lib.embeddings.anisotropy`).
    Normals at a right angle may share a small part of such a direction and then move together on
    every real text, while much of what makes up their angle lies where texts hardly vary. So the
    cosine is about the directions, the correlation about what texts do. The latter depends on
    which texts are looked at: among toxic texts, values that are alternatives exclude each other.
    """
    normals = _normals(boundaries)
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


def measured(
    generations: pd.DataFrame,
    boundaries: Mapping[str, Boundary],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: str | Path | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Add to generations their scaled margins from every boundary, from one reading.

    Measured on the boundaries that it was steered by, a method is its own judge. Boundaries of
    another model, fitted on other texts, share neither embeddings nor their accidents with it.

    Parameters
    ----------
    generations : pandas.DataFrame
        As `sasa_lib.runs.generate` returns it; only `text`, not the prompt, is measured.
    boundaries : mapping from name to Boundary
        Of one model, layer and pooling.
    model, tokenizer
        The model that the boundaries were fitted on, whichever one generated.
    folder : str or Path, optional
        Where embeddings are kept, see `sasa_lib.embeddings.extract`.
    progress : bool

    Returns
    -------
    pandas.DataFrame
        With a column for each boundary, named as it: the margin in standard deviations of the
        training data, positive on the nontoxic side; NaN for a text without tokens.

    Raises
    ------
    ValueError
        Boundaries that do not belong together, or not to this model.
    """
    check_columns(generations, ("text",))
    _normals(boundaries)
    for name in boundaries:
        if name in (*SCHEMA.names, "prompt_id"):
            raise ValueError(f"a boundary cannot be named {name!r}: generations have such a column")
    first = next(iter(boundaries.values()))
    first.check_model(model)
    if len({boundary.pooling for boundary in boundaries.values()}) > 1:
        raise ValueError("the boundaries have different poolings; measure on them one by one")
    texts = list(dict.fromkeys(check_texts(generations["text"], "text", empty=True)))
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    texts = [text for text, tokens in zip(texts, ids, strict=True) if tokens]
    if not texts:
        return generations.assign(**dict.fromkeys(boundaries, float("nan")))
    embeddings = extract(
        model, tokenizer, texts, layers=[first.layer], pooling=first.pooling, folder=folder,
        progress=progress,
    )[:, 0]  # fmt: skip
    margins = {}
    for name, boundary in boundaries.items():
        margin_of = dict(zip(texts, boundary.margins(embeddings, scaled=True), strict=True))
        margins[name] = generations["text"].map(margin_of).astype(float)
    return generations.assign(**margins)


def interference(
    generations: Mapping[str, pd.DataFrame],
    values: Sequence[str],
    *,
    reference: str = "plain",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How far every method moved the margin from every boundary, relative to plain sampling.

    Parameters
    ----------
    generations : mapping from method to pandas.DataFrame
        As `measured` returns it, of the same prompts; among them the reference.
    values : sequence of str
        The columns that `measured` added.
    reference : str
        The method that the others are compared with.
    confidence : float
        Of the intervals, in (0, 1).
    resamples : int
        Of the bootstrap.
    seed : int

    Returns
    -------
    pandas.DataFrame
        A row a method other than the reference (what it was steered by), and a column for each of
        `change`, `change_low` and `change_high` (percentile bootstrap over prompts) and each
        value (what it was measured on): ``table["change"]`` is steered by x measured on. Of each
        prompt the mean over its generations is taken, without those that have no margin; then
        the mean over the prompts of the difference. Above 0: further on the nontoxic side.

    Raises
    ------
    ValueError
        There is no reference, a column is missing, or the methods continued different prompts.
    """
    values = list(values)
    if reference not in generations:
        raise ValueError(
            f"there is no method {reference!r} to compare with; there are {', '.join(generations)}"
        )
    means = {}
    for method, table in generations.items():
        missing = next((name for name in ("prompt_id", *values) if name not in table), None)
        if missing is not None:
            raise ValueError(f"the generations of {method!r} have no column {missing!r}")
        prompts = [name for name in ("prompt_id", "prompt") if name in table]
        means[method] = table.groupby(prompts)[values].mean()
    plain = means.pop(reference)
    rows = {}
    for method, mean in means.items():
        if not mean.index.equals(plain.index):
            raise ValueError(f"{method!r} and {reference!r} did not continue the same prompts")
        row = {}
        for value in values:
            change = (mean[value] - plain[value]).dropna().to_numpy()
            row["change", value] = float(change.mean()) if len(change) else float("nan")
            row["change_low", value], row["change_high", value] = bootstrap_interval(
                lambda drawn, change=change: float(change[drawn].mean()),
                len(change),
                confidence=confidence,
                resamples=resamples,
                seed=seed,
            )
        rows[method] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    columns = pd.MultiIndex.from_product(
        [("change", "change_low", "change_high"), values], names=(None, "measured on")
    )
    return table.reindex(columns=columns).rename_axis("steered by")


def _union(
    corpus: Dataset, attributes: Sequence[str], threshold: float, minimum: int
) -> tuple[Dataset, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Rows annotated for any attribute; and for each, which of these rows, and which are toxic."""
    toxic = {name: labelled(corpus, name, threshold, minimum)[1] for name in attributes}
    annotated = {name: ~np.isnan(np.array(corpus[name], dtype=float)) for name in attributes}
    union = np.logical_or.reduce(list(annotated.values()))
    labels = {name: (np.flatnonzero(annotated[name][union]), toxic[name]) for name in attributes}
    return corpus.select(np.flatnonzero(union)), labels


def _normals(boundaries: Mapping[str, Boundary]) -> np.ndarray:
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
