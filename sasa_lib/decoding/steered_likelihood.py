"""How likely given texts are under SASA: what steering costs where nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.checks import check_count
from sasa_lib.decoding.noise import Noise
from sasa_lib.decoding.sasa import SASA
from sasa_lib.engine.models import text_config
from sasa_lib.engine.tokens import left_padded

SURE = 1e9  # nats by which a told token is ahead


def steered_likelihood(
    sasa: SASA,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    *,
    candidates: int = 20,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of texts behind contexts under SASA without top-k and top-p.

    A token x has p(x) w(x) / Z, with w its weight and Z the mean weight under p. Z is estimated
    from the likeliest tokens of the step and the text's own, as if the others were weighted as
    these are on average; it is exact once `candidates` is the vocabulary.

    Parameters
    ----------
    sasa : SASA
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    contexts, texts : sequences of sequences of int, length n
        Token ids; none is empty.
    candidates : int
        Likeliest tokens of a step that are judged, beside the text's own.

    Returns
    -------
    log_probabilities : torch.Tensor, shape [n]
        In nats.
    are_likeliest : torch.Tensor of bool, shape [n]
        Whether the text's tokens are the likeliest ones throughout.
    """
    candidates = check_count("candidates", candidates)
    if not all(map(len, contexts)) or not all(map(len, texts)):
        raise ValueError("contexts and texts must have at least one token each")
    ids, mask = left_padded(tokenizer, contexts)
    told = pad_sequence([torch.tensor(text) for text in texts], batch_first=True)  # [n, length]
    lengths = torch.tensor([len(text) for text in texts])
    told_sasa = _Told(sasa, told.to(model.device), candidates + 1)
    judged = _Candidates(told.to(model.device), candidates, ids.shape[1])
    model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        custom_generate=told_sasa,
        logits_processor=[judged],
        generation_config=GenerationConfig(
            do_sample=True, top_k=0, top_p=1.0, max_new_tokens=told.shape[1],
            eos_token_id=text_config(model).vocab_size,  # no token, so nothing ends early
            pad_token_id=tokenizer.pad_token_id,
        ),
    )  # fmt: skip
    total, likeliest = torch.zeros(len(told)), torch.ones(len(told), dtype=torch.bool)
    for step, (entry, log_sum, other) in enumerate(
        zip(told_sasa._steps, judged.log_sums, judged.others, strict=True)
    ):
        plain = entry["reference"] - log_sum[:, None]  # [n, candidates]
        law = entry["weighted"].log_softmax(-1) + plain.logsumexp(-1, keepdim=True)
        token = told[:, step : step + 1]
        is_told = (entry["candidates"] == token) & law.isfinite()
        is_there = step < lengths
        of_text = law.masked_fill(~is_told, float("-inf")).amax(-1)
        total += torch.where(is_there, of_text, 0.0)
        first = entry["candidates"].gather(1, law.argmax(-1, keepdim=True))
        is_first = (first == token)[:, 0] & (law.amax(-1) >= other - log_sum)
        likeliest &= ~is_there | is_first
    return total, likeliest


class _Told(SASA):
    """SASA that is told what to draw."""

    def __init__(self, sasa: SASA, told: torch.Tensor, most: int) -> None:
        vars(self).update(vars(sasa))
        self.max_candidates, self._asked = most, True
        self._told = told
        self._record, self._steps = True, []

    def _noise(self, input_ids: torch.Tensor, mask: torch.Tensor) -> _Decided:
        return _Decided(self._told)


class _Decided(Noise):
    """In place of noise: one token of each step is ahead."""

    def __init__(self, told: torch.Tensor) -> None:
        self.told = told
        self.step = -1

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        return (tokens == self.told[:, self.step : self.step + 1]).float() * SURE


class _Candidates(LogitsProcessor):
    """Leaves the likeliest tokens and the told one, and keeps what there was before."""

    def __init__(self, told: torch.Tensor, number: int, start: int) -> None:
        self.told, self.number, self.start = told, number, start
        self.log_sums: list[torch.Tensor] = []  # log of the sum of exp logits, [n] a step
        self.others: list[torch.Tensor] = []  # largest logit of what is left out, [n] a step

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.start
        kept = scores.topk(min(self.number, scores.shape[-1]), dim=-1).indices
        kept = torch.cat([kept, self.told[:, step : step + 1]], dim=1)
        left_out = scores.scatter(1, kept, float("-inf"))
        self.log_sums.append(scores.float().logsumexp(-1).cpu())
        self.others.append(left_out.float().amax(-1).cpu())
        return torch.full_like(scores, float("-inf")).scatter(1, kept, scores.gather(1, kept))
