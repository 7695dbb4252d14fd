"""A baseline that re-weights logits, and the re-weighting itself as a logits processor."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from sasa_lib.decoding.method import Decoder, further_inputs, mask_of
from sasa_lib.decoding.noise import keyed_draw


class Reweighting(Decoder):
    """Plain sampling with one logits processor more, made anew for every call."""

    first = True  # before the user's processors and top-k, or behind them all
    sees = True  # whether what `generate` passes beside tokens, such as images, does not matter

    def processor(
        self, model: PreTrainedModel, mask: torch.Tensor, max_length: int
    ) -> LogitsProcessor:
        """Make the processor of one call, for prompts with this attention mask."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: object,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> object:
        """Sample; `model.generate` calls this with what it has prepared."""
        mask = mask_of(input_ids, kwargs)
        inputs = set(further_inputs(kwargs, input_ids, mask)) - {"streamer", "synced_gpus"}
        inputs -= {"tokenizer"}
        unseen = inputs & {"assistant_model"} if self.sees else inputs
        self.check_call(model, generation_config, unseen)
        own = self.processor(model, mask, generation_config.max_length)
        given = list(logits_processor)
        processors = LogitsProcessorList([own, *given] if self.first else [*given, own])
        then = self.then
        if then is None:
            kwargs.pop("tokenizer", None)
            if self.seed is not None:
                processors = keyed_draw(processors, self.seed, input_ids, mask, generation_config)
            return model._sample(
                input_ids, processors, stopping_criteria, generation_config, **kwargs
            )
        return then(model, input_ids, processors, stopping_criteria, generation_config, **kwargs)
