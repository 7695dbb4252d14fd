"""Sentence embeddings: a language model's own hidden states, pooled over a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.models import text_config

POOLINGS = ("last", "mean")


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset | Sequence[str],
    *,
    layers: Sequence[int] = (-1,),
    pooling: str = "last",
    batch_tokens: int = 4096,
    progress: bool = True,
) -> np.ndarray:
    """Embed every text of a corpus at the chosen layers, in one forward pass per text.

    Parameters
    ----------
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    corpus : datasets.Dataset or sequence of str
        Rows with `prompt` and `response`, or plain texts. The prompt is context: tokenised
        apart and placed before the response, just as generation places it.
    layers : sequence of int
        Indices into the hidden states: 0 is the token embedding, l the output of block l, and -1
        (or the number of blocks) the last one after the model's final norm.
    pooling : {"last", "mean"}
        The hidden state of the last token, or the mean over the response's tokens. The
        very first position of the sequence is left out of the mean where anything else is left:
        it is an attention sink whose state says nothing about the text.
    batch_tokens : int
        Largest number of tokens in one forward pass, padding included. It does not change the
        result beyond floating-point rounding.
    progress : bool
        Show a progress bar.

    Returns
    -------
    numpy.ndarray of float32, shape [n, len(layers), hidden_size]

    Raises
    ------
    ValueError
        Unknown pooling or layer, no texts, a text without tokens or longer than the model's
        context, or hidden states that are not finite.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r}; known are {', '.join(POOLINGS)}")
    layers = [check_layer(model, layer) for layer in layers]
    sequences, starts = _tokenised(model, tokenizer, corpus)
    embeddings = np.empty((len(sequences), len(layers), text_config(model).hidden_size), np.float32)
    with tqdm(total=len(sequences), desc="embedding", unit="text", disable=not progress) as bar:
        for rows in _buckets([len(s) for s in sequences], batch_tokens):
            hidden = _hidden_states(model, [sequences[i] for i in rows], layers)
            for row, states in zip(rows, hidden, strict=True):
                embeddings[row] = _pooled(states, starts[row], len(sequences[row]), pooling)
            bar.update(len(rows))
    if not np.isfinite(embeddings).all():
        row = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=(1, 2)))[0])
        raise ValueError(
            f"the hidden states of text {row} are not finite; load the model with dtype='float32'"
        )
    return embeddings


def check_layer(model: PreTrainedModel, layer: int) -> int:
    """Return a layer's index counted from 0, or raise ValueError if the model lacks it."""
    last = text_config(model).num_hidden_layers
    if not -last - 1 <= layer <= last:
        raise ValueError(
            f"{model.name_or_path} has no layer {layer}; choose 0 (token embeddings) to {last} "
            f"(after the final norm), or -1 to {-last - 1} from the end"
        )
    return layer % (last + 1)


def _tokenised(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset | Sequence[str],
) -> tuple[list[list[int]], list[int]]:
    """Token ids of prompt + response, and the position at which each mean begins."""
    if isinstance(corpus, Dataset):
        prompts, responses = list(corpus["prompt"]), list(corpus["response"])
    else:
        if isinstance(corpus, str):
            raise ValueError("expected a list of texts, got a single str")
        prompts, responses = [""] * len(corpus), list(corpus)
    if not responses:
        raise ValueError("there is no text to embed")
    # An empty prompt still brings the special tokens with which the model begins a text.
    before = tokenizer(prompts)["input_ids"]
    after = tokenizer(responses, add_special_tokens=False)["input_ids"]
    sequences = [[*p, *r] for p, r in zip(before, after, strict=True)]
    limit = getattr(text_config(model), "max_position_embeddings", None) or float("inf")
    for row, (tokens, response) in enumerate(zip(sequences, after, strict=True)):
        if not response:
            raise ValueError(f"text {row} is empty")
        if len(tokens) > limit:
            raise ValueError(
                f"text {row} has {len(tokens)} tokens, the context of {model.name_or_path} {limit}"
            )
    starts = [min(max(len(p), 1), len(s) - 1) for p, s in zip(before, sequences, strict=True)]
    return sequences, starts


def _buckets(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group rows of similar length, so that padding wastes little, longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    buckets, start = [], 0
    while start < len(order):
        size = max(1, batch_tokens // lengths[order[start]])
        buckets.append(order[start : start + size])
        start += size
    return buckets


@torch.inference_mode()
def _hidden_states(
    model: PreTrainedModel, sequences: list[list[int]], layers: Sequence[int]
) -> torch.Tensor:
    """Hidden states [batch, layers, length, hidden], padded on the right.

    Padding on the right is never attended to by a causal model, whatever its positions.
    """
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    outputs = model.base_model(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        output_hidden_states=True,
        use_cache=False,
    )
    return torch.stack([outputs.hidden_states[layer] for layer in layers], dim=1)


def _pooled(states: torch.Tensor, start: int, length: int, pooling: str) -> np.ndarray:
    if pooling == "last":
        return states[:, length - 1].float().cpu().numpy()
    return states[:, start:length].float().mean(dim=1).cpu().numpy()
