"""Gumbel noise that belongs to a token, so that all methods draw with the same.

x = argmax logit(x) + noise(x), with independent Gumbel noise, is a draw from softmax(logit). Here
noise(x) is a function of the seed, the prompt, how often it was there before, the step and x:
neither of its rank among the candidates nor of the batch. So wherever two methods give two tokens
the same logits, they draw the same one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from itertools import takewhile

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

# They look at the scores alone, so behind top-k they may as well see the k that are left.
SCORE_WARPERS = (
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
)
TIES = 8  # tokens as likely as the k-th for which one partial sort is enough
# Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators; as signed integers.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


_PLACES: ContextVar[list[int] | None] = ContextVar("_PLACES", default=None)


class Noise:
    """Gumbel noise of tokens at each step of a call, for every sequence of a batch.

    Parameters
    ----------
    seed : int or None
        None: one is drawn from torch's generator.
    input_ids, mask : torch.Tensor, shape [batch, length]
        Prompts and which of their positions are not padding. Of equal prompts the second, third
        and so on have noise of their own; see `places_of`.
    """

    def __init__(self, seed: int | None, input_ids: torch.Tensor, mask: torch.Tensor) -> None:
        seed = int(torch.randint(2**63 - 1, (1,))) if seed is None else seed
        prompts = [
            ids[seen.astype(bool)].tobytes()
            for ids, seen in zip(input_ids.cpu().numpy(), mask.cpu().numpy(), strict=True)
        ]
        keys = []
        for prompt, place in zip(prompts, places_of(prompts), strict=True):
            digest = hashlib.sha256(f"{seed} {place} ".encode() + prompt).digest()
            keys.append(int.from_bytes(digest[:8], "big", signed=True))
        self.keys = torch.tensor(keys, device=input_ids.device)[:, None]  # [batch, 1]
        self.step = -1

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        """Noise of tokens [batch, n] at one more step, float32 [batch, n]."""
        self.step += 1
        return self.of(tokens)

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """Noise of tokens [batch, n] at this step, float32 [batch, n]."""
        of_step = _mixed(self.keys + torch.full_like(self.keys, self.step) * GAMMA)
        bits = _mixed(of_step + (tokens + 1) * GAMMA) >> 11 & (1 << 53) - 1
        # In float32 a uniform number near 0 is fine-grained, which is where the noise is large.
        uniform = (bits.to(torch.float32) * 2.0**-53).clamp(2.0**-54, 1 - 2.0**-24)
        return -(-torch.log1p(-uniform)).log()


def places_of(prompts: Sequence[Hashable]) -> list[int]:
    """Place of each sequence among those of its prompt: how often it was there before.

    Unless a method draws some sequences of a call anew, and has said which: `at_places`.
    """
    if (places := _PLACES.get()) is not None:
        return places
    before: Counter[Hashable] = Counter()
    places = []
    for prompt in prompts:
        places.append(before[prompt])
        before[prompt] += 1
    return places


@contextmanager
def at_places(places: list[int]) -> Iterator[None]:
    """Let the noise of a call within be that of sequences at these places."""
    token = _PLACES.set(places)
    try:
        yield
    finally:
        _PLACES.reset(token)


def _mixed(state: torch.Tensor) -> torch.Tensor:
    """Return the output of SplitMix64 for states, int64; its products wrap."""
    for shift, factor in MIX:
        state = (state ^ (state >> shift & (1 << 64 - shift) - 1)) * factor
    return state ^ (state >> 31 & (1 << 33) - 1)


def candidates_of(
    processors: LogitsProcessorList,
    input_ids: torch.Tensor,
    logits: torch.Tensor,
    most: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Scores and token ids of what survives all logits processors.

    Parameters
    ----------
    processors : LogitsProcessorList
        As `generate` makes it, a caller's own among them; each is called once.
    input_ids : torch.Tensor, shape [batch, length]
    logits : torch.Tensor, shape [batch, vocabulary]
    most : int, optional
        Keep only so many of the likeliest.

    Returns
    -------
    scores : torch.Tensor, shape [batch, n]
        What a processor removed has the score -inf. Of the tokens that are as likely as the k-th,
        top-k keeps all.
    tokens : torch.Tensor of int64, shape [batch, n]
    survivors : int
        How many there are at most in a row, before `most`.
    """
    # Top-k and the filters behind it, on few tokens, always alike: of equally likely ones top-p
    # leaves those that sorting puts there.
    at = next((i for i, p in enumerate(processors) if isinstance(p, TopKLogitsWarper)), None)
    tokens = None
    if at is not None:
        behind = takewhile(lambda p: isinstance(p, SCORE_WARPERS), processors[at + 1 :])
        filters = LogitsProcessorList(behind)
        further = LogitsProcessorList(processors[at + 1 + len(filters) :])
        logits = LogitsProcessorList(processors[:at])(input_ids, logits)
        scores, tokens = _top(logits, min(processors[at].top_k, logits.shape[-1]))
        scores = filters(input_ids, scores)
        processors = further
        if further:
            logits = torch.full_like(logits, float("-inf")).scatter(1, tokens, scores)
    if at is None or processors:
        scores, tokens = processors(input_ids, logits), None
    number = (~(scores == float("-inf"))).sum(-1).max()
    survivors, is_finite = torch.stack([number, scores.amax(-1).isfinite().all()]).tolist()
    if tokens is None:
        scores, tokens = scores.topk(max(1, min(survivors, most or survivors)), dim=-1)
    if not is_finite:  # NaN counts as best
        _check(scores)
    if most is not None and scores.shape[-1] > most:
        scores, order = scores.topk(most, dim=-1)
        tokens = tokens.gather(1, order)
    return scores, tokens, survivors


