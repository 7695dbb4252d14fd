"""Activation addition: the difference of two class means, added while generating."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from sasa_lib.checks import check_count, check_finite, check_labels, check_number
from sasa_lib.decoding.method import Decoder, PlainSampling
from sasa_lib.engine.models import blocks, text_config


class MeanDifference(Decoder):
    """Plain sampling with alpha * (nontoxic mean - toxic mean) added to a layer's hidden states.

    Added at every position of prompt and continuation (Turner et al. 2023, arXiv 2308.10248, with
    class means as in Rimsky et al. 2024, arXiv 2312.06681), through a hook: for any model whose
    blocks can be found.

    Parameters
    ----------
    difference : numpy.ndarray, shape [hidden_size]
        `MeanDifference.between` makes it from embeddings.
    layer : int
        Hidden state that it is added to: what block `layer` gets, from 0.
    alpha : float
        Strength; below 0 it goes the other way.
    seed : int, optional
        As in `SASA`.
    """

    def __init__(
        self, difference: np.ndarray, layer: int, alpha: float, *, seed: int | None = None
    ) -> None:
        self.difference = np.asarray(difference, dtype=np.float32)
        check_finite("difference", self.difference)
        self.layer = check_count("layer", layer, 0)
        self.alpha = check_number("alpha", alpha)
        self.then = PlainSampling(seed)

    @staticmethod
    def between(embeddings: np.ndarray, toxic: np.ndarray) -> np.ndarray:
        """Nontoxic mean minus toxic mean, [hidden_size], of embeddings [n, hidden_size]."""
        toxic = check_labels("toxic", toxic)
        return embeddings[~toxic].mean(axis=0) - embeddings[toxic].mean(axis=0)

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
        size, depth = text_config(model).hidden_size, len(blocks(model))
        if self.difference.shape != (size,) or self.layer >= depth:
            raise ValueError(
                f"{model.name_or_path} has {depth} blocks of {size} units; got a difference of "
                f"shape {self.difference.shape} for layer {self.layer}"
            )
        added = torch.from_numpy(self.alpha * self.difference).to(model.dtype)

        def add(_: torch.nn.Module, args: tuple, given: dict[str, Any]) -> tuple:
            if args:
                return (args[0] + added.to(args[0].device), *args[1:]), given
            states = given["hidden_states"]
            return args, given | {"hidden_states": states + added.to(states.device)}

        hook = blocks(model)[self.layer].register_forward_pre_hook(add, with_kwargs=True)
        try:
            return self.then(
                model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
            )
        finally:
            hook.remove()
