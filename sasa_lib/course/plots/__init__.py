"""Every figure, one function each, one style.

Each function takes arrays or a table, draws on new axes and returns the `Figure`; `save` writes it.
Colours are from the Okabe-Ito palette, which colour-blind readers can tell apart; wherever two
classes meet, line style or marker differs as well.
"""

import lazy_loader
import matplotlib  # noqa: F401  # where it is missing, asking for `sl.plots` says so

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "boundaries": [
            "calibration",
            "geometry",
            "heat_maps",
            "layers",
            "learning_curve",
            "margin_against_value",
            "prefixes",
            "roc",
            "subspaces",
        ],
        "decoding": ["decoding_step", "explained", "listed_words"],
        "results": [
            "budgets",
            "cost",
            "fronts",
            "groups",
            "method_cost",
            "strengths",
            "toxicity_and_refusals",
            "trade_off",
            "traded",
        ],
        "style": [
            "LINES",
            "MARKERS",
            "METHOD_NAMES",
            "NONTOXIC",
            "SERIES",
            "TOXIC",
            "plt",
            "save",
            "set_style",
        ],
    },
)
