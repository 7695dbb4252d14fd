"""The linear boundary between the toxic and the nontoxic subspace of a model's embeddings."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.special import expit
from sklearn.covariance import empirical_covariance, ledoit_wolf, oas
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib._moved import names_of
from sasa_lib.checks import check_choice, check_finite, check_labels, check_number
from sasa_lib.engine.models import language_model, text_config
from sasa_lib.subspace.calibration import CalibratedMargins
from sasa_lib.subspace.embeddings import POOLINGS, extract
from sasa_lib.subspace.hidden_states import check_layer
from sasa_lib.subspace.probes import allowed_error, check_states, probe_states
from sasa_lib.subspace.selection import (
    CUTS,
    ESTIMATORS,
    candidate_layers,
    cross_validate,
    grouped_folds,
    kept_eigenvalues,
    logistic,
)
from sasa_lib.subspace.sharing import Shared
from sasa_lib.texts.corpora import fingerprint as corpus_fingerprint
from sasa_lib.texts.corpora import labelled

COVARIANCES = ("empirical", "ledoit_wolf", "oas")
AUTO = "auto"


@dataclass(frozen=True)
class Boundary(CalibratedMargins, Shared):
    """Bayes-optimal linear classifier of two Gaussian classes that share a covariance.

    With class means mu1 (nontoxic) and mu2 (toxic) and the pooled within-class covariance S,
    ``w = S^-1 (mu1 - mu2)``, ``b = (mu1 + mu2) / 2`` and

        margin(h) = w . (h - b) / |w|,

    positive on the nontoxic side (Ko et al. 2025, arXiv 2410.03818, section 3). S is inverted on
    those of its eigenvectors that `selection.kept_eigenvalues` keeps. Make one with
    `fit`, `from_embeddings` or `load`.

    Attributes
    ----------
    normal : numpy.ndarray of float32, shape [hidden_size]
        w / |w|, the unit normal of the boundary, pointing to the nontoxic side.
    midpoint : numpy.ndarray of float32, shape [hidden_size]
        b.
    scale : float
        Standard deviation of the margins of the training data. Divided by it, a margin, and with
        it beta, means the same on every model and layer.
    weight_norm : float
        |w|: what one unit of margin adds to the log-odds of nontoxic, by the model's own account.
    layer : int
        Hidden state that the boundary lives in, counted from 0 (the token embeddings).
    pooling : {"last", "mean"}
        How a text's hidden states became its embedding.
    model : str
        Name of the language model whose embeddings these are, for people.
    slope, intercept : float
        Log-odds of nontoxic in the posterior form: slope * (margin / scale) + intercept. See
        `calibrated`.
    metadata : dict
        How the boundary came about: sizes, AUC, covariance, data fingerprint, version, and,
        where something was left to "auto", what was `tried`.
    states : numpy.ndarray of float32, shape [tokens, hidden_size], optional
        Hidden states by which the model is known again, whatever it is called
        (`sasa_lib.subspace.probes.probe_states`). Without them only its name is compared.
    dtype : str
        Of the model's weights.
    """

    normal: np.ndarray
    midpoint: np.ndarray
    scale: float
    weight_norm: float
    layer: int
    pooling: str
    model: str
    slope: float = 3.0
    intercept: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)
    states: np.ndarray | None = field(default=None, repr=False)
    dtype: str = ""

    @classmethod
    def fit(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Dataset,
        *,
        attribute: str = "toxicity",
        threshold: float = 0.5,
        layer: int | float | str = -1,
        pooling: str = "last",
        covariance: str = "empirical",
        cut: str = "relative",
        estimator: str = "discriminant",
        held_out: Dataset | None = None,
        folder: str | Path | None = None,
        set_aside: bool = False,
        progress: bool = True,
    ) -> Boundary:
        """Fit a boundary on a value-annotated corpus.

        Parameters
        ----------
        model, tokenizer
            As returned by `sasa_lib.load_lm`.
        corpus : datasets.Dataset
            In the schema of `sasa_lib.texts.corpora`.
        attribute : str
            The annotated value; rows where it is null are left out.
        threshold : float
            Values above it are toxic.
        layer : int, float or "auto"
            See `embeddings.extract`; -1 is the published choice. For "auto" see Notes.
        pooling : {"last", "mean", "auto"}
            "last" is the published choice.
        covariance : {"empirical", "ledoit_wolf", "oas", "auto"}
            "empirical" is the published choice; "ledoit_wolf" and "oas" shrink it, which matters
            wherever there are not many more examples than hidden units.
        cut : {"relative", "published"}
            Which eigenvalues of the covariance count as 0, see
            `sasa_lib.subspace.selection.kept_eigenvalues`; "published" is an absolute 1e-6.
        estimator : {"discriminant", "logistic", "auto"}
            "discriminant" is the published closed form. "logistic" is a logistic regression of
            the label on standardised embeddings, which needs no covariance: ahead where texts
            are few, and where dimensions differ much in scale.
        held_out : datasets.Dataset, optional
            Annotated data on which the AUC in the metadata is measured.
        folder : str or Path, optional
            Where embeddings are kept, see `sasa_lib.subspace.embeddings.extract`.
        set_aside : bool
            Fit without texts that cannot be read, with a warning. False: refuse them.
        progress : bool

        Returns
        -------
        Boundary

        Notes
        -----
        "auto" chooses by cross-validation on `corpus` alone: up to five folds, the same in every
        run, across which rows of one `group` are never spread. Every combination of what is left
        open, among them the layers at each tenth of the depth, is judged by its mean AUC on the
        held-out folds. Of all that lie within one standard error of the best the simplest is
        taken: the lowest layer, since candidates are computed only up to it, then "mean" before
        "last", then "ledoit_wolf" before "oas" before "empirical", then a logistic regression.
        What was tried is a table, ``pandas.DataFrame(boundary.metadata["tried"])``. It costs one
        reading of the texts, and a decomposition of a covariance for every layer, pooling and fold.

        The rule says what separates texts like these. For other texts, or for decoding, another
        choice may be better: compare on `held_out` data of that kind.
        """
        model = language_model(model)
        check_choice("cut", cut, CUTS)
        if isinstance(layer, str) and layer != AUTO:
            raise ValueError(f"unknown layer {layer!r}; give a number, or {AUTO!r}")
        layers = candidate_layers(model) if layer == AUTO else [check_layer(model, layer)]
        _check_choices(pooling, covariance, AUTO)
        poolings = POOLINGS if pooling == AUTO else (pooling,)
        covariances = COVARIANCES if covariance == AUTO else (covariance,)
        check_choice("estimator", estimator, (*ESTIMATORS, AUTO))
        estimators = ESTIMATORS if estimator == AUTO else (estimator,)
        open_choices = AUTO in (layer, pooling, covariance, estimator)
        corpus, toxic = labelled(corpus, attribute, threshold)
        metadata = {"attribute": attribute, "threshold": float(threshold)}
        metadata["data_fingerprint"] = corpus_fingerprint(corpus, attribute)
        if held_out is not None:
            held_out, held_out_toxic = labelled(held_out, attribute, threshold, minimum=1)
        if open_choices:
            grouped_folds(corpus, toxic)  # refuses, if it does, before the texts are read
        reading = {"set_aside": set_aside, "progress": progress}
        embeddings = _of_poolings(model, tokenizer, corpus, poolings, layers, folder, reading)
        read = np.isfinite(embeddings[poolings[0]][:, 0, 0])
        if not read.all():
            corpus, toxic = labelled(corpus.select(np.flatnonzero(read)), attribute, threshold)
            embeddings = {name: of_pooling[read] for name, of_pooling in embeddings.items()}
            metadata["data_fingerprint"] = corpus_fingerprint(corpus, attribute)
        choice = {"layer": layers[0], "pooling": poolings[0], "covariance": covariances[0]}
        choice["estimator"] = estimators[0]
        if open_choices:
            folds = grouped_folds(corpus, toxic)
            tried = cross_validate(embeddings, layers, covariances, toxic, folds, cut, estimators)
            metadata["tried"] = tried
            choice = next({key: row[key] for key in choice} for row in tried if row["chosen"])
        chosen = embeddings[choice["pooling"]][:, layers.index(choice["layer"])]
        boundary = cls.from_embeddings(
            chosen, toxic, model=model, metadata=metadata, cut=cut, **choice
        )
        if held_out is not None:
            of = {"layers": [boundary.layer], "pooling": boundary.pooling, "folder": folder}
            embeddings = extract(model, tokenizer, held_out, **of, **reading)[:, 0]
            boundary.metadata["held_out_auc"] = boundary._auc(embeddings, held_out_toxic)
        return boundary

    @classmethod
    def from_embeddings(
        cls,
        embeddings: np.ndarray,
        toxic: Sequence[bool] | np.ndarray,
        *,
        layer: int,
        pooling: str,
        model: PreTrainedModel | str,
        covariance: str | None = "empirical",
        cut: str = "relative",
        estimator: str = "discriminant",
        metadata: dict[str, Any] | None = None,
    ) -> Boundary:
        """Fit a boundary on embeddings that are already at hand.

        Parameters
        ----------
        embeddings : numpy.ndarray, shape [n, hidden_size]
        toxic : sequence of bool, shape [n]
        layer, pooling, covariance, cut, estimator
            As in `fit`.
        model : PreTrainedModel or str
            Whose embeddings these are. By a name alone the boundary cannot tell whether another
            model of this name has the same weights.
        metadata : dict, optional
            Kept with the boundary.

        Returns
        -------
        Boundary
        """
        check_choice("estimator", estimator, ESTIMATORS)
        covariance = None if estimator == "logistic" else covariance
        _check_choices(pooling, *filter(None, [covariance]))
        check_choice("cut", cut, CUTS)
        embeddings = np.asarray(embeddings, dtype=np.float64)
        toxic = check_labels("toxic", toxic)
        if embeddings.ndim != 2 or toxic.shape != (len(embeddings),):
            raise ValueError(
                f"expected embeddings [n, hidden_size] and toxic [n], got shapes "
                f"{embeddings.shape} and {toxic.shape}"
            )
        check_finite("embeddings", embeddings)
        if min(toxic.sum(), (~toxic).sum()) < 2:
            raise ValueError(
                f"a boundary needs at least 2 examples of either class, got {int(toxic.sum())} "
                f"toxic and {int((~toxic).sum())} nontoxic"
            )
        weight, midpoint = _hyperplane(embeddings, toxic, covariance, cut, estimator)
        length = np.linalg.norm(weight)
        if length == 0:
            raise ValueError(
                "the two classes have the same mean, or vary along nothing that tells them apart: "
                "there is nothing to separate"
            )
        normal = weight / length
        margins = (embeddings - midpoint) @ normal
        facts = {
            "estimator": estimator,
            "covariance": covariance,
            "cut": cut,
            "n_nontoxic": int((~toxic).sum()),
            "n_toxic": int(toxic.sum()),
            "training_auc": float(roc_auc_score(~toxic, margins)),
            "sasa_lib": version("sasa-lib"),
        }
        return cls(
            normal=normal.astype(np.float32),
            midpoint=midpoint.astype(np.float32),
            scale=float(margins.std()),
            weight_norm=float(length),
            layer=int(layer),
            pooling=pooling,
            model=model if isinstance(model, str) else model.name_or_path,
            metadata=facts | (metadata or {}),
        ).of(model)

    def of(self, model: PreTrainedModel | str) -> Boundary:
        """Return this boundary, knowing its model by its hidden states and not only by its name."""
        if isinstance(model, str):
            return self
        states = probe_states(model, self.layer)
        return replace(self, states=states, dtype=str(model.dtype))

    def margins(self, embeddings: np.ndarray, *, scaled: bool = False) -> np.ndarray:
        """Signed distance of embeddings from the boundary, positive on the nontoxic side.

        Parameters
        ----------
        embeddings : numpy.ndarray, shape [..., hidden_size]
        scaled : bool
            In units of the training data's standard deviation rather than of the hidden state.

        Returns
        -------
        numpy.ndarray of float64, shape [...]
        """
        embeddings = np.asarray(embeddings, dtype=np.float64)
        if embeddings.shape[-1:] != self.normal.shape:  # numpy would stretch a width of 1
            raise ValueError(
                f"expected embeddings [..., {len(self.normal)}], got shape {embeddings.shape}"
            )
        margins = (embeddings - self.midpoint) @ self.normal.astype(np.float64)
        return margins / self.scale if scaled else margins

    def _auc(self, embeddings: np.ndarray, toxic: np.ndarray) -> float:
        """AUC on labelled embeddings, those that are finite."""
        margins = self.margins(embeddings)
        good = np.isfinite(margins)
        return float(roc_auc_score(~toxic[good], margins[good]))

    def posterior(self, embeddings: np.ndarray, *, toxic_share: float = 0.5) -> np.ndarray:
        """P(toxic) of embeddings if the two classes were the Gaussians that were fitted.

        The log-odds of nontoxic are w . (h - b) plus those of the prior. They are as well
        calibrated as the Gaussians fit, which should be looked at before it is believed.

        Parameters
        ----------
        embeddings : numpy.ndarray, shape [..., hidden_size]
        toxic_share : float
            Prior P(toxic), in (0, 1).

        Returns
        -------
        numpy.ndarray of float64, shape [...]
            In [0, 1].
        """
        if not 0 < check_number("toxic_share", toxic_share) < 1:
            raise ValueError(f"toxic_share must lie between 0 and 1, got {toxic_share}")
        prior = np.log(toxic_share / (1 - toxic_share))
        return expit(prior - self.weight_norm * self.margins(embeddings))

    def score_texts(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str] | Dataset,
        *,
        scaled: bool = False,
        folder: str | Path | None = None,
        set_aside: bool = False,
        progress: bool = False,
    ) -> np.ndarray:
        """Margins of texts, or of the rows of a corpus.

        Parameters
        ----------
        model, tokenizer
            The model that the boundary was fitted on.
        texts : sequence of str or datasets.Dataset
        scaled : bool
            See `margins`.
        folder, set_aside
            As in `embeddings.extract`; the margin of a text that is set aside is NaN.
        progress : bool

        Returns
        -------
        numpy.ndarray of float64, shape [n]
        """
        self.check_model(model)
        embeddings = extract(
            model,
            tokenizer,
            texts,
            layers=[self.layer],
            pooling=self.pooling,
            folder=folder,
            set_aside=set_aside,
            progress=progress,
        )
        return self.margins(embeddings[:, 0], scaled=scaled)

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise ValueError unless `model` is the one whose embeddings the boundary separates.

        It is if its hidden states are: the same weights under another name are the same model,
        and other weights under the same name, or with another adapter, are not. The dtype may be
        another one.
        """
        fitted = f"this boundary was fitted on {self.model!r}"
        model = language_model(model)
        if self.states is not None:
            check_states(model, self.layer, self.states, self.dtype, fitted)
        elif model.name_or_path != self.model:
            raise ValueError(
                f"{fitted} and says nothing about {model.name_or_path!r}; fit one on that model"
            )
        size = text_config(model).hidden_size
        if size != len(self.normal):
            raise ValueError(
                f"{fitted}, whose hidden size is {len(self.normal)}; {model.name_or_path!r} has "
                f"{size}: fit one on that model"
            )

    def same_space(self, other: Boundary) -> bool:
        """Whether another boundary lies in the same layer of the same model."""
        if self.layer != other.layer or len(self.normal) != len(other.normal):
            return False
        if self.states is None or other.states is None:
            return self.model == other.model
        off = np.linalg.norm(self.states - other.states) / np.linalg.norm(self.states)
        return bool(off <= allowed_error(self.dtype, other.dtype))

    def fingerprint(self) -> str:
        """Return a SHA-256 over all that a margin depends on."""
        facts = f"{self.scale} {self.slope} {self.intercept} {self.layer} {self.pooling}"
        parts = (self.normal.tobytes(), self.midpoint.tobytes(), facts.encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _check_choices(pooling: str, covariance: str = COVARIANCES[0], *more: str) -> None:
    """Raise ValueError unless both are known; `more` are further names that either may have."""
    check_choice("pooling", pooling, (*POOLINGS, *more))
    check_choice("covariance", covariance, (*COVARIANCES, *more))


def _of_poolings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset,
    poolings: Sequence[str],
    layers: Sequence[int],
    folder: str | Path | None,
    reading: dict[str, bool],
) -> dict[str, np.ndarray]:
    """Embeddings [n, layers, hidden_size] by pooling; texts are read once for all."""
    with tempfile.TemporaryDirectory() as temporary:
        # `extract` keeps all poolings.
        keep = temporary if folder is None and len(poolings) > 1 else folder
        return {
            name: extract(
                model, tokenizer, corpus, pooling=name, layers=layers, folder=keep, **reading
            )
            for name in poolings
        }


