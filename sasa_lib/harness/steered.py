"""A model with the method that it is to be decoded by, as a harness names them: by text."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.decoding.accept import Accept
from sasa_lib.decoding.best_of import BestOf
from sasa_lib.decoding.method import Decoder, PlainSampling, mask_of
from sasa_lib.decoding.noise import at_places
from sasa_lib.decoding.pretrained import SETTINGS
from sasa_lib.decoding.sasa import SASA
from sasa_lib.engine.models import load_lm

# Of a harness's model arguments, those that are not SASA's.
ARGUMENTS = ("boundary", "accept", "best_of", "seed", "device", "dtype")


class Steered:
    """`generate` of a model by one method.

    A harness asks for a prompt as often as it wants, in whatever batches. The nth continuation of
    a prompt has noise that depends on seed, prompt and n alone, as if all had been asked at once.

    Parameters
    ----------
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    method : Decoder
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: Decoder
    ) -> None:
        self.model, self.tokenizer, self.method = model, tokenizer, method
        self._asked: Counter[bytes] = Counter()

    def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        """Continue prompts [batch, length]; options are those of `generate`."""
        mask = mask_of(input_ids, options)
        places = []
        for ids, seen in zip(input_ids.cpu().numpy(), mask.cpu().numpy(), strict=True):
            prompt = ids[seen.astype(bool)].tobytes()
            places.append(self._asked[prompt])
            self._asked[prompt] += 1
        with at_places(places):
            return self.model.generate(input_ids=input_ids, custom_generate=self.method, **options)


def load_steered(
    name: str,
    *,
    boundary: str | None = None,
    accept: float | None = None,
    best_of: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    **settings: Any,
) -> Steered:
    """Load a model and the method that decodes it.

    Parameters
    ----------
    name : str
        As for `sasa_lib.load_lm`.
    boundary : str, optional
        As for `SASA.from_pretrained`; None is the ready one of an embedded model.
    accept : float, optional
        Accept whole continuations above this margin; see `Accept`.
    best_of : int, optional
        Keep the best of so many; see `BestOf`.
    seed : int
    device, dtype : str
        As for `sasa_lib.load_lm`.
    **settings
        Of `SASA`, in place of those that its boundary recommends: beta, form, max_kl, ... With
        beta=0 tokens are sampled plainly.

    Raises
    ------
    ValueError
        There is no such argument, or accept and best_of are both given.
    """
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        known = ", ".join((*ARGUMENTS, *SETTINGS))
        raise ValueError(f"there is no model argument {unknown[0]!r}; there are {known}")
    if accept is not None and best_of is not None:
        raise ValueError("give accept or best_of, not both")
    method: Decoder = PlainSampling(seed)
    if settings.get("beta") != 0:
        method = SASA.from_pretrained(boundary or name, **settings, seed=seed)
    if accept is not None or best_of is not None:
        of_whole = SASA.from_pretrained(boundary or name).pairs[0][0]
        if accept is not None:
            method = Accept(of_whole, accept, then=method)
        else:
            method = BestOf(of_whole, best_of, then=method)
    return Steered(*load_lm(name, device=device, dtype=dtype), method)
