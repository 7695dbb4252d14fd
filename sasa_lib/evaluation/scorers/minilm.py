"""The scorer that needs no service: Perspective's toxicity from a frozen sentence encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib import checks
from sasa_lib.evaluation.scorers.scorer import Scorer, device_or_best
from sasa_lib.texts.assets import DATA_DIR, fetch

MINILM_HEAD = DATA_DIR / "minilm_scorer.safetensors"
MINILM_MAX_TOKENS = 256  # what the encoder was trained for
GROUP_NAMES = frozenset({"gay", "gays", "homosexual", "homosexuals", "queer"})  # never masked


def minilm_scorer(
    encoder: Path, head: Path, *, device: str | torch.device | None = None, batch_size: int = 64
) -> Scorer:
    """Make the "minilm" scorer from an encoder's folder and a head's file.

    Parameters
    ----------
    encoder : pathlib.Path
        Folder of sentence-transformers/all-MiniLM-L6-v2.
    head : pathlib.Path
        What studies/train_minilm_scorer.py wrote.
    device, batch_size
        As in `load_scorer`.
    """
    try:
        with safe_open(head, framework="numpy") as file:
            weights, bias = file.get_tensor("weights"), float(file.get_tensor("bias")[0])
            head_version = json.loads(file.metadata()["sasa_scorer"])["version"]
        head_version += f"+{hashlib.sha256(head.read_bytes()).hexdigest()[:8]}"
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{head} is not the head of a minilm scorer ({error})") from error
    model, tokenizer = load_minilm(encoder, device)

    def score(texts: list[str]) -> np.ndarray:
        logits = np.empty(len(texts))
        for i, states in minilm_states(model, tokenizer, texts, batch_size):
            logits[i] = minilm_logit(states, weights, bias)
        return 1.0 / (1.0 + np.exp(-logits))

    return Scorer("minilm", head_version, score, is_english=True)


def load_minilm(
    encoder: Path, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the encoder in float32, whatever the device, so that scores agree between machines."""
    model = (
        AutoModel.from_pretrained(encoder, dtype=torch.float32).to(device_or_best(device)).eval()
    )
    return model, AutoTokenizer.from_pretrained(encoder)


@torch.inference_mode()
def minilm_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int = 64,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield what the head reads: every text's hidden states at every layer, side by side.

    Parameters
    ----------
    model, tokenizer
        As returned by `load_minilm`.
    texts : sequence of str
        Texts are cut at `MINILM_MAX_TOKENS` tokens.
    batch_size : int

    Yields
    ------
    index : int
        Of the text. Texts come in the order of their length, which saves padding.
    states : numpy.ndarray of float32, shape [tokens, 7 * 384]
        The token embeddings and the output of each of the six blocks.
    """
    sequences = tokenizer(list(texts), truncation=True, max_length=MINILM_MAX_TOKENS)["input_ids"]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids = [torch.tensor(sequences[i]) for i in rows]
        padded = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
        output = model(
            input_ids=padded.to(model.device),
            attention_mask=mask.to(model.device),
            output_hidden_states=True,
        )
        states = torch.cat(output.hidden_states, dim=-1).cpu().numpy()
        for row, text_states in zip(rows, states, strict=True):
            yield row, text_states[: len(sequences[row])]


def sentence_embeddings(texts: Sequence[str], *, device: str | None = None) -> np.ndarray:
    """What texts mean, as the encoder of "minilm" sees it: cosines tell how close two are.

    Parameters
    ----------
    texts : sequence of str, length n
    device : str, optional
        As in `load_scorer`.

    Returns
    -------
    numpy.ndarray of float32, shape [n, 384]
        Means of the last hidden states, at length 1, as sentence-transformers pools this encoder
        (Reimers and Gurevych 2019).
    """
    texts = checks.check_texts(texts, "text", empty=True)
    model, tokenizer = load_minilm(fetch("minilm"), device)
    means = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    for i, states in minilm_states(model, tokenizer, texts):
        means[i] = states[:, -means.shape[1] :].mean(axis=0)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def minilm_logit(states: np.ndarray, weights: np.ndarray, bias: float) -> float:
    """Apply the head to the hidden states of one text.

    A toxic text is often mild but for one word. So the head adds to the mean over all tokens a
    second mean, over the tokens that it attends to.

    Parameters
    ----------
    states : numpy.ndarray, shape [tokens, features]
        From `minilm_states`.
    weights : numpy.ndarray, shape [3, features]
        Directions of the evidence of every token, of the attention, and of the evidence of the
        attended tokens.
    bias : float

    Returns
    -------
    float
        Logit of the toxicity.
    """
    evidence, attention, attended = weights.astype(np.float64) @ states.T.astype(np.float64)
    share = np.exp(attention - attention.max())
    return float(bias + evidence.mean() + (share @ attended) / share.sum())
