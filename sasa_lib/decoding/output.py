"""What a decoding loop hands back: tokens, and whatever else `generate` was asked to return."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer


class Output:
    """Collects scores and logits step by step, and streams tokens.

    Parameters
    ----------
    config : GenerationConfig
        Its `return_dict_in_generate` and `output_...` say what is collected.
    streamer : BaseStreamer, optional
    """

    def __init__(self, config: GenerationConfig, streamer: BaseStreamer | None) -> None:
        self.is_dictionary = bool(config.return_dict_in_generate)
        self.with_scores = self.is_dictionary and bool(config.output_scores)
        self.with_logits = self.is_dictionary and bool(config.output_logits)
        self.with_hidden_states = self.is_dictionary and bool(config.output_hidden_states)
        self.scores: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []
        self.streamer = streamer

    def add_logits(self, logits: torch.Tensor) -> None:
        """Keep a step's logits [batch, vocabulary] as the model gives them."""
        self.size = logits.shape[1]
        if self.with_logits:
            self.logits.append(logits.clone())  # a processor may write into them

    def add_scores(self, candidates: torch.Tensor, weighted: torch.Tensor) -> None:
        """Keep a step's re-weighted logits of candidates, both [batch, candidates]."""
        if self.with_scores:
            scores = weighted.new_full((len(weighted), self.size), float("-inf"))
            self.scores.append(scores.scatter_(1, candidates, weighted))

    def stream(self, tokens: torch.Tensor) -> None:
        """Hand on a step's tokens [batch]."""
        if self.streamer is not None:
            self.streamer.put(tokens.cpu())

    def of(
        self, input_ids: torch.Tensor, hidden_states: Sequence[tuple[torch.Tensor, ...]]
    ) -> torch.Tensor | GenerateDecoderOnlyOutput:
        """Return what `generate` returns, [batch, length] or all that was collected with it."""
        if self.streamer is not None:
            self.streamer.end()
        if not self.is_dictionary:
            return input_ids
        return GenerateDecoderOnlyOutput(
            sequences=input_ids,
            scores=tuple(self.scores) or None,
            logits=tuple(self.logits) or None,
            hidden_states=tuple(hidden_states) or None,
        )
