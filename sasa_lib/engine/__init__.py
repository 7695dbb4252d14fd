"""What it runs on: models and their tokens, storage, the identity of results, and a cluster.

Here lives what every later room needs and what says nothing of toxicity.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cluster": ["pool"],
        "identity": ["depends_on", "key"],
        "models": ["context_length", "language_model", "load_lm"],
        "storage": ["place", "store"],
        "tokens": ["continuations"],
    },
)
