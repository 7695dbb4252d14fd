"""A baseline that re-weights logits, and the re-weighting itself as a logits processor."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from sasa_lib.decoding.method import Decoder, further_inputs, mask_of
from sasa_lib.decoding.noise import keyed_draw


class Reweighting(Decoder):
    """Plain sampling with one logits processor more, made anew for every call."""

    first = True  # before the user's processors and top-k, or behind them all
    sees = True  # whether what `generate` passes beside tokens, such as images, does not matter

    _steps: list[torch.Tensor] | None = None  # where the divergence of every step is to be kept

    def divergence_per_token(
        self, model: PreTrainedModel, input_ids: torch.Tensor, **options: Any
    ) -> np.ndarray | None:
        """See `Decoder.divergence_per_token`; None where filters come behind the re-weighting."""
        if self.first or self.then is not None:
            return None
        measured = copy(self)
        measured._steps = []
        options = {"attention_mask": torch.ones_like(input_ids)} | options
        sequences = model.generate(input_ids, custom_generate=measured, **options)
        steps = torch.stack(measured._steps, dim=1).double().cpu().numpy()  # [batch, steps]
        ends = model.generation_config.eos_token_id
        drawn = torch.isin(
            sequences[:, input_ids.shape[1] :].cpu(), torch.tensor(ends or [], dtype=torch.long)
        )
        going = (drawn.long().cumsum(1) - drawn.long() == 0).numpy()
        return (steps * going).sum(1) / going.sum(1)

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
        if self._steps is not None:
            own = _Measured(own, self._steps)
        given = list(logits_processor)
        processors = LogitsProcessorList([own, *given] if self.first else [*given, own])
        then = self.then
        if then is None:
            kwargs.pop("tokenizer", None)
            config = generation_config
            if self.seed is not None:
                processors, config = keyed_draw(processors, self.seed, input_ids, mask, config)
            return model._sample(input_ids, processors, stopping_criteria, config, **kwargs)
        return then(model, input_ids, processors, stopping_criteria, generation_config, **kwargs)


class _Measured(LogitsProcessor):
    """A processor that keeps how far it moves the distribution, in KL(after || before), nats."""

    def __init__(self, own: LogitsProcessor, steps: list[torch.Tensor]) -> None:
        self.own, self.steps = own, steps

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        weighted = self.own(input_ids, scores)
        before, after = scores.float().log_softmax(-1), weighted.float().log_softmax(-1)
        terms = torch.where(after > float("-inf"), after.exp() * (after - before), 0)
        self.steps.append(terms.sum(-1))
        return weighted
