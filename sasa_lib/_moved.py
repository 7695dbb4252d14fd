"""Names of release 0.1 that are elsewhere now: they work for one release more, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

# Where the modules that lay flat in sasa_lib are.
MODULES = {
    "agreement": "evaluation.agreement",
    "assets": "texts.assets",
    "baselines": "decoding.baselines",
    "best_of": "decoding.best_of",
    "boundary": "subspace.boundary",
    "budget": "evaluation.budget",
    "cluster": "engine.cluster",
    "corpora": "texts.corpora",
    "embeddings": "subspace.embeddings",
    "exercises": "course.exercises",
    "explorer": "course.explorer",
    "formats": "texts.formats",
    "identity": "engine.identity",
    "metrics": "evaluation.metrics",
    "models": "engine.models",
    "noise": "decoding.noise",
    "phrases": "decoding.prefix_cache",
    "places": "engine.storage",
    "plots": "course.plots",
    "repeated": "decoding.repeated",
    "runs": "evaluation.runs",
    "sampling": "evaluation.sampling",
    "scorers": "evaluation.scorers",
    "selection": "subspace.selection",
    "sharing": "subspace.sharing",
    "text_map": "course.text_map",
    "tokens": "engine.tokens",
    "values": "subspace.values",
}
# Of these modules, the names that went to another one than the rest.
NAMES = {
    "boundary": {
        "learning_curve": "subspace.quality",
        "prefix_auc": "subspace.quality",
    },
    "corpora": {
        "ASSISTANT": "texts.sources",
        "ATTRIBUTES": "texts.sources",
        "CHECKS": "texts.sources",
        "CIVIL_COMMENTS_ATTRIBUTES": "texts.sources",
        "CORPORA": "texts.sources",
        "DOMAINS": "texts.prompts",
        "EMBEDDED": "texts.sources",
        "HUMAN": "texts.sources",
        "PACKAGED": "texts.sources",
        "PAIRED_DOMAINS": "texts.prompts",
        "PAIRED_GROUPS": "texts.prompts",
        "PROMPTS": "texts.prompts",
        "SUBSETS": "texts.prompts",
        "chat": "texts.prompts",
        "load_prompts": "texts.prompts",
        "sample_groups": "texts.prompts",
    },
    "embeddings": {
        "OTHER_DTYPE": "subspace.probes",
        "PROBE_TOKENS": "subspace.probes",
        "SAME_READING": "subspace.probes",
        "SAME_WEIGHTS": "subspace.probes",
        "allowed_error": "subspace.probes",
        "check_reading": "subspace.probes",
        "check_states": "subspace.probes",
        "probe_states": "subspace.probes",
    },
    "explorer": {
        "CHARACTER": "course.trace",
        "COLOURS": "course.trace",
        "Exploration": "course.trace",
        "FONT_SIZE": "course.trace",
        "GREY": "course.trace",
        "LARGEST_BETA": "course.trace",
        "LARGEST_K": "course.trace",
        "LEGEND": "course.trace",
        "LIMIT": "course.trace",
        "LINE": "course.trace",
        "LINE_WIDTH": "course.trace",
        "LONGEST_WORD": "course.trace",
        "NUMBER_WIDTH": "course.trace",
        "PARTIAL": "course.trace",
        "explore": "course.trace",
    },
    "metrics": {
        "JUDGED_AT_ONCE": "evaluation.judging",
        "PEAK_RESET": "evaluation.cost",
        "PROCESS_STATUS": "evaluation.cost",
        "at_matched_perplexity": "evaluation.matched",
        "bootstrap_interval": "evaluation.statistics",
        "cost": "evaluation.cost",
        "gap_change": "evaluation.statistics",
        "group_toxic_rates": "evaluation.statistics",
        "judged": "evaluation.judging",
        "negative_log_likelihoods": "evaluation.likelihood",
        "on_common_prompts": "evaluation.judging",
        "paired_difference": "evaluation.statistics",
        "path_divergence": "decoding.kl",
        "peak_memory": "evaluation.cost",
        "summarise": "evaluation.statistics",
        "toxic_rate_gap": "evaluation.statistics",
        "with_interval": "evaluation.statistics",
    },
    "values": {
        "interference": "evaluation.interference",
        "measured": "evaluation.interference",
    },
}


def names_of(module: str) -> Callable[[str], object]:
    """Return a module's `__getattr__` for the names that left it."""

    def get(name: str) -> object:
        if name not in NAMES[module]:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home = NAMES[module][name]
        _warn(f"{module}.{name}", f"{home.rpartition('.')[2]}.{name}", 3)
        return getattr(import_module(f"sasa_lib.{home}"), name)

    return get


class _Moved(MetaPathFinder, Loader):
    """Imports `sasa_lib.runs` and the like as what they have become."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, module = name.rpartition(".")
        known = package == "sasa_lib" and module in MODULES
        return spec_from_loader(name, self) if known else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.rpartition(".")[2]
        _warn(module.__name__, f"sasa_lib.{MODULES[name]}", 6)
        real = import_module(f"sasa_lib.{MODULES[name]}")
        module.__getattr__ = lambda attribute: getattr(real, attribute)  # type: ignore[method-assign]


def _warn(old: str, new: str, stacklevel: int) -> None:
    warnings.warn(
        f"{old} is {new} now; the old name goes with the next release",
        FutureWarning,
        stacklevel=stacklevel,
    )


sys.meta_path.insert(0, _Moved())
