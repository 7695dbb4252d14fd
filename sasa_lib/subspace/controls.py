"""Boundaries that know nothing: what steering gains by them is not due to what was learnt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sasa_lib.checks import check_count, check_labels
from sasa_lib.subspace.boundary import Boundary


def random_direction(boundary: Boundary, embeddings: np.ndarray, *, seed: int = 0) -> Boundary:
    """Return a boundary with a random normal in place of the fitted one.

    Parameters
    ----------
    boundary : Boundary
    embeddings : numpy.ndarray, shape [n, hidden_size]
        What it was fitted on: of these the margins' standard deviation is taken anew, so that
        beta means as much as before.
    seed : int
        The normal is uniform on the sphere.
    """
    normal = np.random.default_rng(check_count("seed", seed, 0)).normal(size=len(boundary.normal))
    normal /= np.linalg.norm(normal)
    margins = (np.asarray(embeddings, dtype=np.float64) - boundary.midpoint) @ normal
    return replace(
        boundary,
        normal=normal.astype(np.float32),
        scale=float(margins.std()),
        metadata={"control": "random direction", "seed": seed},
    )


def shuffled_labels(
    embeddings: np.ndarray, toxic: np.ndarray, *, seed: int = 0, **options: Any
) -> Boundary:
    """Fit a boundary on labels that were dealt out at random.

    Parameters
    ----------
    embeddings : numpy.ndarray, shape [n, hidden_size]
    toxic : numpy.ndarray of bool, shape [n]
        As many are toxic as before.
    seed : int
    **options
        Of `Boundary.from_embeddings`.
    """
    toxic = np.random.default_rng(check_count("seed", seed, 0)).permutation(
        check_labels("toxic", toxic)
    )
    metadata = {"control": "shuffled labels", "seed": seed} | options.pop("metadata", {})
    return Boundary.from_embeddings(embeddings, toxic, metadata=metadata, **options)
