"""How far decoding goes from the original distribution, and how to keep it near."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

BUDGET_HALVINGS = 40  # of the interval of betas


def divergence(trace: pd.DataFrame) -> pd.Series:
    """KL divergence from the reference of every step of a trace.

    Parameters
    ----------
    trace : pandas.DataFrame
        `SASA.trace`.

    Returns
    -------
    pandas.Series of float, nats, indexed by sequence and step
        KL(q || p) of the re-weighted distribution q to the reference p over the candidates.
    """
    log_ratio = trace["new_logprob"] - trace["reference_logprob"]
    terms = np.exp(trace["new_logprob"]) * log_ratio
    return terms.groupby([trace["sequence"], trace["step"]]).sum()


def within_budget(reference: torch.Tensor, weighted: torch.Tensor, limit: float) -> torch.Tensor:
    """Logits between reference and weighted, each [rows, candidates], at most `limit` nats away.

    With s in [0, 1] the share of what is added, KL(q_s || p) grows with s: its derivative is
    s Var_q[added]. So halving the interval finds the largest share that is allowed.
    """
    device = reference.device
    reference, weighted = reference.cpu(), weighted.cpu()  # Apple's GPUs have no float64
    possible = reference > float("-inf")
    added = torch.where(possible, weighted - reference, 0).double()
    p = reference.double().log_softmax(-1)

    def too_far(share: torch.Tensor) -> torch.Tensor:
        q = (p + share * added).log_softmax(-1)
        return torch.where(possible, q.exp() * (q - p), 0).sum(-1, keepdim=True) > limit

    low, high = torch.zeros_like(p[:, :1]), torch.ones_like(p[:, :1])
    whole = ~too_far(high)
    for _ in range(BUDGET_HALVINGS):
        middle = (low + high) / 2
        far = too_far(middle)
        low, high = torch.where(far, low, middle), torch.where(far, middle, high)
    return (reference + (torch.where(whole, 1.0, low) * added).to(reference.dtype)).to(device)


def path_divergence(trace: pd.DataFrame) -> pd.DataFrame:
    """KL divergence from the reference along every sampled sequence.

    Parameters
    ----------
    trace : pandas.DataFrame
        `SASA.trace`.

    Returns
    -------
    pandas.DataFrame of float, nats, indexed by sequence
        `total`, the sum over the steps, whose mean over sequences estimates KL(q || p) of whole
        continuations (the chain rule, each step's term exact); and `per_token`, their mean.
    """
    steps = divergence(trace).groupby(level="sequence")
    return pd.DataFrame({"total": steps.sum(), "per_token": steps.mean()})
