"""Self-disciplined autoregressive sampling (SASA) for `generate(custom_generate=...)`.

One step for a phrase c and its candidates x, the tokens that survive top-k, top-p and every other
logits processor (Ko et al. 2025, arXiv 2410.03818, section 4):

1. one forward pass places all candidates side by side at the next position, each seeing the
   phrase and itself;
2. the margin of a candidate is that of its own hidden state at the boundary's layer;
3. new logit(x) = logit(x) + beta * g(margin(x)), and the next token is drawn from its softmax;
4. only the drawn candidate's keys and values are kept, and its hidden state already gives the
   logits of the step after.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.generation import GenerateDecoderOnlyOutput, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from sasa_lib.boundary import Boundary
from sasa_lib.embeddings import check_layer
from sasa_lib.models import head, is_own_head, text_config

FORMS = ("margin", "softmax", "posterior")
POSTERIOR_SLOPE = 3.0  # log-odds of nontoxic per standard deviation of the margin
# Families whose blocks take the drawn candidate alone; in others every candidate goes to the top.
NARROWING_FAMILIES = frozenset(
    {
        "falcon", "gemma2", "gemma3_text", "gpt_neox", "granite", "llama", "mistral", "opt",
        "phi3", "qwen2", "qwen3",
    }
)  # fmt: skip


class SASA:
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
        "posterior" (not in the paper): log sigmoid(3 * scaled margin), the log-probability of
        nontoxic, so p * P(nontoxic)^beta; candidates that are safe already stay as they are.
    scaled : bool
        Use margins in units of the training data's standard deviation, so that beta means the
        same on every model and layer. False: raw distances, as published.
    max_candidates : int
        Largest number of candidates a step where `top_k` does not give one.
    record : bool
        Keep every step for `trace`.

    Notes
    -----
    With `do_sample=False` the argmax of the re-weighted distribution is taken. The phrase's
    embedding is the hidden state of its last token, the candidate, also where the boundary was
    fitted on means.

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
        max_candidates: int = 50,
        record: bool = False,
    ) -> None:
        if isinstance(boundary, Boundary):
            if beta is None:
                raise ValueError("give beta, such as SASA(boundary, beta=1.0)")
            pairs = [(boundary, beta)]
        else:
            if beta is not None:
                raise ValueError(
                    "each of several boundaries has its own beta: [(boundary, beta), ...]"
                )
            pairs = list(boundary)
        if not pairs:
            raise ValueError("SASA needs at least one boundary")
        for _, strength in pairs:
            if not 0 <= strength < float("inf"):
                raise ValueError(f"beta must be a number of at least 0, got {strength}")
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; known are {', '.join(FORMS)}")
        if max_candidates < 1:
            raise ValueError(f"max_candidates must be at least 1, got {max_candidates}")
        self.pairs = pairs
        self.form = form
        self.scaled = scaled
        self.max_candidates = max_candidates
        self.record = record
        self._steps: list[dict[str, torch.Tensor]] = []
        self._warned = False

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
        self._check(model, input_ids, generation_config, model_kwargs)
        self._steps = []
        mask = model_kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        limit = generation_config.top_k or self.max_candidates
        pad = generation_config._pad_token_tensor
        scores, raw_logits = [], []

        phrases = _Phrases(model, [boundary.layer for boundary, _ in self.pairs])
        logits = phrases.begin(input_ids, mask, stopping_criteria.max_length, limit)
        unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        while True:
            processed = logits_processor(input_ids, logits.float())
            reference, candidates = processed.topk(min(limit, processed.shape[-1]), dim=-1)
            self._warn_if_capped(generation_config, processed, limit)

            if generation_config.output_logits:
                raw_logits.append(logits)

            choose = partial(self._choose, reference, generation_config.do_sample)
            (drawn, weighted, margins), logits = phrases.extend(candidates, choose)
            tokens = candidates.gather(1, drawn).squeeze(1)

            if self.record:
                self._remember(candidates, reference, weighted, margins, drawn, unfinished)
            if generation_config.output_scores:
                empty = torch.full_like(processed, float("-inf"))
                scores.append(empty.scatter(1, candidates, weighted))
            if pad is not None:
                tokens = torch.where(unfinished, tokens, pad)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
            if streamer is not None:
                streamer.put(tokens.cpu())
            unfinished &= ~stopping_criteria(input_ids, processed)
            if not unfinished.any():
                break
        if streamer is not None:
            streamer.end()
        if not generation_config.return_dict_in_generate:
            return input_ids
        return GenerateDecoderOnlyOutput(
            sequences=input_ids,
            scores=tuple(scores) or None,
            logits=tuple(raw_logits) or None,
        )

    def describe(self) -> dict[str, object]:
        """What a run needs to know to be told from another: every parameter and boundary."""
        betas = [beta for _, beta in self.pairs]
        return {
            "beta": betas[0] if len(betas) == 1 else betas,
            "form": self.form,
            "scaled": self.scaled,
            "max_candidates": self.max_candidates,
            "boundaries": [boundary.fingerprint() for boundary, _ in self.pairs],
        }

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

    def _choose(
        self, reference: torch.Tensor, do_sample: bool, hidden: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw a candidate [batch, 1] from the re-weighted logits [batch, candidates].

        `hidden` holds the candidates' states at each boundary's layer. Returned with the draw are
        the new logits and the margins from the first boundary.
        """
        margins = [
            self._margins(boundary, states)
            for (boundary, _), states in zip(self.pairs, hidden, strict=True)
        ]
        weighted = reference
        for (boundary, beta), g in zip(self.pairs, margins, strict=True):
            if self.form == "softmax":
                g = g.masked_fill(reference == float("-inf"), float("-inf")).softmax(-1)
            elif self.form == "posterior":
                log_odds = POSTERIOR_SLOPE * (g if self.scaled else g / boundary.scale)
                g = torch.nn.functional.logsigmoid(log_odds)
            weighted = weighted + beta * g
        if do_sample:
            drawn = torch.multinomial(weighted.softmax(-1), 1)
        else:
            drawn = weighted.argmax(-1, keepdim=True)
        return drawn, weighted, margins[0]

    def _margins(self, boundary: Boundary, hidden: torch.Tensor) -> torch.Tensor:
        normal, midpoint = boundary.tensors(hidden.device)
        margins = (hidden.float() - midpoint) @ normal
        return margins / boundary.scale if self.scaled else margins

    def _remember(
        self,
        candidates: torch.Tensor,
        reference: torch.Tensor,
        weighted: torch.Tensor,
        margins: torch.Tensor,
        drawn: torch.Tensor,
        unfinished: torch.Tensor,
    ) -> None:
        entry = {
            "candidates": candidates,
            "reference": reference,
            "weighted": weighted,
            "margin": margins,
            "drawn": drawn,
            "unfinished": unfinished,
        }
        self._steps.append({name: value.clone().cpu() for name, value in entry.items()})

    def _check(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        config: GenerationConfig,
        model_kwargs: dict[str, object],
    ) -> None:
        if model.config.is_encoder_decoder:
            raise ValueError("SASA steers decoder-only language models, not encoder-decoder ones")
        if (config.num_beams or 1) > 1:
            raise ValueError("SASA samples; it does not search beams: leave num_beams at 1")
        if model_kwargs.get("inputs_embeds") is not None:
            raise ValueError("SASA continues token ids: pass input_ids, not inputs_embeds")
        if getattr(model_kwargs.get("cache"), "_is_user_defined", False):
            raise ValueError("SASA builds its own cache: do not pass cache")
        parameters = inspect.signature(model.base_model.forward).parameters
        text = text_config(model)
        attention = set(getattr(text, "layer_types", None) or ("full_attention",))
        if (
            "position_ids" not in parameters
            or getattr(text, "alibi", False)
            or attention - {"full_attention", "sliding_attention"}
            or text.model_type == "gpt_neo"  # masks its windows by where a key lies in the cache
        ):
            raise ValueError(
                f"SASA does not support {model.config.model_type!r} models: their candidates "
                "cannot be placed side by side at one position"
            )
        if model.config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError(
                f"SASA needs attention masks of its own, which "
                f"{model.config._attn_implementation!r} does not take: load the model with "
                "attn_implementation='sdpa'"
            )
        if input_ids.device != model.device:
            raise ValueError(
                f"the prompt is on {input_ids.device}, the model on {model.device}: pass "
                "tokenizer(..., return_tensors='pt').to(model.device)"
            )
        for boundary, _ in self.pairs:
            boundary.check_model(model)
            check_layer(model, boundary.layer)

    def _warn_if_capped(
        self, config: GenerationConfig, processed: torch.Tensor, limit: int
    ) -> None:
        if config.top_k or self._warned:
            return
        if (processed > float("-inf")).sum(-1).max() > limit:
            self._warned = True
            warnings.warn(
                f"more than {limit} tokens survive sampling's filters; SASA considers the {limit} "
                "likeliest (give top_k, or SASA(..., max_candidates=...))",
                stacklevel=3,
            )


