"""Sentence embeddings: a language model's own hidden states, pooled over a text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from upath import UPath

from sasa_lib import cluster
from sasa_lib.checks import as_list, check_choice, check_count, check_finite, check_number
from sasa_lib.checks import set_aside as warn_of
from sasa_lib.identity import depends_on, key
from sasa_lib.models import blocks, body, language_model, reading, text_config
from sasa_lib.places import atomic_file, not_seen, place
from sasa_lib.tokens import first_fault, readable

POOLINGS = ("last", "mean")
PROBE_TOKENS = 8  # by which a model is known again: hardly more than one to read
# Part of its states by which the same weights may be off: in float32 elsewhere, in another dtype.
SAME_WEIGHTS, OTHER_DTYPE = 1e-3, 0.1
SAME_READING = 1e-2  # and a text's in a batch
PART = 512  # texts whose embeddings are kept together in one file


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset | Sequence[str],
    *,
    layers: Sequence[int | float] = (-1,),
    pooling: str = "last",
    batch_tokens: int = 4096,
    folder: str | Path | UPath | None = None,
    set_aside: bool = False,
    engine: str | None = None,
    actors: int | None = None,
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
    layers : sequence of int or float
        Indices into the hidden states: 0 is the token embedding, l the output of block l, and -1
        (or the number of blocks) the last one after the model's final norm. A float strictly
        between 0 and 1 is a share of the depth.
    pooling : {"last", "mean"}
        The hidden state of the last token, or the mean over the response's tokens. The
        very first position of the sequence is left out of the mean where anything else is left:
        it is an attention sink whose state says nothing about the text.
    batch_tokens : int
        Largest number of tokens in one forward pass, padding included. It does not change the
        result beyond floating-point rounding.
    folder : str, Path or UPath, optional
        Keep the embeddings here, a folder or an address that fsspec knows, every few hundred texts
        as they come: the next extraction of the same texts by the same model, with either pooling,
        reads them, and one that was interrupted goes on.
    set_aside : bool
        Go on without texts that cannot be read, with a warning that names rows and reasons; their
        embeddings are NaN. False: refuse them.
    engine, actors : optional
        As `sasa_lib.cluster.pool` takes them. Ray needs a `folder` that all machines see; without
        one the engine is always this process, unless Ray is asked for by name.
    progress : bool
        Show a progress bar.

    Returns
    -------
    numpy.ndarray of float32, shape [n, len(layers), hidden_size]

    Raises
    ------
    ValueError
        Unknown pooling or layer, no texts, a text without tokens or longer than the model's
        context, hidden states that are not finite, or Ray without a folder.
    AssetError
        The folder cannot be written, or actors write where this process cannot see it.
    ImportError
        The engine is Ray, and Ray is not installed.
    """
    if folder is None and engine == "ray":
        raise ValueError("engine='ray' needs folder=..., one that all machines see")
    check_choice("pooling", pooling, POOLINGS)
    model = language_model(model)
    batch_tokens = check_count("batch_tokens", batch_tokens)
    layers = [check_layer(model, layer) for layer in as_list(layers, "layers")]
    if not layers:
        raise ValueError("expected a list of at least one layer")
    check_reading(model, layers)
    found, faults = _readable(model, tokenizer, corpus)
    if faults and not (set_aside and found):
        raise first_fault(faults)
    if faults:
        warn_of("texts", faults, len(found) + len(faults))
    texts = list(found.values())
    chosen = POOLINGS.index(pooling)
    with tqdm(total=len(texts), desc="embedding", unit="text", disable=not progress) as bar:
        if folder is None:
            embeddings = _embed(model, texts, layers, batch_tokens, bar)[:, :, chosen]
            return _with_gaps(embeddings, list(found), len(faults))
        identity = key(depends_on("embedding", model=model))
        folder = place(folder)
        parts = [texts[i : i + PART] for i in range(0, len(texts), PART)]
        files = [_files(folder, identity, part, layers) for part in parts]
        missing = [
            part
            for part, of_layers in zip(parts, files, strict=True)
            if not all(file.exists() for file in of_layers.values())
        ]
        bar.update(len(texts) - sum(map(len, missing)))
        pool = cluster.pool(engine, actors) if missing else None
        if pool:
            make = partial(_keeper, model, folder, identity, layers, batch_tokens)
            for number in pool.each(make, missing):
                bar.update(number)
        else:
            for part in missing:
                _keep(folder, identity, model, part, layers, batch_tokens, bar)
    # Two shares of the depth may be one layer.
    parts = [np.stack([_read(file[layer]) for layer in layers], axis=1) for file in files]
    return _with_gaps(np.concatenate(parts)[:, :, chosen], list(found), len(faults))


