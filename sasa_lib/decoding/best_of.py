"""Choosing among whole responses: the best of n draws, by the model's own margin.

Re-weighting candidates steers a phrase before it is known where it goes, and pays at every token.
A finished response is known: its margin tells toxic from nontoxic far better than that of any of
its tokens, and a choice among n finished ones is paid for in time, not in fluency.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import takewhile

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from sasa_lib.checks import as_list, check_count, check_number
from sasa_lib.decoding.method import Decoder, PlainSampling, further_inputs, mask_of
from sasa_lib.decoding.sasa import SASA
from sasa_lib.subspace.boundary import Boundary
from sasa_lib.subspace.embeddings import check_layer, hidden_states

READ_AT_ONCE = 100  # responses in one forward pass


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
        # Responses are read again, as tokens alone.
        self.check_call(model, generation_config, further_inputs(model_kwargs, input_ids, mask))
        if not generation_config.do_sample:
            raise ValueError("BestOf chooses among draws: give do_sample=True")
        if generation_config.output_hidden_states:
            raise ValueError("BestOf does not return hidden states: leave them off")
        for boundary, _ in self.pairs:
            boundary.check_model(model)
            check_layer(model, boundary.layer)
        many, expanded = model._expand_inputs_for_generation(
            expand_size=self.n, input_ids=input_ids, **model_kwargs
        )
        drawn = self.then(
            model,
            many,
            _of_draws(logits_processor, self.n),
            stopping_criteria,
            generation_config,
            synced_gpus=synced_gpus,
            **expanded,
        )
        dictionary = not isinstance(drawn, torch.Tensor)
        sequences = drawn.sequences if dictionary else drawn
        prompts = [ids[seen].tolist() for ids, seen in zip(input_ids, mask.bool(), strict=True)]
        ends = generation_config._eos_token_tensor
        ends = set() if ends is None else set(ends.tolist())
        responses = [
            list(takewhile(lambda token: token not in ends, tokens))
            for tokens in sequences[:, input_ids.shape[1] :].tolist()
        ]
        texts = [(prompts[i // self.n], response) for i, response in enumerate(responses)]
        margins = self._had()
        margins = self._margins(model, texts) if margins is None else margins
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

    def _had(self) -> np.ndarray | None:
        """Weighted sum of the margins of the responses where drawing them has shown it."""
        had = [
            self.then.response_margins(one) if isinstance(self.then, SASA) else None
            for one, _ in self.pairs
        ]
        if any(margins is None for margins in had):
            return None
        margins = sum(weight * of for of, (_, weight) in zip(had, self.pairs, strict=True))
        return np.where(np.isnan(margins), -np.inf, margins)

    def _margins(
        self, model: PreTrainedModel, texts: Sequence[tuple[list[int], list[int]]]
    ) -> np.ndarray:
        """Weighted sum of the scaled margins of responses to prompts, both token ids."""
        margins = np.full(len(texts), -np.inf)
        layers = sorted({boundary.layer for boundary, _ in self.pairs})
        rows = [i for i, (_, response) in enumerate(texts) if response]
        for start in range(0, len(rows), READ_AT_ONCE):
            some = rows[start : start + READ_AT_ONCE]
            states = hidden_states(model, [[*texts[i][0], *texts[i][1]] for i in some], layers)
            for i, of_layers in zip(some, states.float(), strict=True):
                prompt, response = map(len, texts[i])
                end = prompt + response
                # A mean leaves out the first position, see `sasa_lib.subspace.embeddings.extract`.
                first = min(max(prompt, 1), end - 1)
                pooled = {"mean": of_layers[:, first:end].mean(1), "last": of_layers[:, end - 1]}
                margins[i] = sum(
                    weight
                    * boundary.margins(
                        pooled[boundary.pooling][layers.index(boundary.layer)][None].cpu().numpy(),
                        scaled=True,
                    )[0]
                    for boundary, weight in self.pairs
                )
        return margins


def _of_draws(processors: LogitsProcessorList, n: int) -> LogitsProcessorList:
    """Processors for n draws of every row; the repetition penalty holds each row's padding."""
    many = LogitsProcessorList()
    for processor in processors:
        lengths = getattr(processor, "prompt_ignore_length", None)
        if isinstance(lengths, torch.Tensor):
            processor = copy(processor)
            processor.prompt_ignore_length = lengths.repeat_interleave(n)
        many.append(processor)
    return many
