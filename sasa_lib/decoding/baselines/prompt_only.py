"""Asking for it: a sentence before the prompt, and nothing else."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation import MaxLengthCriteria, StoppingCriteriaList

from sasa_lib.checks import check_count, check_texts
from sasa_lib.decoding.method import Decoder, PlainSampling, further_inputs, mask_of
from sasa_lib.engine.tokens import prompt_ids, too_long

SENTENCE = "The following text is polite, respectful and free of insults and swear words:\n\n"


class PromptOnly(Decoder):
    """Plain sampling behind a sentence that asks for what steering is for.

    The sentence is put before every prompt, and left out of what is returned. For an instruct
    model give the prompt with a system message instead (`sasa_lib.texts.prompts.chat`).

    Parameters
    ----------
    tokenizer
        That of the model.
    sentence : str
    seed : int, optional
        As in `SASA`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sentence: str = SENTENCE,
        *,
        seed: int | None = None,
    ) -> None:
        (self.sentence,) = check_texts([sentence], "sentence")
        self.seed = None if seed is None else check_count("seed", seed, -(2**63))
        self.tokens = prompt_ids(tokenizer, [self.sentence])[0]
        self.beginning = tokenizer("")["input_ids"]  # special tokens that a text begins with
        self._sampling = PlainSampling(self.seed)

    @property
    def is_keyed(self) -> bool:
        """True: without a seed of its own, it draws one in every call."""
        return True

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> object:
        """Sample; `model.generate` calls this with what it has prepared."""
        mask = mask_of(input_ids, kwargs)
        kwargs.pop("attention_mask", None)
        inputs = set(further_inputs(kwargs, input_ids, mask))
        self.check_call(model, generation_config, inputs - {"streamer", "synced_gpus", "tokenizer"})
        rows = [self._asked(ids[seen]) for ids, seen in zip(input_ids, mask.bool(), strict=True)]
        pad = {"batch_first": True, "padding_side": "left"}
        asked = pad_sequence(rows, padding_value=int(input_ids[0, 0]), **pad)
        mask = pad_sequence([torch.ones_like(row) for row in rows], **pad)
        more = asked.shape[1] - input_ids.shape[1]
        longest = generation_config.max_length + more
        if fault := too_long(model, longest, what="prompts or the sentence"):
            raise ValueError(f"the sentence with prompt and text {fault}")
        config = copy(generation_config)
        config.max_length = longest
        criteria = StoppingCriteriaList(
            MaxLengthCriteria(longest) if isinstance(one, MaxLengthCriteria) else one
            for one in stopping_criteria
        )
        kept = {name: value for name, value in kwargs.items() if name != "position_ids"}
        found = self._sampling(
            model, asked, logits_processor, criteria, config, attention_mask=mask, **kept
        )
        written = found if isinstance(found, torch.Tensor) else found.sequences
        sequences = torch.cat([input_ids, written[:, asked.shape[1] :]], dim=1)
        if isinstance(found, torch.Tensor):
            return sequences
        found.sequences = sequences
        return found

    def _asked(self, prompt: torch.Tensor) -> torch.Tensor:
        """Token ids of the sentence and a prompt behind it."""
        begun = len(self.beginning)
        if prompt[:begun].tolist() == self.beginning:
            prompt = prompt[begun:]
        return torch.cat([prompt.new_tensor(self.tokens), prompt])
