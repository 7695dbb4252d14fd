"""The growing phrases of a batch: one forward pass over all candidates of a step.

The candidates of a phrase lie side by side at the next position; a mask lets each see the phrase
and itself. The drawn one's keys and values are the only ones to stay, and its hidden state gives
the logits of the step after. For models that do not allow this there are
`sasa_lib.decoding.repeated.RepeatedPhrases`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Protocol

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.generation import GenerationMixin

from sasa_lib.engine.models import blocks, body, decoder, head, is_own_head, text_config

# Families whose blocks take the drawn candidate alone; in others every candidate goes to the top.
NARROWING_FAMILIES = frozenset(
    {
        "falcon", "gemma2", "gemma3_text", "gpt_neox", "granite", "llama", "mistral", "opt",
        "phi3", "qwen2", "qwen3",
    }
)  # fmt: skip
Hidden = dict[int, torch.Tensor]  # by layer: states [rows, candidates, hidden_size]
WINDOWED, EVERYTHING = "sliding_attention", "full_attention"


class Draw(Protocol):
    """What decides which of a step's candidates [batch, candidates] becomes part of the phrase."""

    first: int  # how many candidates to judge before it is asked whether the draw is open

    def judge(self, hidden: Hidden) -> None:
        """Take notice of the states of the first candidates."""

    def undecided(self) -> tuple[torch.Tensor, int]:
        """Rows that the first candidates leave open, and up to which column they must be known."""

    def judge_further(self, hidden: Hidden, rows: torch.Tensor) -> None:
        """Take notice of the states of these rows' candidates behind the first ones."""

    def drawn(self) -> torch.Tensor:
        """Column of the drawn candidate, [batch, 1]."""


