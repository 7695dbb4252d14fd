"""What every way of decoding has in common: its parameters, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import (
    GenerateDecoderOnlyOutput,
    GenerationMixin,
    GenerationMode,
    LogitsProcessorList,
)
from transformers.generation.stopping_criteria import StoppingCriteriaList

from sasa_lib.checks import check_seed
from sasa_lib.decoding.noise import keyed_draw
from sasa_lib.engine.identity import described

# What `generate` prepares for every model, and decoding makes for itself.
UNDERSTOOD = frozenset(
    {
        "attention_mask", "position_ids", "cache", "use_cache", "logits_to_keep", "return_dict",
        "output_hidden_states", "output_attentions",
    }
)  # fmt: skip
# Values of `cache_implementation` under which a cache holds other numbers than were put in.
LOSSY_CACHES = ("quantized",)


class Decoder:
    """A `custom_generate` that takes whatever plain sampling takes, or refuses it by name.

    An attribute whose name has no underscore before it is a parameter: a run depends on it.
    """

    then: Decoder | None = None  # the method that samples, where there is another one
    seed: int | None = None
    draws = 1  # sequences that it draws for each that it returns

    def describe(self) -> dict[str, object]:
        """What a run needs to know to be told from another: every parameter."""
        return {
            name: described(value) for name, value in vars(self).items() if not name.startswith("_")
        }

    @property
    def drawn(self) -> np.ndarray | None:
        """How often it drew `draws` for each response of the latest call, where that differs."""
        return self.then.drawn if self.then else None

    @property
    def is_keyed(self) -> bool:
        """Whether a text depends on seed and prompt alone, whatever else is in the batch."""
        return self.then.is_keyed if self.then else self.seed is not None

    def divergence_per_token(
        self, model: PreTrainedModel, input_ids: torch.Tensor, **options: Any
    ) -> np.ndarray | None:
        """KL divergence from plain sampling along sequences that `generate` draws by this method.

        Parameters
        ----------
        model : PreTrainedModel
        input_ids : torch.Tensor, shape [prompts, length]
        **options
            Of `generate`; without `attention_mask` there is no padding.

        Returns
        -------
        numpy.ndarray of float64, shape [sequences], or None
            KL(q || p) of the step's distribution q to that of plain sampling under the same top-k
            and top-p, exact, its mean over the steps of a sequence, in nats. None for a method
            that does not re-weight plain sampling's candidates.
        """
        return None

    def check_call(self, model: PreTrainedModel, config: GenerationConfig, inputs: object) -> None:
        """Raise ValueError for what `generate` was asked for and this method does not do.

        Parameters
        ----------
        model : PreTrainedModel
        config : GenerationConfig
        inputs : iterable of str
            Names of what `generate` passes that the method does not understand.
        """
        name = type(self).__name__
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"{name} steers decoder-only language models, not encoder-decoder ones"
            )
        if (config.num_beams or 1) > 1:
            raise ValueError(f"{name} samples; it does not search beams: leave num_beams at 1")
        mode = config.get_generation_mode()
        if mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
            raise ValueError(f"{name} samples; it does not do {mode.value.replace('_', ' ')}")
        if config.cache_implementation in LOSSY_CACHES:
            raise ValueError(
                f"{name} keeps an exact cache: leave cache_implementation="
                f"{config.cache_implementation!r} out"
            )
        for unknown in inputs:
            raise ValueError(f"{name} does not understand {named(unknown)!r}: leave it out")


def named(unknown: str) -> str:
    """Return the name under which a caller knows what `generate` passes."""
    # Of images and videos it passes what their encoders made of them.
    return "pixel_values" if unknown == "mm_encoder_outputs" else unknown


def mask_of(input_ids: torch.Tensor, model_kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the attention mask that `generate` passes, or one that sees everything."""
    mask = model_kwargs.get("attention_mask")
    return torch.ones_like(input_ids) if mask is None else mask


def further_inputs(
    model_kwargs: Mapping[str, Any], input_ids: torch.Tensor, mask: torch.Tensor
) -> dict[str, Any]:
    """Return what `generate` passes beside token ids, their mask and their usual positions."""
    inputs = {
        name: value
        for name, value in model_kwargs.items()
        if name not in UNDERSTOOD and value is not None and value is not False
        # Without an image, models that take some are passed an empty mapping.
        if not (isinstance(value, Mapping) and not value)
    }
    positions = model_kwargs.get("position_ids")
    if positions is not None:
        usual = (mask.cumsum(-1) - 1).clamp(min=0)
        if not (positions.to(mask.device) == usual).all():
            inputs["position_ids"] = positions
    return inputs


class PlainSampling(Decoder):
    """Plain sampling, drawn with the noise of `SASA`: the same tokens as SASA at beta 0.

    So methods can be compared on the same noise, and a generation does not depend on what else is
    in its batch.

    Parameters
    ----------
    seed : int, optional
        As in `SASA`.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = check_seed(seed)

    @property
    def is_keyed(self) -> bool:
        """True: without a seed of its own, it draws one in every call."""
        return True

    def divergence_per_token(
        self, model: PreTrainedModel, input_ids: torch.Tensor, **options: Any
    ) -> np.ndarray:
        """Zeros, since this is plain sampling."""
        return np.zeros(len(input_ids) * options.get("num_return_sequences", 1))

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: object,
    ) -> torch.LongTensor | GenerateDecoderOnlyOutput:
        """Sample; `model.generate` calls this with what it has prepared."""
        self.check_call(model, generation_config, {"assistant_model"} & set(kwargs))
        processors, config = keyed_draw(
            logits_processor, self.seed, input_ids, kwargs.get("attention_mask"), generation_config
        )
        kwargs.pop("tokenizer", None)
        return model._sample(input_ids, processors, stopping_criteria, config, **kwargs)


def _keep_mode_arguments() -> None:
    """Let `generate` hand streamer, tokenizer (for stop strings) and synced_gpus to a `Decoder`.

    Where custom_generate is a callable, transformers 5.24 drops them, and a streamer would wait
    for ever. A `Decoder` takes what plain sampling takes, so for it, and for nothing else, they
    are extracted as they are for plain sampling.
    """
    extract = GenerationMixin._extract_generation_mode_kwargs

    def extract_for_decoders(
        model: PreTrainedModel, custom_generate: object, *args: object, **kwargs: object
    ) -> dict[str, object]:
        if isinstance(custom_generate, Decoder):
            custom_generate = None
        return extract(model, custom_generate, *args, **kwargs)

    GenerationMixin._extract_generation_mode_kwargs = extract_for_decoders


_keep_mode_arguments()
