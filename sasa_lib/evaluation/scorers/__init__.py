"""Toxicity scorers, a file a kind; `loading` finds them by name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "classifiers": [
            "DETOXIFY_MODEL",
            "HF_MAX_TOKENS",
            "HF_PREFIX",
            "HF_TOXIC_LABELS",
            "hf_scorer",
        ],
        "loading": ["SCORERS", "load_scorer", "mask_text"],
        "minilm": [
            "GROUP_NAMES",
            "MINILM_HEAD",
            "MINILM_MAX_TOKENS",
            "load_minilm",
            "minilm_logit",
            "minilm_scorer",
            "minilm_states",
            "sentence_embeddings",
        ],
        "perspective": ["PERSPECTIVE_KEY", "PERSPECTIVE_URL", "perspective_scorer"],
        "scorer": ["Scorer", "ScorerError"],
    },
)
