"""Self-disciplined autoregressive sampling (SASA) for `generate(custom_generate=...)`.

One step for a phrase c and its candidates x, the tokens that survive top-k, top-p and every other
logits processor (Ko et al. 2025, arXiv 2410.03818, section 4):

1. one forward pass places all candidates side by side at the next position, each seeing the
   phrase and itself (`sasa_lib.decoding.prefix_cache`);
2. the margin of a candidate is that of its own hidden state at the boundary's layer;
3. new logit(x) = logit(x) + beta * g(margin(x)), and the next token is drawn from its softmax;
4. only the drawn candidate's keys and values are kept, and its hidden state already gives the
   logits of the step after.

The draw is x = argmax new logit(x) + noise(x), with Gumbel noise. Where g cannot be above 0,
logit + noise bounds what a candidate can reach, and those that cannot win any more are never
computed: the same token is drawn from fewer candidates.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from sasa_lib.checks import as_list, check_choice, check_count, check_number, check_seed
from sasa_lib.decoding.draw import (
    CandidateDraw,
    DrawnMargins,
    RunningMargins,
    check_drawn,
    stacked,
)
from sasa_lib.decoding.kl import path_divergence, within_budget
from sasa_lib.decoding.method import Decoder, further_inputs, mask_of, named
from sasa_lib.decoding.noise import Noise, candidates_of
from sasa_lib.decoding.output import Output
from sasa_lib.decoding.prefix_cache import Hidden, Phrases
from sasa_lib.decoding.pretrained import Pretrained
from sasa_lib.decoding.repeated import RepeatedPhrases, obstacle, phrases_for
from sasa_lib.engine.models import text_config
from sasa_lib.subspace.boundary import Boundary
from sasa_lib.subspace.calibration import PHRASES
from sasa_lib.subspace.embeddings import check_layer, hidden_states

SLACK = 0.3  # nats by which a step's g is prepared to be below that of the step before
MOST_CANDIDATES = 50  # where neither top-k nor the caller says
# Whose: the paper's Proposition 1, the authors' code, ours.
FORMS = ("margin", "softmax", "posterior")


class SASA(Pretrained, Decoder):
    """Detoxified sampling: pass an instance as `custom_generate` to `model.generate`.

    Parameters
    ----------
    boundary : Boundary or sequence of (Boundary, float)
        The boundary to keep away from, or several values at once as pairs (boundary, beta).
    beta : float
        Strength, at least 0; 0 is plain sampling. Only with a single boundary.
    form : {"margin", "softmax", "posterior"}
        g. "margin": the margin itself, which makes p * exp(beta * margin), the optimum of
        max E[margin] - KL(q || p) / beta. "softmax": the softmax of the margins over the
        candidates, as in the authors' published code, whose betas of 10 to 500 belong to it
        together with scaled=False.
        "posterior" (not in the paper): log sigmoid(slope * scaled margin + intercept), the
        log-probability of nontoxic, so p * P(nontoxic)^beta; candidates that are safe already
        stay as they are, and those that cannot be drawn are not computed. Slope and intercept
        are the boundary's: 3 and 0, unless it was `calibrated`.
    scaled : bool
        Use margins in units of the training data's standard deviation, so that beta means the
        same on every model and layer. False: raw distances, as published.
    phrase : {"candidate", "response", "text"}
        What the margin is that of. "candidate": of the candidate's own hidden state, which has
        seen the phrase. "response", "text": of the mean of the hidden states of the response so
        far and the candidate, without or with the prompt, as a boundary fitted on means saw its
        texts. Exact, and a running sum: it costs nothing (with "text" the prompt is read up to
        the boundary once more).
    decay : float
        In (0, 1]: weight in the mean of a token over that of its successor; 1 is the plain mean,
        0.5 hardly reaches back further than three tokens. Not with "candidate".
    max_kl : float, optional
        Budget, above 0, in nats a token: at a step whose re-weighted distribution would be further
        than this from the reference, in KL(q || p), all betas are scaled down to where it is just
        as far. So beta, or the ratio of several, says what is wanted, and the budget what fluency
        may pay; text that needs no steering is left alone. Every candidate is computed.
    max_candidates : int, optional
        Largest number of candidates a step where `top_k` does not give one. None: 50, with a
        warning where more survive.
    seed : int, optional
        With a seed, the noise of a sequence comes from the seed, its prompt and its place among
        the sequences of the same prompt in the call, whatever else is in the batch. None: the
        seed is drawn from torch's generator in every call, so `torch.manual_seed` rules.
    record : bool
        Keep every step for `trace`; then every candidate is computed.

    Notes
    -----
    With `do_sample=False` the argmax of the re-weighted distribution is taken.

    With the margin form, a `phrase` of n tokens is a beta of its own at every step: what the
    mean owes to the tokens before is the same for all candidates, and theirs is the nth part. With
    the posterior form it is more, since a phrase that is safe or toxic already moves every
    candidate along the sigmoid.

    Models whose candidates cannot lie side by side (BLOOM, Mamba) are decoded by repeating the
    phrase for every candidate, with a warning.

    Examples
    --------
    >>> sasa = SASA(boundary, beta=1.0)  # doctest: +SKIP
    >>> model.generate(**inputs, custom_generate=sasa, do_sample=True, top_k=10, top_p=0.9)
    ... # doctest: +SKIP
    """

    def __init__(
        self,
        boundary: Boundary | Sequence[tuple[Boundary, float]],
        beta: float | None = None,
        *,
        form: str = "margin",
        scaled: bool = True,
        phrase: str = "candidate",
        decay: float = 1.0,
        max_kl: float | None = None,
        max_candidates: int | None = None,
        seed: int | None = None,
        record: bool = False,
    ) -> None:
        self.pairs = weighted_boundaries(boundary, beta)
        check_choice("form", form, FORMS)
        check_choice("phrase", phrase, PHRASES)
        self.form = form
        self.scaled = bool(scaled)
        self.phrase = phrase
        self.decay = check_number("decay", decay, above=0, most=1)
        if phrase == "candidate" and decay != 1:
            raise ValueError("decay weights the tokens of a mean: give phrase='response' or 'text'")
        self.max_kl = None if max_kl is None else check_number("max_kl", max_kl, above=0)
        self._asked = max_candidates is not None
        self.max_candidates = check_count(
            "max_candidates", max_candidates if self._asked else MOST_CANDIDATES
        )
        self.seed = check_seed(seed)
        self._record = bool(record)
        self._steps: list[dict[str, torch.Tensor]] = []
        self._tensors: dict[tuple[int, torch.device], tuple[torch.Tensor, ...]] = {}
        self._warned: set[str] = set()

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
        """Run the sampling loop; `model.generate` calls this with what it has prepared."""
        config = generation_config
        mask = mask_of(input_ids, model_kwargs)
        inputs = self._check(model, input_ids, mask, config, model_kwargs)
        self._steps, self._tensors = [], {}
        output = Output(config, streamer)
        noise = self._noise(input_ids, mask) if config.do_sample else None
        phrases = self._phrases(model, inputs)
        phrases.keep_hidden_states = output.with_hidden_states
        how = self._how(phrases, output, synced_gpus)
        means = self._means(model, input_ids, mask)
        said = self._said = DrawnMargins(len(self.pairs), input_ids, config._eos_token_tensor)
        room = min(max(config.top_k or 0, self.max_candidates), text_config(model).vocab_size)
        logits = phrases.begin(input_ids, mask, stopping_criteria.max_length, room)
        unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        expected = torch.zeros(len(input_ids), 1, device=input_ids.device)
        finished = False
        while model._has_unfinished_sequences(finished, synced_gpus, input_ids.device):
            if finished:  # this rank is through; the others still need its forward passes
                model(input_ids[:, -1:])
                continue
            logits = logits.to(input_ids.device, torch.float32)
            output.add_logits(logits)
            reference, candidates = self._candidates(logits_processor, input_ids, logits, config)
            gumbel = noise.next(candidates) if noise else torch.zeros_like(reference)
            draw = CandidateDraw(
                self._reweighted, reference, gumbel, unfinished, means, expected=expected, **how
            )
            candidates = candidates.gather(1, draw.order)
            last = input_ids.shape[1] + 1 == stopping_criteria.max_length
            logits = phrases.extend(candidates, draw, final=last and not synced_gpus)
            drawn = draw.drawn()
            tokens = candidates.gather(1, drawn).squeeze(1)
            expected = draw.lost - SLACK
            of_drawn = draw.margins.gather(2, drawn.expand(len(draw.margins), -1, 1))
            means.append(of_drawn)
            said.add(of_drawn[..., 0], unfinished, tokens)
            if self._record:
                self._steps.append(draw.record(candidates))
            output.add_scores(candidates, draw.weighted)
            if config._pad_token_tensor is not None:
                tokens = torch.where(unfinished, tokens, config._pad_token_tensor)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
            output.stream(tokens)
            unfinished = unfinished & ~stopping_criteria(input_ids, tuple(output.scores) or None)
            # One question to the device, not two.
            is_finite, going = torch.stack([draw.is_finite, unfinished.any()]).tolist()
            check_drawn(is_finite)
            finished = not going
        return output.of(input_ids, phrases.hidden_states[:-1])

    @property
    def beta(self) -> float | list[float]:
        """Strength, or those of several values."""
        betas = [beta for _, beta in self.pairs]
        return betas[0] if len(betas) == 1 else betas

    @property
    def is_keyed(self) -> bool:
        """True: without a seed of its own, it draws one in every call."""
        return True

    def divergence_per_token(
        self, model: PreTrainedModel, input_ids: torch.Tensor, **options: Any
    ) -> np.ndarray:
        """See `Decoder.divergence_per_token`; every candidate is computed."""
        recorded = copy(self)
        recorded._record, recorded._steps = True, []
        options = {"attention_mask": torch.ones_like(input_ids)} | options
        model.generate(input_ids, custom_generate=recorded, **options)
        return path_divergence(recorded.trace)["per_token"].to_numpy()

    def response_margins(self, boundary: Boundary) -> np.ndarray | None:
        """Scaled margins of the latest call's responses, had as they were drawn.

        Parameters
        ----------
        boundary : Boundary

        Returns
        -------
        numpy.ndarray of float64, shape [batch], or None
            Of their mean embeddings; NaN for a response without tokens. None where the boundary
            is none of this SASA's, is not of means, or saw more than the drawn tokens.
        """
        prints = [one.fingerprint() for one, _ in self.pairs]
        if boundary.fingerprint() not in prints or (self.phrase, boundary.pooling) != (
            "candidate",
            "mean",
        ):
            return None
        place = prints.index(boundary.fingerprint())
        unit = 1.0 if self.scaled else boundary.scale
        return self._said.mean()[place].double().cpu().numpy() / unit

    def with_max_kl(self, max_kl: float | None) -> SASA:
        """Return the same SASA with another budget, or with none."""
        other = copy(self)
        other.max_kl = None if max_kl is None else check_number("max_kl", max_kl, above=0)
        other._steps = []
        return other

    @property
    def trace(self) -> pd.DataFrame:
        """Every candidate of every step of the latest call, if `record` is on.

        One row a candidate: sequence, step, token_id, reference_logprob (after the logits
        processors), margin (of the first boundary, raw or scaled as chosen), new_logprob and
        drawn. Steps of finished sequences and tokens outside the nucleus are left out.
        """
        if not self._steps:
            raise ValueError("nothing was recorded: use SASA(..., record=True) and generate first")
        rows = []
        for step, entry in enumerate(self._steps):
            kept = (entry["reference"] > float("-inf")) & entry["unfinished"][:, None]
            sequence, column = kept.nonzero(as_tuple=True)
            rows.append(
                pd.DataFrame(
                    {
                        "sequence": sequence.numpy(),
                        "step": step,
                        "token_id": entry["candidates"][kept].numpy(),
                        "reference_logprob": entry["reference"].log_softmax(-1)[kept].numpy(),
                        "margin": entry["margin"][kept].numpy(),
                        "new_logprob": entry["weighted"].log_softmax(-1)[kept].numpy(),
                        "drawn": (entry["drawn"][sequence, 0] == column).numpy(),
                    }
                )
            )
        return pd.concat(rows, ignore_index=True)

    def _noise(self, input_ids: torch.Tensor, mask: torch.Tensor) -> Noise:
        return Noise(self.seed, input_ids, mask)

    def _how(
        self, phrases: Phrases | RepeatedPhrases, output: Output, synced_gpus: bool
    ) -> dict[str, bool]:
        """Whether candidates are judged in one pass, and whether a bound may leave some out."""
        # Somebody wants to see them all, or other ranks wait for this one's passes, one a step.
        whole = self._record or synced_gpus or output.with_scores or output.with_hidden_states
        whole = whole or isinstance(phrases, RepeatedPhrases)
        together = whole or self.form == "softmax" or self.max_kl is not None
        at_most_0 = self.form == "posterior" or not any(beta for _, beta in self.pairs)
        return {"together": together, "bounded": at_most_0 and not together}

    def _phrases(
        self, model: PreTrainedModel, inputs: Mapping[str, Any] | None = None
    ) -> Phrases | RepeatedPhrases:
        layers = sorted({boundary.layer for boundary, _ in self.pairs})
        phrases = phrases_for(model, layers, inputs)
        if isinstance(phrases, RepeatedPhrases):
            why = obstacle(model) or (
                f"{', '.join(map(named, inputs))} cannot be shared by candidates"
                if inputs
                else f"candidates of {model.config.model_type!r} models cannot share a cache"
            )
            way = "is repeated" if phrases.cached else "is read anew"
            self._warn_once(
                f"{why}: the phrase {way} for every candidate, which is slower and takes more "
                "memory"
            )
        return phrases

    def _candidates(
        self,
        processors: LogitsProcessorList,
        input_ids: torch.Tensor,
        logits: torch.Tensor,
        config: GenerationConfig,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores after all logits processors and token ids, each [batch, candidates].

        What a processor removed has the score -inf.
        """
        most = None if config.do_sample and config.top_k else self.max_candidates
        reference, candidates, survivors = candidates_of(processors, input_ids, logits, most)
        if config.do_sample and not self._asked and most is not None and survivors > most:
            self._warn_once(
                f"more than {most} tokens survive sampling's filters; SASA considers the {most} "
                "likeliest (give top_k, or SASA(..., max_candidates=...))"
            )
        return reference, candidates

    def _means(
        self, model: PreTrainedModel, input_ids: torch.Tensor, mask: torch.Tensor
    ) -> RunningMargins:
        """Mean margins of the phrases before their first candidate."""
        means = RunningMargins(len(self.pairs), len(input_ids), input_ids.device)
        means.decay = 0.0 if self.phrase == "candidate" else self.decay
        if self.phrase != "text":
            return means
        layers = sorted({boundary.layer for boundary, _ in self.pairs})
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, (ids, seen) in enumerate(zip(input_ids, mask.bool(), strict=True)):
            rows.setdefault(tuple(ids[seen].tolist()), []).append(row)
        states = hidden_states(model, list(rows), layers).to(input_ids.device)
        margins = self._margins(dict(zip(layers, states.transpose(0, 1), strict=True)))
        for i, (prompt, same) in enumerate(rows.items()):
            # The first position is left out of means, see `sasa_lib.subspace.embeddings.extract`.
            seen = margins[:, i, 1 : len(prompt)]
            means.begin(seen, same)
        return means

    def _reweighted(
        self,
        reference: torch.Tensor,
        hidden: Hidden,
        means: RunningMargins,
        rows: torch.Tensor | slice = slice(None),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New logits [rows, candidates], and margins [boundaries, rows, candidates]."""
        margins = means.with_candidates(self._margins(hidden).to(reference.device), rows)
        betas, slopes, intercepts = self._strengths(margins.device)
        g = margins
        if self.form == "softmax":
            g = margins.masked_fill(reference == float("-inf"), float("-inf")).softmax(-1)
        elif self.form == "posterior":
            g = torch.nn.functional.logsigmoid(slopes * margins + intercepts)
        weighted = reference + (betas * g).sum(0)
        if self.max_kl is not None:
            weighted = within_budget(reference, weighted, self.max_kl)
        return weighted, margins

    def _strengths(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Beta, slope and intercept of every boundary, each [boundaries, 1, 1]."""
        if (-1, device) not in self._tensors:
            rows = [
                (beta, b.slope / (1.0 if self.scaled else b.scale), b.intercept)
                for b, beta in self.pairs
            ]
            columns = torch.tensor(rows, device=device).T
            self._tensors[-1, device] = tuple(columns[..., None, None])
        return self._tensors[-1, device]

    def _margins(self, hidden: Hidden) -> torch.Tensor:
        """Margins of hidden states [..., hidden_size] from every boundary, [boundaries, ...]."""
        found: dict[int, torch.Tensor] = {}
        for layer, states in hidden.items():
            places = [i for i, (boundary, _) in enumerate(self.pairs) if boundary.layer == layer]
            if (layer, states.device) not in self._tensors:
                boundaries = [self.pairs[i][0] for i in places]
                self._tensors[layer, states.device] = stacked(boundaries, self.scaled, states)
            normals, centre, offsets = self._tensors[layer, states.device]
            # One product for all boundaries of a layer: eight cost hardly more than one.
            margins = (states.float() - centre) @ normals - offsets
            found |= zip(places, margins.unbind(-1), strict=True)
        device = found[0].device
        return torch.stack([found[i].to(device) for i in range(len(self.pairs))])

    def _check(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> dict[str, Any]:
        """Refuse what cannot be done, and return what else `generate` passes for the model."""
        inputs = further_inputs(model_kwargs, input_ids, mask)
        unknown = {"assistant_model", "assistant_tokenizer"} & set(inputs)
        if self.phrase == "text":  # the prompt is read once more, as tokens alone
            unknown = set(inputs)
        self.check_call(model, config, unknown - {"inputs_embeds"})
        if "inputs_embeds" in inputs:
            raise ValueError("SASA continues token ids: pass input_ids, not inputs_embeds")
        if getattr(model_kwargs.get("cache"), "_is_user_defined", False):
            raise ValueError("SASA builds its own cache: do not pass cache")
        if config.output_attentions:
            raise ValueError("SASA does not return attentions: leave output_attentions off")
        if input_ids.device != model.device:
            raise ValueError(
                f"the prompt is on {input_ids.device}, the model on {model.device}: pass "
                "tokenizer(..., return_tensors='pt').to(model.device)"
            )
        for boundary, _ in self.pairs:
            boundary.check_model(model)
            check_layer(model, boundary.layer)
        return inputs

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=4)


def weighted_boundaries(
    boundary: Boundary | Sequence[tuple[Boundary, float]], weight: float | None, name: str = "beta"
) -> list[tuple[Boundary, float]]:
    """Return pairs of boundary and weight, however one or several were given."""
    if isinstance(boundary, Boundary):
        if weight is None:
            raise ValueError(f"give {name}, such as {name}=1.0")
        pairs = [(boundary, weight)]
    else:
        if weight is not None:
            raise ValueError(
                f"each of several boundaries has its own {name}: [(boundary, {name}), ...]"
            )
        pairs = as_list(boundary, f"pairs (boundary, {name})")
    if not pairs:
        raise ValueError("expected at least one boundary")
    return [(one, check_number(name, strength, least=0)) for one, strength in pairs]
