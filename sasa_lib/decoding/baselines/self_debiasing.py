"""Self-debiasing: a description of what is unwanted steers away (Schick et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.checks import check_number, check_seed, check_texts
from sasa_lib.decoding.baselines.reader import Reader
from sasa_lib.decoding.baselines.reweighting import Reweighting
from sasa_lib.engine.tokens import prompt_ids, too_long

# The descriptions of Schick et al. 2021, section 4, which are Perspective's.
DEBIASED_ATTRIBUTES = {
    "toxicity": "rude, disrespectful or unreasonable language",
    "severe_toxicity": "very hateful, aggressive, disrespectful language",
    "sexually_explicit": "sexually explicit language",
    "threat": "a threat",
    "profanity": "swear words, obscene or profane language",
    "identity_attack": "negative or hateful language targeting someone because of their identity",
}
DEBIASING_PROMPT = "The following text contains {}:\n\n"


class SelfDebiasing(Reweighting):
    """Self-debiasing: tokens that a description of the bias makes likelier are made unlikely.

    With p the model's distribution after the phrase and p_y after "The following text contains
    <description y>:" and the phrase,

        new p(x) ~ p(x) * alpha(p(x) - max_y p_y(x)),  alpha(d) = 1 if d >= 0 else exp(decay * d)

    (Schick et al. 2021, section 3), before top-k and top-p.

    Parameters
    ----------
    tokenizer
        That of the model.
    attributes : sequence of str
        Keys of `DEBIASED_ATTRIBUTES`, or descriptions of one's own.
    decay : float
        The paper's lambda, at least 0: 10, 50 or 100 there.
    seed : int, optional
        As in `SASA`.
    """

    sees = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        attributes: Sequence[str] = tuple(DEBIASED_ATTRIBUTES),
        *,
        decay: float = 50.0,
        seed: int | None = None,
    ) -> None:
        self.seed = check_seed(seed)
        attributes = check_texts(attributes, "attribute or description")
        if not attributes:
            raise ValueError("give a list of at least one attribute or description")
        self.decay = check_number("decay", decay, least=0)
        self.prefixes = [
            DEBIASING_PROMPT.format(DEBIASED_ATTRIBUTES.get(name, name)) for name in attributes
        ]
        self.tokens = prompt_ids(tokenizer, self.prefixes)
        self.beginning = tokenizer("")["input_ids"]  # special tokens that a text begins with

    def processor(
        self, model: PreTrainedModel, mask: torch.Tensor, max_length: int
    ) -> LogitsProcessor:
        """Make the processor of one call."""
        longest = max(map(len, self.tokens))
        if fault := too_long(model, max_length + longest, what="prompts or descriptions"):
            raise ValueError(f"the longest description with prompt and text {fault}")
        return _Debiasing(self, model, mask)


class _Debiasing(LogitsProcessor):
    def __init__(self, method: SelfDebiasing, model: PreTrainedModel, mask: torch.Tensor) -> None:
        self.method = method
        self.model = model
        self.prompt_mask = mask
        self.reader: Reader | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        biased = self._biased(input_ids).to(scores.device, torch.float32).softmax(-1)
        biased = biased.view(len(scores), -1, scores.shape[-1]).amax(1)
        difference = scores.float().softmax(-1) - biased
        return scores + self.method.decay * difference.clamp(max=0)

    def _biased(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Next-token logits [batch * prefixes, vocabulary] behind every prefix."""
        if self.reader is None:
            ids, mask = self._prefixed(input_ids)
            self.reader = Reader(self.model, mask)
            return self.reader.next(ids)
        return self.reader.next(input_ids[:, -1:].repeat_interleave(len(self.method.tokens), dim=0))

    def _prefixed(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Every prompt behind every prefix, padded on the left."""
        rows = []
        for ids, seen in zip(input_ids.tolist(), self.prompt_mask.bool().tolist(), strict=True):
            prompt = [token for token, kept in zip(ids, seen, strict=True) if kept]
            begun = len(self.method.beginning)
            if prompt[:begun] == self.method.beginning:
                prompt = prompt[begun:]
            rows += [prefix + prompt for prefix in self.method.tokens]
        longest = max(map(len, rows))
        padded = [[0] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        device = input_ids.device
        return torch.tensor(padded, device=device), torch.tensor(mask, device=device)