class Phrases:
    """Phrases whose candidates lie side by side.

    Parameters
    ----------
    model : PreTrainedModel
        One without an `obstacle`.
    layers : sequence of int
        Hidden states that a draw wants to see.
    with_logits : bool
        False for a model that only judges what another one says.
    """

    how = "side by side"

    def __init__(
        self, model: PreTrainedModel, layers: Sequence[int], *, with_logits: bool = True
    ) -> None:
        self.model = model
        self.layers = layers
        config = text_config(model)
        self.last = config.num_hidden_layers
        self.blocks = blocks(model)
        self.body = body(model)
        early = max(layers) < self.last and config.model_type in NARROWING_FAMILIES
        self.narrows_at = max(layers) if early else self.last
        self.types = getattr(config, "layer_types", None) or ()
        # A configuration may name a window that no layer uses.
        used = WINDOWED in self.types if self.types else getattr(config, "use_sliding_window", True)
        self.window = getattr(config, "sliding_window", None) if used else None
        # Some models drop their cache somewhere, such as Phi-3 behind its original context.
        prepare = getattr(type(model), "prepare_inputs_for_generation", None)
        self.asks = prepare not in (None, GenerationMixin.prepare_inputs_for_generation)
        self.dtype = model.get_input_embeddings().weight.dtype
        self.running: Hidden | None = None  # what the innermost forward pass has seen
        self.with_logits = with_logits
        self.keep_hidden_states = False
        self.hidden_states: list[tuple[torch.Tensor, ...]] = []

    def begin(
        self, input_ids: torch.Tensor, mask: torch.Tensor, max_length: int, candidates: int
    ) -> torch.Tensor | None:
        """Read the prompts, each distinct one once, and return the first logits."""
        prompts = [
            (*ids, *seen) for ids, seen in zip(input_ids.tolist(), mask.tolist(), strict=True)
        ]
        first = {prompt: row for row, prompt in reversed(list(enumerate(prompts)))}
        place = {prompt: i for i, prompt in enumerate(first)}
        rows = torch.tensor([place[prompt] for prompt in prompts], device=input_ids.device)
        distinct = torch.tensor(list(first.values()), device=input_ids.device)
        self.capacity = max(max_length, input_ids.shape[1]) + candidates
        logits = self._read(input_ids[distinct], mask[distinct], rows)
        self.ids = input_ids
        self.visible = torch.ones(
            len(input_ids), self.capacity, dtype=torch.bool, device=input_ids.device
        )
        self.visible[:, : self.length] = mask.bool()
        self.position = mask.sum(-1, keepdim=True)
        return logits

    def _read(
        self, ids: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor | None:
        """Read phrases into a new cache; give every one of `rows` its own, and its logits."""
        self.cache = _CandidateCache(self.last)
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
            "cache": self.cache,
            "use_cache": True,
        }
        logits = None
        if self.with_logits:
            logits = self._first_logits(inputs, rows)
        else:
            self.own_head = True
            self.body(**inputs)
        self.length = ids.shape[1]
        self.cache.expand(rows, self.capacity)
        return logits

    def _reread_where_the_model_does(self, candidates: torch.Tensor) -> None:
        """Read the phrases again if the model would, once a further token is behind them."""
        if not self.asks:
            return
        ids = torch.cat([self.ids, candidates[:, :1]], dim=1)
        mask = self.visible[:, : self.length + 1].long()
        inputs = self.model.prepare_inputs_for_generation(
            ids, next_sequence_length=1, cache=self.cache, attention_mask=mask, use_cache=True
        )
        if inputs.get("cache") is self.cache:
            return
        kept = self.keep_hidden_states, self.with_logits, self.own_head
        self.keep_hidden_states = self.with_logits = False
        # With the token behind them, since what it changes (Phi-3's rotations) is all before it.
        self._read(ids, mask, torch.arange(len(ids), device=ids.device))
        self.keep_hidden_states, self.with_logits, self.own_head = kept
        self.cache.shorten()
        self.length -= 1

    def _first_logits(self, inputs: dict[str, object], rows: torch.Tensor) -> torch.Tensor:
        final: list[torch.Tensor] = []
        hook = decoder(self.model).register_forward_hook(
            lambda _, args, output: final.append(getattr(output, "last_hidden_state", None))
        )
        try:
            output = self.model(
                **inputs, output_hidden_states=self.keep_hidden_states, logits_to_keep=1
            )
        finally:
            hook.remove()
        logits = output.logits[:, -1]
        self.own_head = bool(final) and final[0] is not None
        self.own_head = self.own_head and is_own_head(self.model, final[0][:, -1], logits)
        if self.keep_hidden_states:
            self.hidden_states.append(tuple(states[rows] for states in output.hidden_states))
        return logits[rows]

    def extend(
        self, candidates: torch.Tensor, draw: Draw, *, final: bool = False
    ) -> torch.Tensor | None:
        """Append the drawn one of the candidates [batch, candidates]; return the next logits.

        Above the highest layer that was asked for only the drawn candidate matters: where the
        family allows it, the others stop there. After the `final` draw nothing matters.
        """
        first = draw.first
        self._reread_where_the_model_does(candidates)

        def decide(hidden: Hidden, top: torch.Tensor) -> torch.Tensor:
            draw.judge(hidden)
            rows, last = draw.undecided()
            if len(rows):
                rest, rest_top = self._peek(candidates[rows, first:last], rows, first)
                draw.judge_further(rest, rows)
            if final and not self.keep_hidden_states:
                raise _Decided
            drawn = draw.drawn()
            states = _at(top, drawn.clamp(max=first - 1))
            if len(rows):
                late = drawn[rows] - first
                found = _at(rest_top, late.clamp(min=0))
                is_late, rows = (late[..., None] >= 0).to(top.device), rows.to(top.device)
                states[rows] = torch.where(is_late, found, states[rows])
            return states

        try:
            top = self._forward(candidates[:, :first], decide)
        except _Decided:
            return None
        drawn = draw.drawn()
        if self.keep_hidden_states:
            self.hidden_states[-1] = tuple(
                _at(states, drawn) if states.shape[1] > 1 else states
                for states in self.hidden_states[-1]
            )
        self.keep(drawn, candidates)
        return head(self.model, top[:, 0]) if self.own_head else top[:, 0]

    def look(self, candidates: torch.Tensor) -> Hidden:
        """States of candidates [batch, candidates], of which `keep` is then told the drawn one."""
        seen: Hidden = {}

        def stop(hidden: Hidden, top: torch.Tensor) -> torch.Tensor:
            seen.update(hidden)
            raise _Decided

        with suppress(_Decided):
            self._forward(candidates, stop)
        return seen

    def keep(self, drawn: torch.Tensor, candidates: torch.Tensor) -> None:
        """Make the candidates of these columns [batch, 1] part of the phrases."""
        self.cache.keep(drawn)
        self.ids = torch.cat([self.ids, candidates.gather(1, drawn)], dim=1)
        self.length += 1
        self.position = self.position + 1

    def _peek(
        self, candidates: torch.Tensor, rows: torch.Tensor, first: int
    ) -> tuple[Hidden, torch.Tensor]:
        """States of further candidates of some rows, up to where the draw is decided."""
        seen: list[tuple[Hidden, torch.Tensor]] = []

        def stop(hidden: Hidden, top: torch.Tensor) -> torch.Tensor:
            seen.append((hidden, top))
            raise _Decided

        with self.cache.only(rows, first), suppress(_Decided):
            self._forward(candidates, stop, rows)
        return seen[0]

    def _forward(
        self,
        candidates: torch.Tensor,
        decide: Callable[[Hidden, torch.Tensor], torch.Tensor],
        rows: torch.Tensor | slice = slice(None),
    ) -> torch.Tensor:
        """Run the model; `decide` turns the states where candidates may stop into the drawn one's.

        Returned are the drawn candidate's final states [rows, 1, hidden_size], or its logits if
        the model's head is not a plain one.
        """
        hidden: Hidden = {}
        outer, self.running = self.running, hidden
        given: dict[int, tuple[object, object]] = {}  # most blocks are given the same objects

        def alone(value: object) -> object:
            if id(value) not in given:
                found = _alone(value, width=candidates.shape[1], length=self.length)
                given[id(value)] = value, found
            return given[id(value)][1]

        def watch(layer: int, block: torch.nn.Module, args: tuple, kwargs: dict) -> tuple | None:
            if self.running is not hidden:  # a peek from within this pass has its own hooks
                return None
            states = args[0] if args else kwargs["hidden_states"]
            if layer in self.layers:
                hidden[layer] = states
            if layer < self.narrows_at:
                return None
            if layer == self.narrows_at:
                states = decide(hidden, states)
            kwargs = {
                name: states if name == "hidden_states" else alone(value)
                for name, value in kwargs.items()
            }
            return (states, *map(alone, args[1:])) if args else args, kwargs

        hooks = [
            block.register_forward_pre_hook(partial(watch, layer), with_kwargs=True)
            for layer, block in enumerate(self.blocks)
            if layer in self.layers or layer >= self.narrows_at
        ]
        try:
            output = (self.body if self.own_head else self.model)(
                input_ids=candidates,
                attention_mask=self._mask(candidates.shape[1], rows),
                position_ids=self.position[rows].expand(candidates.shape),
                cache=self.cache,
                use_cache=True,
                output_hidden_states=self.keep_hidden_states or not self.own_head,
            )
        finally:
            self.running = outer
            for hook in hooks:
                hook.remove()
        if self.keep_hidden_states:
            self.hidden_states.append(output.hidden_states)
        top = output.last_hidden_state if self.own_head else output.logits
        if self.narrows_at < self.last:
            return top
        if self.last in self.layers:
            hidden[self.last] = top if self.own_head else output.hidden_states[-1]
        return decide(hidden, top)

    def _mask(
        self, candidates: int, rows: torch.Tensor | slice
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Additive masks [rows, 1, candidates, length + candidates]."""
        prefix = self.visible[rows, : self.length]
        least = torch.finfo(self.dtype).min

        def additive(prefix: torch.Tensor) -> torch.Tensor:
            shape = len(prefix), 1, candidates, self.length + candidates
            mask = torch.full(shape, least, dtype=self.dtype, device=prefix.device)
            mask[..., : self.length].masked_fill_(prefix[:, None, None], 0)
            mask[..., self.length :].diagonal(dim1=-2, dim2=-1).zero_()
            return mask

        if not self.window:
            return additive(prefix)
        distance = self.length - torch.arange(self.length, device=prefix.device)
        sliding = additive(prefix & (distance < self.window))
        if not self.types:
            return sliding
        return {EVERYTHING: additive(prefix), WINDOWED: sliding}


class _Decided(Exception):
    """Not an error: it leaves a forward pass half-way."""


def _at(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """States [rows, 1, size] at one column a row, [rows, 1]."""
    columns = columns.to(states.device)
    return states.gather(1, columns[..., None].expand(-1, 1, states.shape[-1]))


def _alone(value: object, width: int, length: int) -> object:
    """What a block is given for all candidates of a step, as it is for a single one.

    The candidates share their position, and each sees the phrase and itself: so did the first.
    """
    if isinstance(value, tuple | list):
        return type(value)(_alone(item, width, length) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    if value.ndim == 4 and value.shape[1] == 1 and value.shape[-2] == width:
        return value[..., :1, : length + 1]
    if value.ndim >= 2 and value.shape[1] == width:
        return value[:, :1]
    return value


class _CandidateLayer(DynamicLayer):
    """One layer's keys and values: a kept phrase, and behind it the candidates of this step."""

    def expand(self, rows: torch.Tensor, capacity: int) -> None:
        self.length = self.keys.shape[-2]
        self.keys, self.values = (
            self._allocated(states[rows], capacity) for states in (self.keys, self.values)
        )

    def write(
        self, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor | None, first: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put candidates behind the phrase, and return the phrase with them."""
        self.candidates = first + keys.shape[-2]
        start, end = self.length + first, self.length + self.candidates
        if end > self.keys.shape[-2]:  # many tokens are as likely as the last of the candidates
            self.keys, self.values = (self._allocated(s, 2 * end) for s in (self.keys, self.values))
        found = []
        for states, new in ((self.keys, keys), (self.values, values)):
            if rows is None:
                states[:, :, start:end] = new
                found.append(states[:, :, :end])
            else:
                own = rows.to(states.device)
                states[own, :, start:end] = new
                found.append(torch.cat([states[own, :, : self.length], new], dim=-2))
        return tuple(found)

    def keep(self, rows: torch.Tensor, drawn: torch.Tensor) -> None:
        rows, drawn = rows.to(self.keys.device), drawn.to(self.keys.device)
        # Where only the drawn candidate came through, it already is where it belongs.
        if self.candidates > 1:
            for states in (self.keys, self.values):
                states[:, :, self.length] = states[rows, :, self.length + drawn[:, 0]]
        self.length += 1

    @staticmethod
    def _allocated(states: torch.Tensor, capacity: int) -> torch.Tensor:
        batch, heads, length, size = states.shape
        buffer = states.new_zeros(batch, heads, capacity, size)
        buffer[:, :, :length] = states
        return buffer


class _CandidateCache(Cache):
    """Preallocated cache whose candidates are written in place; nothing is concatenated a step."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_CandidateLayer() for _ in range(num_layers)])
        self.length: int | None = None
        self.rows: torch.Tensor | None = None
        self.first = 0

    @property
    def filled(self) -> list[_CandidateLayer]:
        """Layers that have keys and values of their own; others share them."""
        return [layer for layer in self.layers if layer.is_initialized]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self.layers[layer_idx]
        if self.length is None:
            return layer.update(key_states, value_states, *args, **kwargs)
        return layer.write(key_states, value_states, self.rows, self.first)

    def expand(self, rows: torch.Tensor, capacity: int) -> None:
        """Give every row of the batch its prompt's states, and room for `capacity` positions."""
        for layer in self.filled:
            layer.expand(rows, capacity)
        self.length = self.filled[0].length

    @contextmanager
    def only(self, rows: torch.Tensor, first: int) -> Iterator[None]:
        """Within it, candidates are those of some rows, to be put behind the `first` ones."""
        self.rows, self.first = rows, first
        try:
            yield
        finally:
            self.rows, self.first = None, 0

    def keep(self, drawn: torch.Tensor) -> None:
        """Make the drawn candidates [batch, 1] part of the phrases and forget the others."""
        rows = torch.arange(len(drawn), device=drawn.device)
        for layer in self.filled:
            layer.keep(rows, drawn)
        self.length += 1

    def shorten(self) -> None:
        """Forget the last token of every phrase."""
        for layer in self.filled:
            layer.length -= 1
        self.length -= 1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx) if self.length is None else self.length