def _hyperplane(
    embeddings: np.ndarray, toxic: np.ndarray, covariance: str | None, cut: str, estimator: str
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the log-odds of nontoxic, and a point where they are 0, both [hidden_size]."""
    nontoxic_mean, toxic_mean = embeddings[~toxic].mean(axis=0), embeddings[toxic].mean(axis=0)
    midpoint = (nontoxic_mean + toxic_mean) / 2
    if estimator == "logistic":
        weight, offset = logistic(embeddings, toxic)
        return weight, midpoint - weight * (weight @ midpoint + offset) / (weight @ weight)
    centred = embeddings - np.where(toxic[:, None], toxic_mean, nontoxic_mean)
    weight = _inverse(_covariance(centred, covariance), cut) @ (nontoxic_mean - toxic_mean)
    return weight, midpoint


def _covariance(centred: np.ndarray, estimator: str) -> np.ndarray:
    if estimator == "empirical":
        return empirical_covariance(centred, assume_centered=True)
    shrunk = ledoit_wolf if estimator == "ledoit_wolf" else oas
    return shrunk(centred, assume_centered=True)[0]


def _inverse(covariance: np.ndarray, cut: str) -> np.ndarray:
    """Inverse on the eigenvectors whose eigenvalue does not count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    kept = kept_eigenvalues(values, cut)
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T


__getattr__ = names_of("boundary")
