"""Where toxicity lies: sentence embeddings, and the linear boundary in them.

Here lives what is fitted on annotated texts (`boundary`), how its layer and the eigenvalues that
count are chosen (`selection`), how it is kept and shared.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "boundary": ["Boundary"],
        "embeddings": ["anisotropy", "extract"],
        "quality": ["learning_curve", "prefix_auc"],
        "values": ["correlations", "cosines", "fit_values"],
    },
)
