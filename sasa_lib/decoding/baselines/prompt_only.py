"""Asking for it: a sentence before the prompt, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from sasa_lib.checks import check_texts
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
        self.tokens = prompt_ids(tokenizer, [self.sentence])[0]
        self.beginning = tokenizer("")["input_ids"]  # special tokens that a text begins with
        self.then = PlainSampling(seed)

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

        def shown(ids: torch.Tensor) -> torch.Tensor:
            """What processors and criteria count: the prompt as it was given, and what follows."""
            return torch.cat([input_ids, ids[:, asked.shape[1] :]], dim=1)

        processors = LogitsProcessorList([_Processors(logits_processor, shown)])
        criteria = StoppingCriteriaList(  # `generate` looks for the one that knows end tokens
            one if hasattr(one, "eos_token_id") else _Criteria(one, shown)
            for one in stopping_criteria
        )
        kept = {name: value for name, value in kwargs.items() if name != "position_ids"}
        found = self.then(model, asked, processors, criteria, config, attention_mask=mask, **kept)
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


class _Processors(LogitsProcessor):
    def __init__(
        self, processors: LogitsProcessorList, shown: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.processors, self.shown = processors, shown

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        return self.processors(self.shown(input_ids), scores)


class _Criteria(StoppingCriteria):
    def __init__(
        self, own: StoppingCriteria, shown: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.own, self.shown = own, shown

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self.own(self.shown(input_ids), scores, **kwargs)
