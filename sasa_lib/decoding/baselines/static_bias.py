"""A bias of the vocabulary: what a method has to beat to have looked at the context."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from transformers import LogitsProcessor, PreTrainedModel

from sasa_lib.checks import check_choice, check_number, check_seed
from sasa_lib.decoding.baselines.reweighting import Reweighting
from sasa_lib.engine.models import text_config
from sasa_lib.subspace.boundary import Boundary
from sasa_lib.subspace.hidden_states import hidden_states

READ_AT_ONCE = 2048  # tokens in one forward pass


# For every model, by boundary: margins of all tokens alone, float32 [vocabulary].
_ALONE: WeakKeyDictionary[PreTrainedModel, dict[str, torch.Tensor]] = WeakKeyDictionary()


class StaticBias(Reweighting):
    """New logit(x) = logit(x) + beta * g(margin of x alone): the same at every step.

    Over the candidates that survive top-k, top-p and every other processor. One vector over the
    vocabulary, made once a model, and no forward pass more while decoding. A
    steering method that gains no more than this has learnt a list of words.

    Parameters
    ----------
    boundary : Boundary
        Its margins are in units of the training data's standard deviation.
    beta : float
        Strength, at least 0.
    form : {"margin", "posterior"}
        g, as in `SASA`.
    seed : int, optional
        As in `SASA`.
    """

    first = False

    def __init__(
        self, boundary: Boundary, beta: float, *, form: str = "margin", seed: int | None = None
    ) -> None:
        check_choice("form", form, ("margin", "posterior"))
        self.boundary = boundary
        self.beta = check_number("beta", beta, least=0)
        self.form = form
        self.seed = check_seed(seed)

    def bias(self, model: PreTrainedModel) -> torch.Tensor:
        """Beta times g of every token alone, float32 [vocabulary]."""
        self.boundary.check_model(model)
        known, boundary = _ALONE.setdefault(model, {}), self.boundary.fingerprint()
        if boundary not in known:
            known[boundary] = _margins_alone(model, self.boundary)
        g = known[boundary]
        if self.form == "posterior":
            slope, intercept = self.boundary.slope, self.boundary.intercept
            g = torch.nn.functional.logsigmoid(slope * g + intercept)
        return self.beta * g

    def processor(
        self, model: PreTrainedModel, mask: torch.Tensor, max_length: int
    ) -> LogitsProcessor:
        """Make the processor of one call."""
        return _Biased(self.bias(model))


class _Biased(LogitsProcessor):
    def __init__(self, bias: torch.Tensor) -> None:
        self.bias = bias

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        return scores + self.bias.to(scores.device)[: scores.shape[-1]]


def _margins_alone(model: PreTrainedModel, boundary: Boundary) -> torch.Tensor:
    """Scaled margins of all tokens, each behind the one that begins a text."""
    config = text_config(model)
    begin = config.bos_token_id if config.bos_token_id is not None else config.eos_token_id
    begin = begin[0] if isinstance(begin, list) else begin
    size = model.get_output_embeddings().weight.shape[0]
    found = []
    for start in range(0, size, READ_AT_ONCE):
        # The first position of a sequence is like no other: no token is judged there.
        pairs = [[begin or 0, token] for token in range(start, min(start + READ_AT_ONCE, size))]
        states = hidden_states(model, pairs, [boundary.layer])[:, 0, 1]  # [tokens, hidden_size]
        margins = boundary.margins(states.float().cpu().numpy(), scaled=True)
        found.append(torch.from_numpy(margins).float())
    return torch.cat(found)
