"""What it is worth: runs of generations, their scores, metrics, and comparisons over prompts.

Here lives what needs finished texts, and what samples them so that they can be compared.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "judging": ["judged", "load_judge", "on_common_prompts"],
        "runs": ["generate", "read"],
        "sampling": ["Sampling"],
    },
)
