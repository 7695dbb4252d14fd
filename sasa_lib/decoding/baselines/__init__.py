"""The methods that SASA is compared with, a file each."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dexperts": ["DExperts", "train_expert"],
        "mean_difference": ["MeanDifference"],
        "prompt_only": ["PromptOnly"],
        "rad": ["RAD"],
        "reward_model": ["RewardModel", "fine_tune_reward", "train_reward"],
        "reweighting": ["Reweighting"],
        "self_debiasing": ["DEBIASED_ATTRIBUTES", "DEBIASING_PROMPT", "SelfDebiasing"],
        "static_bias": ["StaticBias"],
        "word_filter": ["WordFilter", "word_list"],
    },
)
