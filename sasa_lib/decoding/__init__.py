"""How the boundary steers: SASA, what it is made of, and the baselines that it is compared with.

Here lives every `custom_generate`; `method` says what they have in common, `sasa` is the formula.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "accept": ["Accept"],
        "best_of": ["BestOf"],
        "kl": ["divergence", "path_divergence"],
        "method": ["Decoder", "PlainSampling"],
        "noise": ["Noise"],
        "processor": ["SASALogitsProcessor"],
        "sasa": ["FORMS", "SASA"],
    },
)
