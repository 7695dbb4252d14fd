"""A model with the method that it is to be decoded by, as a harness names them: by text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.decoding.accept import Accept
from sasa_lib.decoding.best_of import BestOf
from sasa_lib.decoding.method import Decoder, PlainSampling, mask_of
from sasa_lib.decoding.noise import at_places
from sasa_lib.decoding.pretrained import SETTINGS
from sasa_lib.decoding.sasa import SASA
from sasa_lib.engine.models import EMBEDDED, load_lm
from sasa_lib.subspace.boundary import Boundary

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

    def generate(
        self, input_ids: torch.Tensor, given: Sequence[int | None] = (), **options: Any
    ) -> torch.Tensor:
        """Continue prompts.

        Parameters
        ----------
        input_ids : torch.Tensor, shape [batch, length]
        given : sequence of int or None, length batch
            Which continuation of its prompt each is, from 0; None or nothing: the next.
        **options
            Of `generate`.
        """
        mask = mask_of(input_ids, options)
        asked, places = self._asked.copy(), []
        rows = zip(input_ids.cpu().numpy(), mask.cpu().numpy(), strict=True)
        for (ids, seen), place in zip_longest(rows, given):
            if place is None:
                prompt = ids[seen.astype(bool)].tobytes()
                place, asked[prompt] = asked[prompt], asked[prompt] + 1
            places.append(place)
        with at_places(places):
            sequences = self.model.generate(
                input_ids=input_ids, custom_generate=self.method, **options
            )
        self._asked = asked  # not where it failed
        return sequences


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
        method = SASA.from_pretrained(_named(name, boundary), **settings, seed=seed)
    if accept is not None or best_of is not None:
        of_whole = Boundary.from_pretrained(_named(name, boundary))
        if accept is not None:
            method = Accept(of_whole, accept, then=method)
        else:
            method = BestOf(of_whole, best_of, then=method)
    return Steered(*load_lm(name, device=device, dtype=dtype), method)


def _named(model: str, boundary: str | None) -> str:
    if boundary is None and model not in EMBEDDED:
        raise ValueError(
            f"there is no ready boundary for {model!r}: give boundary=FOLDER, which python -m "
            f"sasa_lib fit {model} --out FOLDER makes, or beta=0 for plain sampling"
        )
    return boundary or model
