"""What is read: corpora, prompts, files of the user's, and assets that are fetched once.

Here lives what turns texts from anywhere into tables in one schema, and knows nothing of models;
published datasets as they come are in `sources`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "assets": ["AssetError", "DATA_DIR", "File", "cache_dir", "fetch"],
        "corpora": ["fingerprint", "labelled", "load_corpus", "split"],
        "formats": ["read_table"],
        "prompts": ["chat", "load_prompts", "sample_groups"],
    },
)
