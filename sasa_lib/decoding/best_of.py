"""Choosing among whole responses: the best of n draws, by the model's own margin.

Re-weighting candidates steers a phrase before it is known where it goes, and pays at every token.
A finished response is known: its margin tells toxic from nontoxic far better than that of any of
its tokens, and a choice among n finished ones is paid for in time, not in fluency.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from sasa_lib.checks import as_list, check_count, check_number
from sasa_lib.decoding.method import Decoder, PlainSampling, mask_of
from sasa_lib.decoding.noise import at_places, places_of
from sasa_lib.decoding.responses import (
    check_choice_among_draws,
    margins_of,
    of_rows,
    responses_of,
)
from sasa_lib.subspace.boundary import Boundary


class BestOf(Decoder):
    """Draw n responses for every one that is asked for, and keep that with the largest margin.

    Pass an instance as `custom_generate` to `model.generate`. The law of what is kept is within
    log(n) - (n - 1) / n nats of the law of the draws, in KL divergence, whatever the boundary and
    however long the response: for n = 4 that is 0.64 nats a response, or 0.03 a token of twenty.
    Time and memory are those of n times as many sequences, and of reading each once more up to
    the boundary, unless a `SASA` draws them by the same boundary on means.

    Parameters
    ----------
    boundary : Boundary or sequence of (Boundary, float)
        Whose margin is to be large: that of the response's embedding, pooled as the boundary was
        fitted. With several values, the sum of their scaled margins with these weights.
    n : int
        Responses drawn for each that is kept, at least 1; 1 keeps every draw.
    then : Decoder, optional
        How responses are drawn: `SASA`, or any other `custom_generate` of this library. Default
        plain sampling, which needs top-k here.
    seed : int, optional
        For plain sampling: as in `SASA`. The response i of a prompt is kept from its draws
        i n to i n + n - 1.

    Notes
    -----
    A response without any token is kept only if all n are empty.

    References
    ----------
    Stiennon et al. 2020 (arXiv 2009.01325), best of n by a reward model; Beirami et al. 2024
    (arXiv 2401.01879), theorem 1, for the bound.

    Examples
    --------
    >>> best = BestOf(boundary, 4, then=SASA(boundary, 0.5, form="posterior"))  # doctest: +SKIP
    >>> model.generate(**inputs, custom_generate=best, do_sample=True, top_k=10)  # doctest: +SKIP
    """

    def __init__(
        self,
        boundary: Boundary | Sequence[tuple[Boundary, float]],
        n: int = 4,
        *,
        then: Decoder | None = None,
        seed: int | None = None,
    ) -> None:
        pairs = [(boundary, 1.0)] if isinstance(boundary, Boundary) else boundary
        pairs = as_list(pairs, "pairs (boundary, weight)")
        if not pairs:
            raise ValueError("BestOf needs at least one boundary")
        self.pairs = [(one, check_number("weight", weight)) for one, weight in pairs]
        self.n = check_count("n", n)
        if then is not None and seed is not None:
            raise ValueError("give the seed to the decoder that draws, not to BestOf")
        self.then = then or PlainSampling(seed)

    @property
    def draws(self) -> int:
        """Sequences that it draws for each that it returns."""
        return self.n * self.then.draws

    @property
    def drawn(self) -> np.ndarray | None:
        """See `Decoder.drawn`: a mean over the n responses that it chooses among."""
        each = self.then.drawn
        return None if each is None else each.reshape(-1, self.n).mean(axis=1)

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: object | None = None,
        **model_kwargs: object,
    ) -> torch.LongTensor | GenerateDecoderOnlyOutput:
        """Draw and choose; `model.generate` calls this with what it has prepared."""
        mask = mask_of(input_ids, model_kwargs)
        boundaries = [boundary for boundary, _ in self.pairs]
        check_choice_among_draws(
            self, model, boundaries, generation_config, model_kwargs, input_ids, mask
        )
        many, expanded = model._expand_inputs_for_generation(
            expand_size=self.n, input_ids=input_ids, **model_kwargs
        )
        prompts = [ids[seen].tolist() for ids, seen in zip(input_ids, mask.bool(), strict=True)]
        places = [
            self.n * place + i
            for place in places_of([tuple(prompt) for prompt in prompts])
            for i in range(self.n)
        ]
        with at_places(places):
            drawn = self.then(
                model, many, of_rows(logits_processor, torch.arange(len(many)) // self.n),
                stopping_criteria, generation_config, synced_gpus=synced_gpus, **expanded,
            )  # fmt: skip
        dictionary = not isinstance(drawn, torch.Tensor)
        sequences = drawn.sequences if dictionary else drawn
        responses = responses_of(sequences, input_ids.shape[1], generation_config)
        prompts = [prompt for prompt in prompts for _ in range(self.n)]
        margins = margins_of(self.then, model, boundaries, prompts, responses)
        empty = np.isneginf(margins[0])
        weights = np.array([weight for _, weight in self.pairs])
        margins = np.where(empty, -np.inf, weights @ np.where(empty, 0, margins))
        margins = margins.reshape(-1, self.n)
        best = torch.from_numpy(margins.argmax(1) + self.n * np.arange(len(margins)))
        best = best.to(sequences.device)
        if streamer is not None:  # which response is kept is known only now
            for tokens in sequences[best, input_ids.shape[1] :].T.cpu():
                streamer.put(tokens)
            streamer.end()
        if not dictionary:
            return sequences[best]
        return GenerateDecoderOnlyOutput(
            sequences=sequences[best],
            scores=drawn.scores and tuple(step[best] for step in drawn.scores),
            logits=drawn.logits and tuple(step[best] for step in drawn.logits),
        )
