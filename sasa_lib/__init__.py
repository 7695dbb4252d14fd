"""Self-detoxifying language models: self-disciplined autoregressive sampling (SASA).

A text travels through six rooms, and each room imports only from those before it:

    texts, engine  ->  subspace  ->  decoding  ->  evaluation  ->  course

Beside `course`, `harness` hands all this to other people's evaluation harnesses.
What is here is imported when it is asked for, so that nobody pays for what they do not use.
"""

from importlib import import_module
from types import ModuleType

from sasa_lib import _moved

NAMES = {
    "AssetError": "texts.assets",
    "fetch": "texts.assets",
    "load_corpus": "texts.corpora",
    "load_prompts": "texts.prompts",
    "load_lm": "engine.models",
    "continuations": "engine.tokens",
    "Boundary": "subspace.boundary",
    "SASA": "decoding.sasa",
    "SASALogitsProcessor": "decoding.processor",
    "Accept": "decoding.accept",
    "BestOf": "decoding.best_of",
    "load_scorer": "evaluation.scorers",
    "mask_text": "evaluation.scorers",
}
MODULES = {
    "assets": "texts.assets",
    "corpora": "texts.corpora",
    "formats": "texts.formats",
    "prompts": "texts.prompts",
    "sources": "texts.sources",
    "cluster": "engine.cluster",
    "identity": "engine.identity",
    "models": "engine.models",
    "storage": "engine.storage",
    "tokens": "engine.tokens",
    "boundary": "subspace.boundary",
    "controls": "subspace.controls",
    "embeddings": "subspace.embeddings",
    "quality": "subspace.quality",
    "selection": "subspace.selection",
    "sharing": "subspace.sharing",
    "values": "subspace.values",
    "baselines": "decoding.baselines",
    "best_of": "decoding.best_of",
    "noise": "decoding.noise",
    "agreement": "evaluation.agreement",
    "budget": "evaluation.budget",
    "cost": "evaluation.cost",
    "interference": "evaluation.interference",
    "judging": "evaluation.judging",
    "likelihood": "evaluation.likelihood",
    "matched": "evaluation.matched",
    "measured": "evaluation.measured",
    "metrics": "evaluation.metrics",
    "runs": "evaluation.runs",
    "sampling": "evaluation.sampling",
    "scorers": "evaluation.scorers",
    "statistics": "evaluation.statistics",
    "exercises": "course.exercises",
    "explorer": "course.explorer",
    "plots": "course.plots",
    "recorded": "course.recorded",
    "text_map": "course.text_map",
    "workspace": "course.workspace",
    "trace": "course.trace",
}
ROOMS = ("texts", "engine", "subspace", "decoding", "evaluation", "course")

__all__ = sorted({*NAMES, *MODULES, *ROOMS})


def __getattr__(name: str) -> object:
    if name in NAMES:
        return getattr(_module(NAMES[name]), name)
    if name in MODULES:
        return _module(MODULES[name])
    if name in ROOMS or name in _moved.MODULES:
        return _module(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _module(place: str) -> ModuleType:
    try:
        return import_module(f"sasa_lib.{place}")
    except ModuleNotFoundError as error:
        if not place.startswith("course"):
            raise
        raise ImportError(
            f"sasa_lib.{place} needs {error.name}, which is not installed: "
            "python -m pip install 'sasa-lib[notebooks]'"
        ) from error


def __dir__() -> list[str]:
    return __all__
