"""Which way of growing phrases is right for a model, and the slower ways.

Nothing is guessed: `phrases_for` compares each way, on a few tokens, with reading whole phrases,
and refuses a model for which none is right.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

from sasa_lib.checks import first_line
from sasa_lib.decoding.prefix_cache import EVERYTHING, WINDOWED, Draw, Hidden, Phrases
from sasa_lib.engine.models import blocks, body, decoder, text_config
from sasa_lib.subspace.embeddings import hidden_states
from sasa_lib.subspace.probes import check_reading

# Part of the logits' or states' spread that a way may be off by: rounding, and no more.
TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
LOW_PRECISION_TOLERANCE = 0.2


class RepeatedPhrases:
    """Phrases that are repeated for every candidate: slower, and right for every causal model.

    It asks for a draw that the first candidates decide.

    Parameters
    ----------
    model, layers
        As for `Phrases`.
    cached : bool
        Give every candidate a copy of the phrase's cache. False: read every phrase anew for every
        candidate, for models that keep their state elsewhere.
    inputs : mapping, optional
        What `generate` passes beside token ids and their mask, such as images.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int],
        *,
        cached: bool = True,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.layers = layers
        self.cached = cached
        self.how = "in a copy of the phrase each" if cached else "the phrase read anew for each"
        self.inputs = dict(inputs or {})
        self.keep_hidden_states = False
        self.hidden_states: list[tuple[torch.Tensor, ...]] = []

    def begin(
        self, input_ids: torch.Tensor, mask: torch.Tensor, max_length: int, candidates: int
    ) -> torch.Tensor:
        """Read the prompts and return the first logits."""
        self.input_ids = input_ids
        self.state = {"attention_mask": mask, "use_cache": self.cached} | self.inputs
        if "position_ids" in inspect.signature(self.model.forward).parameters:
            self.state.setdefault("position_ids", (mask.cumsum(-1) - 1).clamp(min=0))
        if self.cached:
            self.state["cache"] = DynamicCache(config=text_config(self.model))
        inputs = self.model.prepare_inputs_for_generation(
            input_ids, is_first_iteration=True, **self.state
        )
        output = self.model(**inputs, output_hidden_states=self.keep_hidden_states)
        if self.keep_hidden_states:
            self.hidden_states.append(output.hidden_states)
        self._grow(output)
        return output.logits[:, -1]

    def extend(
        self, candidates: torch.Tensor, draw: Draw, *, final: bool = False
    ) -> torch.Tensor | None:
        """Append the drawn one of the candidates [batch, candidates]; return the next logits."""
        candidates = candidates[:, : draw.first]
        batch, width = candidates.shape
        rows = torch.arange(batch, device=candidates.device)
        state = dict(self.state)
        cache = state.pop("cache", None)
        repeated_ids, state = self.model._expand_inputs_for_generation(
            expand_size=width, input_ids=self.input_ids, **state
        )
        ids = torch.cat([repeated_ids, candidates.reshape(-1, 1)], dim=1)
        if cache is not None:
            cache.reorder_cache(rows.repeat_interleave(width))
            state |= {"cache": cache, "next_sequence_length": 1}
        inputs = self.model.prepare_inputs_for_generation(
            ids, is_first_iteration=not self.cached, **state
        )
        hidden: Hidden = {}

        def watch(layer: int, block: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            hidden[layer] = args[0] if args else kwargs["hidden_states"]

        # Not from the output: there, Mamba counts its layers from the first block's output.
        last = text_config(self.model).num_hidden_layers
        hooks = [
            block.register_forward_pre_hook(partial(watch, layer), with_kwargs=True)
            for layer, block in enumerate(blocks(self.model))
            if layer in self.layers
        ]

        def watch_top(module: torch.nn.Module, args: tuple, output: Any) -> None:
            if last in self.layers:
                hidden[last] = output.last_hidden_state

        hooks.append(decoder(self.model).register_forward_hook(watch_top))
        try:
            output = self.model(**inputs, output_hidden_states=self.keep_hidden_states)
        finally:
            for hook in hooks:
                hook.remove()
        draw.judge(
            {layer: states[:, -1].view(batch, width, -1) for layer, states in hidden.items()}
        )
        kept = rows * width + draw.drawn()[:, 0]
        self.input_ids = ids[kept]
        self._grow(output)
        if self.cached:
            self.state["cache"].reorder_cache(kept)
        if self.keep_hidden_states:
            self.hidden_states.append(tuple(states[kept, -1:] for states in output.hidden_states))
        return output.logits[kept, -1]

    def _grow(self, output: Any) -> None:
        """Take in what a forward pass has added to the phrases."""
        self.state = self.model._update_model_kwargs_for_generation(
            output, dict(self.state), is_encoder_decoder=False
        )
        if self.cached:  # what was read with the prompt is in the cache now
            for name in MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL:
                self.state.pop(name, None)
        else:
            self.state.pop("cache", None)


def obstacle(model: PreTrainedModel) -> str | None:
    """Why candidates of this model cannot be placed side by side at one position, if so.

    The position of a token may follow from where its key lies in the cache (ALiBi, GPT-Neo's
    windows), or a state may take the place of keys and values (Mamba). Whatever else may be in the
    way shows when `phrases_for` tries it.
    """
    text = text_config(model)
    attention = set(getattr(text, "layer_types", None) or (EVERYTHING,))
    implementation = model.config._attn_implementation
    if (
        "position_ids" not in inspect.signature(body(model).forward).parameters
        or getattr(text, "alibi", False)
        or attention - {EVERYTHING, WINDOWED}
        or text.model_type == "gpt_neo"
    ):
        return f"candidates of {model.config.model_type!r} models cannot be placed side by side"
    if implementation not in ("sdpa", "eager"):
        return f"{implementation!r} takes no masks (load with attn_implementation='sdpa')"
    return None


def phrases_for(
    model: PreTrainedModel, layers: Sequence[int], inputs: Mapping[str, Any] | None = None
) -> Phrases | RepeatedPhrases:
    """Return the fastest phrases that are right for a model, as a comparison shows.

    Parameters
    ----------
    model : PreTrainedModel
    layers : sequence of int
        Hidden states that a draw wants to see.
    inputs : mapping, optional
        What `generate` passes beside token ids and their mask, such as images. Only repeated
        phrases take them.
    """
    ways: dict[str, partial] = {
        "side by side": partial(Phrases, model, layers),
        "repeated": partial(RepeatedPhrases, model, layers),
        "anew": partial(RepeatedPhrases, model, layers, cached=False),
    }
    if inputs or obstacle(model):
        del ways["side by side"]
    shown = _SHOWN.setdefault(model, {})
    setting = tuple(layers), str(model.config._attn_implementation), model.training
    fault = None
    for name, way in ways.items():
        if (name, setting) not in shown:
            shown[name, setting] = _fault(model, layers, way)
        fault = shown[name, setting]
        if fault is None:
            return way(inputs=inputs) if inputs else way()
    raise ValueError(f"{type(model).__name__} cannot be steered: {fault}")


# For every model, by way and setting: None, or what is wrong.
_SHOWN: WeakKeyDictionary[PreTrainedModel, dict[tuple, str | None]] = WeakKeyDictionary()


def _fault(model: PreTrainedModel, layers: Sequence[int], way: partial) -> str | None:
    """Say what is wrong with a way of growing phrases, if anything, by two steps of few tokens."""
    size = text_config(model).hidden_size
    try:
        expected = _steps(model, layers, RepeatedPhrases(model, layers, cached=False))
        found = _steps(model, layers, way())
        check_reading(model, layers)
        alone = _last_states(model, layers)
    except ValueError as error:
        return first_line(error)
    except Exception as error:  # whatever a model's code may raise at what it does not expect
        return f"decoding a few tokens fails in its own code ({type(error).__name__})"
    if any(states.shape[-1] != size for states in expected if states.ndim == 3):
        return f"its hidden states are not of the {size} units that its configuration names"
    allowed = TOLERANCE.get(model.dtype, LOW_PRECISION_TOLERANCE)

    def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
        return not (other - one).norm() <= allowed * (one - one.mean()).norm()

    if any(map(differ, expected, found)):
        return "what it computes for a few tokens depends on how they are read"
    decoded = torch.stack([states[1, 0] for states in expected[2 : 2 + len(layers)]])
    if differ(decoded, alone):
        return "its hidden states while decoding are not those that a boundary is fitted on"
    return None


def _last_states(model: PreTrainedModel, layers: Sequence[int]) -> torch.Tensor:
    """States [layers, hidden_size] of a phrase of `_steps` with its first candidate, read alone."""
    size = len(model.get_input_embeddings().weight) - 1
    phrase = [(place + 1) * size // 11 for place in (3, 4, 5, 6, 8)]
    return hidden_states(model, [phrase], layers)[0, :, -1].float().cpu()


def _steps(
    model: PreTrainedModel, layers: Sequence[int], phrases: Phrases | RepeatedPhrases
) -> list[torch.Tensor]:
    """Logits and candidates' states of two steps of two phrases, one padded on the left."""
    weight = model.get_input_embeddings().weight

    def tensor(rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor(rows, device=weight.device)

    def tokens(rows: list[list[int]]) -> torch.Tensor:  # spread over the vocabulary
        return (tensor(rows) + 1) * (len(weight) - 1) // 11

    draw = _Script()
    mask = tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    found = [phrases.begin(tokens([[0, 0, 1, 2], [3, 4, 5, 6]]), mask, 6, 3)]
    for candidates, columns in (
        ([[1, 2, 7], [8, 3, 0]], [[1], [2]]),
        ([[4, 5, 0], [9, 7, 2]], [[2], [0]]),
    ):
        draw.columns = tensor(columns)
        found.append(phrases.extend(tokens(candidates), draw))
        found += [draw.hidden[layer] for layer in layers]
    return [step.float().cpu() for step in found]


class _Script:
    """A draw whose outcome is given."""

    first = 3
    columns: torch.Tensor
    hidden: Hidden

    def judge(self, hidden: Hidden) -> None:
        self.hidden = dict(hidden)

    def undecided(self) -> tuple[torch.Tensor, int]:
        return self.columns[:0, 0], 0

    def judge_further(self, hidden: Hidden, rows: torch.Tensor) -> None:
        raise AssertionError("nothing is undecided")

    def drawn(self) -> torch.Tensor:
        return self.columns
