"""Exercises that check themselves: what the last cells of the notebooks call.

Every `check_<topic>(answer, ...)` takes an answer, which is a number, several of them in whatever
holds numbers, or a function, and returns a `Verdict`. A function is tried on random inputs and on
edge cases against a computation of its own, so it may be written in any way. What depends on a run
is passed by the notebook. Nothing is raised: an answer that is off, or a function that raises, is
told what is off, and one that is still `...` that it is not answered yet. The number that a check's
docstring begins with is its notebook's.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "answers": ["Verdict"],
        "method": [
            "check_anisotropy",
            "check_controls",
            "check_directions",
            "check_origins",
            "check_scaled_states",
            "check_fit",
            "check_posterior_line",
            "check_auc",
            "check_beta_zero",
            "check_kl",
            "check_reweighting",
            "check_expected_max",
            "check_perplexity",
        ],
        "judging": [
            "check_naive_loop",
            "check_paired_interval",
            "check_agreement",
            "check_pairs_needed",
        ],
        "beyond": [
            "check_rad",
            "check_twin_difference",
            "check_bootstrap",
            "check_bad_words",
            "check_grows_with_k",
            "check_nucleus",
            "check_running_margins",
            "check_calibrated_beta",
            "check_pinsker",
            "check_budget_beta",
            "check_direction_of_sum",
            "check_surplus",
            "check_distinct",
            "check_best_of_law",
            "check_accepted_law",
            "check_acceptance_nats",
            "check_accept_loop",
        ],
    },
)
