"""SASA as a logits processor, for decoding loops other than `generate`'s own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, PreTrainedModel
from transformers.generation import LogitsProcessorList

from sasa_lib.decoding.draw import CandidateDraw, check_drawn
from sasa_lib.decoding.noise import candidates_of
from sasa_lib.decoding.sasa import SASA
from sasa_lib.engine.models import language_model
from sasa_lib.subspace.boundary import Boundary


class SASALogitsProcessor(LogitsProcessor):
    """SASA for decoding loops that only take logits processors, such as beam search.

    Slower than `SASA`: the whole phrase is read again at every step. The candidates are the
    likeliest tokens of the scores it is given, so in `generate` it acts before top-k and top-p.

    Parameters
    ----------
    model : PreTrainedModel
        The model that the loop decodes.
    boundary, beta, form, scaled
        As in `SASA`.
    max_candidates : int
        Number of tokens that stay possible; all others become -inf.

    Examples
    --------
    >>> processor = SASALogitsProcessor(model, boundary, beta=1.0)  # doctest: +SKIP
    >>> model.generate(**inputs, logits_processor=[processor], num_beams=4)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        boundary: Boundary | Sequence[tuple[Boundary, float]],
        beta: float | None = None,
        *,
        form: str = "margin",
        scaled: bool = True,
        max_candidates: int = 10,
    ) -> None:
        self.model = language_model(model)
        self.sasa = SASA(boundary, beta, form=form, scaled=scaled, max_candidates=max_candidates)
        for boundary, _ in self.sasa.pairs:
            boundary.check_model(self.model)

    @torch.no_grad()
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """Re-weight the likeliest tokens; `scores` and the result are [batch, vocabulary]."""
        pad = self.model.generation_config.pad_token_id
        mask = torch.ones_like(input_ids)
        if pad is not None:
            mask = ((input_ids != pad).cumsum(-1) > 0).long()
        reference, candidates, _ = candidates_of(
            LogitsProcessorList(), input_ids, scores, self.sasa.max_candidates
        )
        means = self.sasa._means(self.model, input_ids, mask)
        everywhere = torch.ones_like(mask[:, 0]).bool()
        noise = torch.zeros_like(reference)
        draw = CandidateDraw(self.sasa._reweighted, reference, noise, everywhere, means)
        phrases = self.sasa._phrases(self.model)
        phrases.begin(input_ids, mask, input_ids.shape[1] + 1, candidates.shape[1])
        phrases.extend(candidates.gather(1, draw.order), draw, final=True)
        draw.drawn()
        check_drawn(bool(draw.is_finite))
        # Beams add these up, so they must be log-probabilities.
        weighted = draw.weighted.log_softmax(-1)
        return torch.full_like(scores, float("-inf")).scatter(
            1, candidates.gather(1, draw.order), weighted
        )
