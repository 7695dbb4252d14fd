"""Sentence embeddings: a language model's own hidden states, pooled over a text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from upath import UPath

from sasa_lib._moved import names_of
from sasa_lib.checks import as_list, check_choice, check_count, check_finite
from sasa_lib.checks import set_aside as warn_of
from sasa_lib.engine import cluster
from sasa_lib.engine.identity import depends_on, key
from sasa_lib.engine.models import language_model, text_config
from sasa_lib.engine.storage import atomic_file, not_seen, place
from sasa_lib.engine.tokens import first_fault, readable
from sasa_lib.subspace.hidden_states import check_layer, hidden_states
from sasa_lib.subspace.probes import check_reading

POOLINGS = ("last", "mean")
PART = 512  # texts whose embeddings are kept together in one file
# Tokens in one forward pass: on two cores 1,024 run a third faster than 4,096.
ON_CPU, ELSEWHERE = 1024, 4096


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset | Sequence[str],
    *,
    layers: Sequence[int | float] = (-1,),
    pooling: str = "last",
    batch_tokens: int | None = None,
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
    batch_tokens : int, optional
        Largest number of tokens in one forward pass, padding included. It does not change the
        result beyond floating-point rounding. None: 1,024 on a CPU, 4,096 elsewhere.
    folder : str, Path or UPath, optional
        Keep the embeddings here, a folder or an address that fsspec knows, every few hundred texts
        as they come: the next extraction of the same texts by the same model, with either pooling,
        reads them, and one that was interrupted goes on.
    set_aside : bool
        Go on without texts that cannot be read, with a warning that names rows and reasons; their
        embeddings are NaN. False: refuse them.
    engine, actors : optional
        As `cluster.pool` takes them. Ray needs a `folder` that all machines see; without
        one the engine is always this process, unless Ray is asked for by name.
    progress : bool
        Show a progress bar.

    Returns
    -------
    numpy.ndarray of float32, shape [n, len(layers), hidden_size]

    Raises
    ------
    AssetError
        The folder cannot be written, or actors write where this process cannot see it.
    ImportError
        The engine is Ray, and Ray is not installed.
    """
    if folder is None and engine == "ray":
        raise ValueError("engine='ray' needs folder=..., one that all machines see")
    check_choice("pooling", pooling, POOLINGS)
    model = language_model(model)
    batch_tokens = tokens_at_once(model, batch_tokens)
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
    batch_tokens: int | None = None,
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
    batch_tokens = tokens_at_once(model, batch_tokens)
    for rows in buckets_of([len(text.tokens) for text in texts], batch_tokens):
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
    for rows in buckets_of([len(text.tokens) for text in texts], batch_tokens):
        hidden = hidden_states(model, [texts[i].tokens for i in rows], layers)
        for row, states in zip(rows, hidden, strict=True):
            embeddings[row] = _pooled(states, texts[row].start, len(texts[row].tokens))
        bar.update(len(rows))
    return embeddings


def tokens_at_once(model: PreTrainedModel, asked: int | None = None) -> int:
    """Return how many tokens one forward pass takes, where nobody says."""
    if asked is not None:
        return check_count("batch_tokens", asked)
    return ON_CPU if model.device.type == "cpu" else ELSEWHERE


def buckets_of(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group rows of similar length, so that padding wastes little, longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    buckets, start = [], 0
    while start < len(order):
        size = max(1, batch_tokens // lengths[order[start]])
        buckets.append(order[start : start + size])
        start += size
    return buckets


def _pooled(states: torch.Tensor, start: int, length: int) -> np.ndarray:
    """Every pooling in the order of `POOLINGS`, [layers, poolings, hidden_size]."""
    last, mean = states[:, length - 1].float(), states[:, start:length].float().mean(dim=1)
    return torch.stack([last, mean], dim=1).cpu().numpy()


__getattr__ = names_of("embeddings")
