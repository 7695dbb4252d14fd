"""Whole responses, drawn until one lies on the right side of the boundary.

Keeping what lies above a threshold draws from p(x | margin > threshold) exactly. Of all laws that
keep to that side it is the closest to p, in KL(q || p) (the information projection: Csiszar 1975):
it is p itself, restricted, and log(1 / P(margin > threshold)) nats a response away. Where nothing
is wrong it costs one draw.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import pad
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
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

ANEW = 1 << 20  # more than the responses of a prompt: places of one draw and the next


class Accept(Decoder):
    """Draw each response until its margin lies above a threshold, and keep that.

    Pass an instance as `custom_generate` to `model.generate`. All responses that are still to be
    accepted are drawn together, several draws of each where few are left, so that the batch stays
    as large as it was. After `at_most` draws of a response the one with the largest margin is
    kept, with a warning.

    Parameters
    ----------
    boundary : Boundary or sequence of (Boundary, float)
        Whose margin is to lie above: that of the response's embedding, pooled as the boundary was
        fitted. Several values as pairs (boundary, threshold): all must be met.
    above : float
        Threshold in standard deviations of the boundary's training margins. Only with a single
        boundary; `accepting` finds the one that accepts a given share.
    then : Decoder, optional
        How responses are drawn: any `custom_generate` of this library. Default plain sampling.
    at_most : int
        Draws of a response, at most.
    seed : int, optional
        For plain sampling: as in `SASA`. The first draw of a response has the noise that it has
        under `then` alone, so what is accepted at once is what `then` would have said; draw j of
        the response i of a prompt has the noise of its sequence i + j 2^20.

    Notes
    -----
    A response without any token is not accepted. Only whole sequences are returned: scores and
    logits of several calls are not put together.

    Examples
    --------
    >>> accept = Accept(boundary, then=SASA(boundary, 0.5, form="posterior"))  # doctest: +SKIP
    >>> model.generate(**inputs, custom_generate=accept, do_sample=True, top_k=10)
    ... # doctest: +SKIP
    """

    def __init__(
        self,
        boundary: Boundary | Sequence[tuple[Boundary, float]],
        above: float = 0.0,
        *,
        then: Decoder | None = None,
        at_most: int = 16,
        seed: int | None = None,
    ) -> None:
        if isinstance(boundary, Boundary):
            boundary = [(boundary, above)]
        elif above != 0.0:
            raise ValueError("with several boundaries, give each its threshold in its pair")
        pairs = as_list(boundary, "pairs (boundary, threshold)")
        if not pairs:
            raise ValueError("Accept needs at least one boundary")
        self.pairs = [(one, check_number("above", limit)) for one, limit in pairs]
        self.at_most = check_count("at_most", at_most)
        if then is not None and seed is not None:
            raise ValueError("give the seed to the decoder that draws, not to Accept")
        self.then = then or PlainSampling(seed)
        self._drawn, self._accepted = np.empty(0, dtype=int), np.empty(0, dtype=bool)

    @property
    def draws(self) -> int:
        """Sequences that it draws at once for each that it returns."""
        return self.then.draws

    @property
    def drawn(self) -> np.ndarray:
        """Draws of each response of the latest call up to the one accepted, int [responses].

        `at_most` where none was. Where few responses are left, some draws behind it are made, too.
        """
        return self._drawn

    @property
    def accepted(self) -> np.ndarray:
        """Whether each response of the latest call lies above, bool [responses]."""
        return self._accepted

    @classmethod
    def accepting(
        cls,
        share: float,
        boundary: Boundary,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        responses: Sequence[str],
        **options: object,
    ) -> Accept:
        """Accept this share of responses such as these.

        Parameters
        ----------
        share : float
            In (0, 1).
        boundary : Boundary
        model, tokenizer
        prompts, responses : sequences of str
            What the model wrote by `then`, each behind its prompt: some hundred of them.
        **options
            Of `Accept`.
        """
        share = check_number("share", share, above=0, most=1)
        texts = Dataset.from_dict({"prompt": list(prompts), "response": list(responses)})
        margins = boundary.score_texts(model, tokenizer, texts, scaled=True)
        return cls(boundary, float(np.quantile(margins, 1 - share)), **options)

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
        """Draw and accept; `model.generate` calls this with what it has prepared."""
        mask = mask_of(input_ids, model_kwargs)
        boundaries = [boundary for boundary, _ in self.pairs]
        check_choice_among_draws(
            self, model, boundaries, generation_config, model_kwargs, input_ids, mask
        )
        if generation_config.output_scores or generation_config.output_logits:
            raise ValueError("Accept returns sequences: leave scores and logits off")
        if (generation_config.guidance_scale or 1) != 1:  # whose processor keeps a cache
            raise ValueError("Accept draws several times: leave guidance_scale out")
        limits = np.array([limit for _, limit in self.pairs])
        prompts = [ids[seen].tolist() for ids, seen in zip(input_ids, mask.bool(), strict=True)]
        places = np.array(places_of([tuple(prompt) for prompt in prompts]))
        kept: list[torch.Tensor | None] = [None] * len(prompts)
        best = np.full(len(prompts), -np.inf)
        self._drawn = np.full(len(prompts), self.at_most)
        self._accepted = np.zeros(len(prompts), dtype=bool)
        waiting, done = np.arange(len(prompts)), 0
        while len(waiting) and done < self.at_most:
            each = min(max(1, len(prompts) // len(waiting)), self.at_most - done)
            rows = np.repeat(waiting, each)
            numbers = np.tile(np.arange(done, done + each), len(waiting))
            index = torch.from_numpy(rows).to(input_ids.device)
            sequences = self._draw(
                model, input_ids, logits_processor, stopping_criteria, generation_config,
                synced_gpus, model_kwargs, index, (places[rows] + ANEW * numbers).tolist(),
            )  # fmt: skip
            responses = responses_of(sequences, input_ids.shape[1], generation_config)
            margins = margins_of(
                self.then, model, boundaries, [prompts[row] for row in rows], responses
            )
            # By how much the value that is met least is met, [draws].
            least = (margins - limits[:, None]).min(axis=0)
            for row, number, sequence, margin in zip(rows, numbers, sequences, least, strict=True):
                if not self._accepted[row] and (kept[row] is None or margin > best[row]):
                    kept[row], best[row] = sequence, margin
                    if margin > 0:
                        self._accepted[row], self._drawn[row] = True, number + 1
            waiting, done = waiting[~self._accepted[waiting]], done + each
        if len(waiting):
            warnings.warn(
                f"{len(waiting)} of {len(prompts)} responses were not accepted in {self.at_most} "
                "draws; the best of each was kept",
                stacklevel=2,
            )
        return self._returned(kept, input_ids, generation_config, streamer)

    def _draw(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        synced_gpus: bool,
        model_kwargs: dict[str, object],
        rows: torch.Tensor,
        places: list[int],
    ) -> torch.Tensor:
        """Draw sequences [rows, length] of these rows, with the noise of these places."""
        inputs = {
            name: value[rows]
            if isinstance(value, torch.Tensor) and value.shape[:1] == input_ids.shape[:1]
            else (deepcopy(value) if name == "cache" else value)  # whoever draws fills it
            for name, value in model_kwargs.items()
        }
        with at_places(places):
            found = self.then(
                model, input_ids[rows], of_rows(processors, rows), criteria, config,
                synced_gpus=synced_gpus, **inputs,
            )  # fmt: skip
        return found if isinstance(found, torch.Tensor) else found.sequences

    def _returned(
        self,
        kept: list[torch.Tensor],
        input_ids: torch.Tensor,
        config: GenerationConfig,
        streamer: object | None,
    ) -> torch.LongTensor | GenerateDecoderOnlyOutput:
        """Sequences of several calls, side by side, and streamed."""
        longest = max(map(len, kept))
        filler = config._pad_token_tensor
        filler = int(input_ids[0, 0] if filler is None else filler)
        sequences = torch.stack([pad(row, (0, longest - len(row)), value=filler) for row in kept])
        if streamer is not None:  # which draw is kept is known only now
            for tokens in sequences[:, input_ids.shape[1] :].T.cpu():
                streamer.put(tokens)
            streamer.end()
        if not config.return_dict_in_generate:
            return sequences
        return GenerateDecoderOnlyOutput(sequences=sequences)
