"""Whether a model is the one that a boundary was fitted on: by hidden states of a few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedModel

from sasa_lib.engine.models import language_model, text_config
from sasa_lib.subspace.hidden_states import check_layer, hidden_states

PROBE_TOKENS = 8  # by which a model is known again: hardly more than one to read
# Part of its states by which the same weights may be off: in float32 elsewhere, in another dtype.
SAME_WEIGHTS, OTHER_DTYPE = 1e-3, 0.1
SAME_READING = 1e-2  # and a text's in a batch


def check_reading(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Raise ValueError unless a text has the same states alone and beside a longer one.

    Compared are a few tokens, once for every model and choice of layers.
    """
    model = language_model(model)
    if tuple(layers) in _READ.setdefault(model, set()):
        return
    size = model.get_input_embeddings().weight.shape[0] - 1
    short = [i * size // 11 for i in (4, 5, 6, 7, 9)]
    alone = hidden_states(model, [short], layers)[0]
    beside = hidden_states(model, [short, [*short, short[0], short[2]]], layers)[0, :, : len(short)]
    alone, beside = alone.float().cpu(), beside.float().cpu()
    allowed = SAME_READING if model.dtype == torch.float32 else OTHER_DTYPE
    if not (alone - beside).norm() <= allowed * alone.norm():
        raise ValueError(
            f"the hidden states of {type(model).__name__} depend on what else is in the batch"
        )
    _READ[model].add(tuple(layers))


_READ: WeakKeyDictionary[PreTrainedModel, set[tuple[int, ...]]] = WeakKeyDictionary()


def probe_states(model: PreTrainedModel, layer: int) -> np.ndarray:
    """Hidden states by which a model is known again, whatever it is called.

    Parameters
    ----------
    model : PreTrainedModel
    layer : int
        As in `extract`.

    Returns
    -------
    numpy.ndarray of float32, shape [PROBE_TOKENS - 1, hidden_size]
        Of some tokens that are spread over the vocabulary; without the first position's.
    """
    model = language_model(model)
    size = model.get_input_embeddings().weight.shape[0]
    ids = [i * size // (PROBE_TOKENS + 1) for i in range(1, PROBE_TOKENS + 1)]
    return hidden_states(model, [ids], [check_layer(model, layer)])[0, 0, 1:].float().cpu().numpy()


def allowed_error(one: str, other: str) -> float:
    """By which share the states of the same weights, in these dtypes, may differ."""
    return SAME_WEIGHTS if one == other == "torch.float32" else OTHER_DTYPE


def check_states(
    model: PreTrainedModel, layer: int, states: np.ndarray, dtype: str, what: str
) -> None:
    """Raise ValueError unless a model has the hidden states of the one that is remembered.

    Parameters
    ----------
    model : PreTrainedModel
    layer : int
        As in `extract`.
    states : numpy.ndarray
        What `probe_states` gave for the remembered model.
    dtype : str
        That of its weights.
    what : str
        What remembers it, such as "this boundary was fitted on 'gpt2'".
    """
    size = text_config(model).hidden_size
    if states.shape[-1] != size:
        raise ValueError(
            f"{what}, whose hidden size is {states.shape[-1]}; {model.name_or_path!r} has {size}"
        )
    off = np.linalg.norm(probe_states(model, layer) - states) / np.linalg.norm(states)
    if not off <= allowed_error(dtype, str(model.dtype)):
        raise ValueError(
            f"{what}, and {model.name_or_path!r} has other hidden states (off by {off:.1%}): other "
            "weights, another adapter, a hook, or training mode; use the model it was fitted on, "
            "or fit one on this model"
        )