def _top(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best of a row and all that equal the last of them, -inf behind."""
    found, tokens = scores.topk(min(k + TIES, scores.shape[-1]), dim=-1)
    least = found[:, k - 1 : k]
    if found.shape[-1] < scores.shape[-1] and (found[:, -1:] == least).any():
        number = int((scores >= least).sum(-1).max())
        found, tokens = scores.topk(number, dim=-1)
    width = max(k, int((found >= least).sum(-1).max()))
    found, tokens = found[:, :width], tokens[:, :width]
    return found.masked_fill(found < least, float("-inf")), tokens


def _check(scores: torch.Tensor) -> None:
    """Raise ValueError unless the best score of every row is finite: NaN counts as best."""
    best = scores.amax(-1)
    if best.isfinite().all():
        return
    if (best == float("-inf")).any():
        raise ValueError("the logits processors leave no token that could be drawn")
    raise ValueError(
        "the model's logits are not finite, so nothing can be drawn: load it with "
        "dtype='float32' or 'bfloat16'; float16 overflows easily"
    )


def keyed_draw(
    processors: LogitsProcessorList,
    seed: int | None,
    input_ids: torch.Tensor,
    mask: torch.Tensor | None,
    config: GenerationConfig,
) -> tuple[LogitsProcessorList, GenerationConfig]:
    """One processor in place of all: of what they leave, only what `Noise` draws is left.

    Without sampling they stay as they are, but for a check that the logits are finite. The config
    says how the token that is left is taken: as the best one, since sampling among one would
    draw a random number for every token of the vocabulary.
    """
    mask = torch.ones_like(input_ids) if mask is None else mask
    noise = Noise(seed, input_ids, mask) if config.do_sample else None
    decided = copy(config)
    decided.do_sample = False
    return LogitsProcessorList([_Drawn(processors, noise)]), decided


class _Drawn(LogitsProcessor):
    def __init__(self, processors: LogitsProcessorList, noise: Noise | None) -> None:
        self.processors = processors
        self.noise = noise

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        if self.noise is None:
            scores = self.processors(input_ids, scores)
            _check(scores)
            return scores
        logits, tokens, _ = candidates_of(self.processors, input_ids, scores)
        drawn = tokens.gather(1, (logits + self.noise.next(tokens)).argmax(-1, keepdim=True))
        return torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)