def divergence(trace: pd.DataFrame) -> pd.Series:
    """KL divergence from the reference of every step of a trace.

    Parameters
    ----------
    trace : pandas.DataFrame
        `SASA.trace`.

    Returns
    -------
    pandas.Series of float, nats, indexed by sequence and step
        KL(q || p) of the re-weighted distribution q to the reference p over the candidates.
    """
    log_ratio = trace["new_logprob"] - trace["reference_logprob"]
    terms = np.exp(trace["new_logprob"]) * log_ratio
    return terms.groupby([trace["sequence"], trace["step"]]).sum()


class _Phrases:
    """The growing phrases of a batch: their cache, positions and next-token logits."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        self.model = model
        self.layers = layers
        config = text_config(model)
        self.last = config.num_hidden_layers
        self.blocks = next(
            module
            for module in model.base_model.modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == self.last
        )
        highest = max(layers)
        early = highest < self.last and config.model_type in NARROWING_FAMILIES
        self.narrows_at = highest if early else self.last
        self.window = getattr(config, "sliding_window", None)
        self.mixed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        self.dtype = model.get_input_embeddings().weight.dtype

    def begin(
        self, input_ids: torch.Tensor, mask: torch.Tensor, max_length: int, candidates: int
    ) -> torch.Tensor:
        """Read the prompts, each distinct one once, and return the first logits."""
        distinct, rows = torch.unique(
            torch.stack([input_ids, mask.to(input_ids.dtype)], dim=-1), dim=0, return_inverse=True
        )
        ids, distinct_mask = distinct.unbind(-1)
        self.cache = _CandidateCache(text_config(self.model).num_hidden_layers)
        output = self.model(
            input_ids=ids,
            attention_mask=distinct_mask,
            position_ids=(distinct_mask.cumsum(-1) - 1).clamp(min=0),
            cache=self.cache,
            use_cache=True,
            output_hidden_states=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1]
        self.own_head = is_own_head(self.model, output.hidden_states[-1][:, -1], logits)
        self.length = input_ids.shape[1]
        self.cache.expand(rows, max(max_length, self.length) + candidates)
        self.visible = torch.ones(
            len(input_ids), max_length + candidates, dtype=torch.bool, device=input_ids.device
        )
        self.visible[:, : self.length] = mask.bool()
        self.position = mask.sum(-1, keepdim=True)
        return logits[rows]

    def extend(
        self, candidates: torch.Tensor, choose: Callable[[list[torch.Tensor]], tuple]
    ) -> tuple[tuple, torch.Tensor]:
        """Append one of the candidates [batch, candidates] to each phrase.

        `choose` gets the candidates' states at each layer that was asked for, and returns a tuple
        whose first item is the drawn column, [batch, 1]. Returned are this tuple and the logits
        of the tokens after. Above the highest of those layers only the drawn candidate matters:
        where the family allows it, the others stop there.
        """
        hidden: dict[int, torch.Tensor] = {}
        chosen: list[tuple] = []

        def watch(layer: int, block: torch.nn.Module, args: tuple, kwargs: dict) -> tuple | None:
            if layer in self.layers:
                hidden[layer] = args[0] if args else kwargs["hidden_states"]
            if layer < self.narrows_at:
                return None
            if not chosen:
                chosen.append(choose([hidden[layer] for layer in self.layers]))
            narrowed = partial(_narrowed, drawn=chosen[0][0], width=candidates.shape[1])
            return tuple(map(narrowed, args)), {k: narrowed(v) for k, v in kwargs.items()}

        hooks = [
            block.register_forward_pre_hook(partial(watch, layer), with_kwargs=True)
            for layer, block in enumerate(self.blocks)
            if layer in self.layers or layer >= self.narrows_at
        ]
        try:
            output = (self.model.base_model if self.own_head else self.model)(
                input_ids=candidates,
                attention_mask=self._mask(candidates.shape[1]),
                position_ids=self.position.expand(candidates.shape),
                cache=self.cache,
                use_cache=True,
                output_hidden_states=not self.own_head and self.last in self.layers,
            )
        finally:
            for hook in hooks:
                hook.remove()
        if not chosen:
            if self.last in self.layers:
                hidden[self.last] = (
                    output.last_hidden_state if self.own_head else output.hidden_states[-1]
                )
            chosen.append(choose([hidden[layer] for layer in self.layers]))
        drawn = chosen[0][0]
        self.cache.keep(drawn)
        self.length += 1
        self.position = self.position + 1
        states = output.last_hidden_state if self.own_head else output.logits
        if states.shape[1] > 1:
            states = states.gather(1, drawn[:, :, None].expand(-1, 1, states.shape[-1]))
        return chosen[0], head(self.model, states[:, 0]) if self.own_head else states[:, 0]

    def _mask(self, candidates: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Additive masks [batch, 1, candidates, length + candidates]."""
        batch = len(self.visible)
        device = self.visible.device
        itself = torch.eye(candidates, dtype=torch.bool, device=device)
        itself = itself.expand(batch, candidates, candidates)

        def additive(prefix: torch.Tensor) -> torch.Tensor:
            prefix = prefix[:, None].expand(batch, candidates, self.length)
            seen = torch.cat([prefix, itself], dim=-1)[:, None]
            mask = torch.zeros(seen.shape, dtype=self.dtype, device=device)
            return mask.masked_fill(~seen, torch.finfo(self.dtype).min)

        prefix = self.visible[:, : self.length]
        if not self.window:
            return additive(prefix)
        distance = self.length - torch.arange(self.length, device=device)
        sliding = additive(prefix & (distance < self.window))
        if not self.mixed:
            return sliding
        return {"full_attention": additive(prefix), "sliding_attention": sliding}