def _with_gaps(embeddings: np.ndarray, rows: list[int], gaps: int) -> np.ndarray:
    """Put embeddings into their rows, among NaN where a text was set aside."""
    if not gaps:
        return embeddings
    every = np.full((len(rows) + gaps, *embeddings.shape[1:]), np.nan, embeddings.dtype)
    every[rows] = embeddings
    return every


def token_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset | Sequence[str],
    *,
    layer: int | float = -1,
    prompts: bool = False,
    batch_tokens: int = 4096,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Hidden states of every token of every text, batch by batch, the longest texts first.

    Parameters
    ----------
    model, tokenizer, corpus, batch_tokens
        As in `extract`.
    layer : int or float
        As in `extract`.
    prompts : bool
        Yield the prompt's tokens as well, before those of the response.

    Yields
    ------
    row : int
        Which text of the corpus.
    states : torch.Tensor of float32 on the CPU, shape [tokens, hidden_size]
        Of the response's tokens, without the first position of the sequence.
    """
    model = language_model(model)
    layer = check_layer(model, layer)
    check_reading(model, [layer])
    texts = tokenised(model, tokenizer, corpus)
    for rows in _buckets([len(text.tokens) for text in texts], batch_tokens):
        hidden = hidden_states(model, [texts[i].tokens for i in rows], [layer])
        for row, states in zip(rows, hidden[:, 0].float().cpu(), strict=True):
            start = min(1, texts[row].start) if prompts else texts[row].start
            yield row, states[start : len(texts[row].tokens)]


def anisotropy(embeddings: np.ndarray) -> float:
    """Mean cosine similarity of two different texts: 0 if directions are spread evenly.

    Parameters
    ----------
    embeddings : numpy.ndarray, shape [n, hidden_size]
        At least two.

    Returns
    -------
    float
        In [-1 / (n - 1), 1].

    References
    ----------
    Ethayarajh 2019, How contextual are contextualized word representations?, section 4.1; here
    over all pairs, by |sum of unit vectors|^2 = n + (sum over pairs).
    """
    embeddings = np.asarray(embeddings, dtype=np.float64)
    n = len(embeddings)
    if n < 2:
        raise ValueError(f"anisotropy compares texts and needs at least 2, got {n}")
    check_finite("embeddings", embeddings)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"the embedding of text {int(lengths.argmin())} is 0: it has no direction")
    unit = embeddings / lengths
    return float((np.square(unit.sum(axis=0)).sum() - n) / (n * (n - 1)))


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


@dataclass(frozen=True)
class Text:
    """Token ids of prompt + response, and the position at which its mean begins."""

    tokens: list[int]
    start: int


def tokenised(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset | Sequence[str],
) -> list[Text]:
    """Token ids of every text, as `extract` reads them.

    Parameters
    ----------
    model, tokenizer, corpus
        As in `extract`.

    Returns
    -------
    list of Text

    Raises
    ------
    ValueError
        No texts, or one without tokens or longer than the model's context.
    """
    found, faults = _readable(model, tokenizer, corpus)
    if faults:
        raise first_fault(faults)
    return list(found.values())


def _readable(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset | Sequence[str],
) -> tuple[dict[int, Text], dict[int, str]]:
    """Texts by row, and by row what is wrong with others."""
    if isinstance(corpus, Dataset):
        prompts, responses = list(corpus["prompt"]), list(corpus["response"])
    else:
        responses = as_list(corpus, "texts")
        prompts = [""] * len(responses)
    if not responses:
        raise ValueError("there is no text to embed")
    # An empty prompt still brings the special tokens with which the model begins a text.
    ids, faults = readable(model, tokenizer, prompts, responses)
    texts = {}
    for row, (before, after) in ids.items():
        tokens = [*before, *after]
        texts[row] = Text(tokens, min(max(len(before), 1), len(tokens) - 1))
    return texts, faults


def _files(
    folder: Path | UPath, identity: str, texts: list[Text], layers: Sequence[int]
) -> dict[int, Path | UPath]:
    """Return the file in which the embeddings of each layer are kept."""
    key = hashlib.sha256(f"{identity} {texts}".encode()).hexdigest()[:16]
    return {layer: folder / f"{key}-layer{layer}.npy" for layer in layers}


def _read(file: Path | UPath) -> np.ndarray:
    try:
        with file.open("rb") as content:
            return np.load(content)
    except FileNotFoundError as error:
        raise not_seen(file.parent) from error


def _keep(
    folder: Path | UPath,
    identity: str,
    model: PreTrainedModel,
    texts: list[Text],
    layers: Sequence[int],
    batch_tokens: int,
    bar: tqdm,
) -> None:
    """Compute and write the layers that have no file yet."""
    files = _files(folder, identity, texts, layers)
    missing = [layer for layer, file in files.items() if not file.exists()]
    if not missing:  # an actor wrote them and died before it could say so
        return
    computed = _embed(model, texts, missing, batch_tokens, bar)
    for i, layer in enumerate(missing):
        with atomic_file(files[layer]) as temporary, temporary.open("wb") as out:
            np.save(out, computed[:, i])


def _keeper(
    model: PreTrainedModel,
    folder: Path | UPath,
    identity: str,
    layers: Sequence[int],
    batch_tokens: int,
) -> Callable[[list[Text]], int]:
    """Return what keeps the embeddings of some texts in an actor."""

    def keep(texts: list[Text]) -> int:
        with tqdm(disable=True) as silent:
            _keep(folder, identity, model, texts, layers, batch_tokens, silent)
        return len(texts)

    return keep


def _embed(
    model: PreTrainedModel,
    texts: list[Text],
    layers: Sequence[int],
    batch_tokens: int,
    bar: tqdm,
) -> np.ndarray:
    """Embeddings [n, layers, poolings, hidden_size]: every pooling comes from the same pass."""
    size = text_config(model).hidden_size
    embeddings = np.empty((len(texts), len(layers), len(POOLINGS), size), np.float32)
    for rows in _buckets([len(text.tokens) for text in texts], batch_tokens):
        hidden = hidden_states(model, [texts[i].tokens for i in rows], layers)
        for row, states in zip(rows, hidden, strict=True):
            embeddings[row] = _pooled(states, texts[row].start, len(texts[row].tokens))
        bar.update(len(rows))
    return embeddings


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
def hidden_states(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], layers: Sequence[int]
) -> torch.Tensor:
    """Hidden states of token ids, [batch, layers, length, hidden_size], padded on the right.

    The blocks above the highest of `layers` are not computed. Padding on the right is never
    attended to by a causal model, whatever its positions.

    Raises
    ------
    ValueError
        States that are not finite, or not of the model's hidden size.
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


class _Seen(Exception):
    """Not an error: the blocks above are of no interest."""


def _pooled(states: torch.Tensor, start: int, length: int) -> np.ndarray:
    """Every pooling in the order of `POOLINGS`, [layers, poolings, hidden_size]."""
    last, mean = states[:, length - 1].float(), states[:, start:length].float().mean(dim=1)
    return torch.stack([last, mean], dim=1).cpu().numpy()
