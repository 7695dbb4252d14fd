"""Margins of whole responses, for the methods that choose among them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import takewhile

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import LogitsProcessorList

from sasa_lib.decoding.method import Decoder, further_inputs
from sasa_lib.decoding.sasa import SASA
from sasa_lib.subspace.boundary import Boundary
from sasa_lib.subspace.embeddings import check_layer, hidden_states

READ_AT_ONCE = 100  # responses in one forward pass


def check_choice_among_draws(
    method: Decoder,
    model: PreTrainedModel,
    boundaries: Sequence[Boundary],
    config: GenerationConfig,
    model_kwargs: dict[str, object],
    input_ids: torch.Tensor,
    mask: torch.Tensor,
) -> None:
    """Raise ValueError for a call whose responses cannot be drawn and then read again."""
    name = type(method).__name__
    # Responses are read again, as tokens alone.
    method.check_call(model, config, further_inputs(model_kwargs, input_ids, mask))
    if not config.do_sample:
        raise ValueError(f"{name} chooses among draws: give do_sample=True")
    if config.output_hidden_states:
        raise ValueError(f"{name} does not return hidden states: leave them off")
    for boundary in boundaries:
        boundary.check_model(model)
        check_layer(model, boundary.layer)


def responses_of(sequences: torch.Tensor, length: int, config: GenerationConfig) -> list[list[int]]:
    """Token ids behind prompts of a length, up to the end token, which is not among them."""
    ends = config._eos_token_tensor
    ends = set() if ends is None else set(ends.tolist())
    return [
        list(takewhile(lambda token: token not in ends, tokens))
        for tokens in sequences[:, length:].tolist()
    ]


def margins_of(
    then: Decoder,
    model: PreTrainedModel,
    boundaries: Sequence[Boundary],
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
) -> np.ndarray:
    """Scaled margins [boundaries, responses] of what `then` has just drawn; -inf of no tokens.

    A `SASA` has them from drawing; otherwise prompts and responses, token ids, are read.
    """
    had = [then.response_margins(one) if isinstance(then, SASA) else None for one in boundaries]
    if all(margins is not None for margins in had):
        margins = np.stack(had)
        return np.where(np.isnan(margins), -np.inf, margins)
    return read_margins(model, boundaries, prompts, responses)


def read_margins(
    model: PreTrainedModel,
    boundaries: Sequence[Boundary],
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
) -> np.ndarray:
    """Scaled margins [boundaries, responses], by reading them; -inf of those without tokens."""
    margins = np.full((len(boundaries), len(responses)), -np.inf)
    layers = sorted({boundary.layer for boundary in boundaries})
    rows = [i for i, response in enumerate(responses) if response]
    for start in range(0, len(rows), READ_AT_ONCE):
        some = rows[start : start + READ_AT_ONCE]
        states = hidden_states(model, [[*prompts[i], *responses[i]] for i in some], layers)
        for i, of_layers in zip(some, states.float(), strict=True):
            prompt, end = len(prompts[i]), len(prompts[i]) + len(responses[i])
            # A mean leaves out the first position, see `sasa_lib.subspace.embeddings.extract`.
            first = min(max(prompt, 1), end - 1)
            pooled = {"mean": of_layers[:, first:end].mean(1), "last": of_layers[:, end - 1]}
            for k, boundary in enumerate(boundaries):
                embedding = pooled[boundary.pooling][layers.index(boundary.layer)]
                margins[k, i] = boundary.margins(embedding[None].cpu().numpy(), scaled=True)[0]
    return margins


def of_rows(processors: LogitsProcessorList, rows: torch.Tensor) -> LogitsProcessorList:
    """Processors for a batch of these rows; the repetition penalty holds each row's padding."""
    chosen = LogitsProcessorList()
    for processor in processors:
        lengths = getattr(processor, "prompt_ignore_length", None)
        if isinstance(lengths, torch.Tensor):
            processor = copy(processor)
            processor.prompt_ignore_length = lengths[rows.to(lengths.device)]
        chosen.append(processor)
    return chosen
