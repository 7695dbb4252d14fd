"""Hidden states of token sequences, no further up than they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from sasa_lib.checks import check_number
from sasa_lib.engine.models import blocks, body, language_model, reading, text_config


def check_layer(model: PreTrainedModel, layer: int | float) -> int:
    """Return a layer's index counted from 0, or raise ValueError if the model lacks it.

    A float strictly between 0 and 1 is a share of the model's depth: 0.5 is the middle layer.
    """
    last = text_config(model).num_hidden_layers
    layer = check_number("layer", layer)
    chosen = round(layer * last) if 0 < layer < 1 else layer
    if chosen != int(chosen) or not -last - 1 <= chosen <= last:
        raise ValueError(
            f"{model.name_or_path} has no layer {layer:g}; choose 0 (token embeddings) to {last} "
            f"(after the final norm), -1 to {-last - 1} from the end, or a share of the depth "
            "between 0 and 1 such as 0.5"
        )
    return int(chosen) % (last + 1)


@torch.inference_mode()
def hidden_states(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], layers: Sequence[int]
) -> torch.Tensor:
    """Hidden states of token ids, [batch, layers, length, hidden_size], padded on the right.

    The blocks above the highest of `layers` are not computed. Padding on the right is never
    attended to by a causal model, whatever its positions.
    """
    model = language_model(model)
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    found: dict[int, torch.Tensor] = {}
    highest = max(layers)

    def watch(layer: int, block: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        found[layer] = args[0] if args else kwargs["hidden_states"]
        if layer == highest:
            raise _Seen

    hooks = [
        block.register_forward_pre_hook(partial(watch, layer), with_kwargs=True)
        for layer, block in enumerate(blocks(model))
        if layer in layers
    ]
    try:
        found[highest] = body(model)(**reading(body(model), ids, mask)).last_hidden_state
    except _Seen:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    size = text_config(model).hidden_size
    for layer, states in found.items():
        if states.shape[:2] != ids.shape:
            raise ValueError(
                f"{type(model).__name__} reads positions of its own beside those of the text"
            )
        if states.shape[2:] != (size,):
            raise ValueError(
                f"layer {layer} of {model.name_or_path} has states of shape "
                f"{tuple(states.shape[2:])} instead of {size} units; choose another layer"
            )
    states = torch.stack([found[layer].to(found[highest].device) for layer in layers], dim=1)
    if not states[mask.bool().to(states.device)[:, None].expand(states.shape[:3])].isfinite().all():
        raise ValueError(
            f"the hidden states of {model.name_or_path} are not finite for some text: load the "
            "model with dtype='float32' or 'bfloat16'; float16 overflows easily"
        )
    return states


class _Seen(Exception):
    """Not an error: the blocks above are of no interest."""
