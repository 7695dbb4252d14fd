"""Self-detoxifying language models: self-disciplined autoregressive sampling (SASA)."""

from importlib import import_module
from types import ModuleType

from sasa_lib import (
    agreement,
    baselines,
    boundary,
    budget,
    corpora,
    decoding,
    embeddings,
    metrics,
    places,
    runs,
    values,
)
from sasa_lib.assets import AssetError, fetch
from sasa_lib.best_of import BestOf
from sasa_lib.boundary import Boundary
from sasa_lib.corpora import load_corpus, load_prompts
from sasa_lib.decoding import SASA, SASALogitsProcessor
from sasa_lib.models import load_lm
from sasa_lib.scorers import load_scorer, mask_text
from sasa_lib.tokens import continuations

__all__ = [
    "SASA",
    "AssetError",
    "BestOf",
    "Boundary",
    "SASALogitsProcessor",
    "agreement",
    "baselines",
    "boundary",
    "budget",
    "continuations",
    "corpora",
    "decoding",
    "embeddings",
    "fetch",
    "load_corpus",
    "load_lm",
    "load_prompts",
    "load_scorer",
    "mask_text",
    "metrics",
    "places",
    "plots",
    "runs",
    "values",
]


def __getattr__(name: str) -> ModuleType:
    """Import `plots` when it is asked for: Ray's actors can do without matplotlib."""
    if name == "plots":
        return import_module("sasa_lib.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
