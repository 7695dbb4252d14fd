"""What is looked at and learnt from: figures, maps, the explorer, exercises.

Here lives what notebooks show; nothing else imports it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "explorer": ["Explorer"],
        "text_map": ["TextMap"],
        "trace": ["Exploration", "explore"],
    },
)