def _narrowed(value: object, drawn: torch.Tensor, width: int) -> object:
    """What a block is given, for all candidates, as it is for the drawn one alone."""
    if isinstance(value, tuple | list):
        return type(value)(_narrowed(item, drawn, width) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    rows = torch.arange(len(drawn), device=drawn.device)
    if value.ndim == 4 and value.shape[1] == 1 and value.shape[-2] == width:
        # A mask [batch, 1, candidates, phrase + candidates]: the drawn one sees what it saw.
        seen = value[rows, 0, drawn[:, 0]]
        itself = seen.gather(1, drawn + value.shape[-1] - width)
        return torch.cat([seen[:, :-width], itself], dim=1)[:, None, None]
    if value.ndim >= 2 and value.shape[:2] == (len(drawn), width):
        return value[rows, drawn[:, 0]][:, None]
    return value


class _CandidateLayer(DynamicLayer):
    """One layer's keys and values: a kept phrase, and behind it the candidates of this step."""

    def __init__(self) -> None:
        super().__init__()
        self.length = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.length is None:
            return super().update(key_states, value_states)
        self.width = key_states.shape[-2]
        end = self.length + self.width
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def expand(self, rows: torch.Tensor, capacity: int) -> None:
        self.length = self.keys.shape[-2]
        self.keys, self.values = (
            self._allocated(states, rows, capacity) for states in (self.keys, self.values)
        )

    def _allocated(self, states: torch.Tensor, rows: torch.Tensor, capacity: int) -> torch.Tensor:
        _, heads, length, size = states.shape
        buffer = states.new_zeros(len(rows), heads, capacity, size)
        buffer[:, :, :length] = states[rows]
        return buffer

    def keep(self, drawn: torch.Tensor) -> None:
        rows = torch.arange(len(drawn), device=drawn.device)
        # Where only the drawn candidate came through, it already is where it belongs.
        if self.width > 1:
            for states in (self.keys, self.values):
                states[:, :, self.length] = states[rows, :, self.length + drawn[:, 0]]
        self.length += 1

    def get_seq_length(self) -> int:
        return super().get_seq_length() if self.length is None else self.length


class _CandidateCache(Cache):
    """Preallocated cache whose candidates are written in place; nothing is concatenated a step."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_CandidateLayer() for _ in range(num_layers)])

    def expand(self, rows: torch.Tensor, capacity: int) -> None:
        """Give every row of the batch its prompt's states, and room for `capacity` positions."""
        for layer in self.layers:
            layer.expand(rows, capacity)

    def keep(self, drawn: torch.Tensor) -> None:
        """Make the drawn candidates [batch, 1] part of the phrases and forget the others."""
        for layer in self.layers:
            layer.keep(drawn)
