"""The methods that SASA is compared with, a file each."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "rad": ["RAD"],
        "reward_model": ["RewardModel", "fine_tune_reward", "train_reward"],
        "reweighting": ["Reweighting"],
        "self_debiasing": ["DEBIASED_ATTRIBUTES", "DEBIASING_PROMPT", "SelfDebiasing"],
        "word_filter": ["WordFilter", "word_list"],
    },
)
