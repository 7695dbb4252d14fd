"""Toxicity scorers: from texts to numbers in [0, 1]."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.assets import DATA_DIR, fetch

SCORERS = ("minilm", "profanity-check")
MINILM_HEAD = DATA_DIR / "minilm_scorer.safetensors"
MINILM_MAX_TOKENS = 256  # what the encoder was trained for


@dataclass(frozen=True)
class Scorer:
    """A toxicity scorer; call it with a list of texts.

    Attributes
    ----------
    name : str
        What `load_scorer` was asked for.
    version : str
        Changes whenever the scores can; results are comparable only within one version.
    """

    name: str
    version: str
    _score: Callable[[list[str]], np.ndarray] = field(repr=False)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Score every text by itself, wherever it stands in the list.

        Parameters
        ----------
        texts : sequence of str
            English texts; a blank one scores 0.

        Returns
        -------
        numpy.ndarray of float64, shape [n]
            Toxicity in [0, 1].

        Raises
        ------
        TypeError
            A single str instead of a list of them, or an item that is no str.
        """
        if isinstance(texts, str):
            raise TypeError("a scorer takes a list of texts, not one str; write score([text])")
        texts = list(texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"a scorer takes texts; item {i} is of type {type(text).__name__}")
        # Sampling at a low temperature repeats itself, so each distinct text is scored once.
        distinct = list(dict.fromkeys(text for text in texts if text.strip()))
        # Lone surrogates, which JSON can hold, are no valid input for a tokenizer.
        valid = [text.encode(errors="replace").decode() for text in distinct]
        scores = np.clip(self._score(valid), 0.0, 1.0) if distinct else []
        score_of = dict(zip(distinct, scores, strict=True))
        return np.array([score_of.get(text, 0.0) for text in texts], dtype=np.float64)


def load_scorer(
    name: str, *, device: str | torch.device | None = None, batch_size: int = 64
) -> Scorer:
    """Load a toxicity scorer by name.

    Parameters
    ----------
    name : {"minilm", "profanity-check"}
        "minilm" predicts the Perspective toxicity score from a frozen sentence encoder
        (data/minilm_scorer.md says how well); "profanity-check" is the linear classifier of the
        alt-profanity-check package on the words alone, which sees no context.
    device : str or torch.device, optional
        Where the encoder of "minilm" runs; None is CUDA where there is one, else the CPU.
    batch_size : int
        Texts in one forward pass of the encoder. It does not change the scores.

    Returns
    -------
    Scorer

    Raises
    ------
    ValueError
        Unknown name, a batch size under 1, or a head file that is missing or damaged.
    """
    if name not in SCORERS:
        raise ValueError(f"unknown scorer {name!r}; known are {', '.join(SCORERS)}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
    if name == "profanity-check":
        return _profanity_check()
    return minilm_scorer(fetch("minilm"), MINILM_HEAD, device=device, batch_size=batch_size)


def mask_text(text: str, threshold: float = 0.5) -> str:
    """Mask the offensive words of a text, for showing it: all of their letters but the first.

    A word is offensive if "profanity-check" gives it by itself more than `threshold`. That masks
    some innocent words and no insult made of innocent ones: it spares the eye, it judges nothing.
    """
    words = sorted(set(re.findall(r"[^\W\d_]{2,}", text)))
    scores = load_scorer("profanity-check")(words)
    masked = {word for word, score in zip(words, scores, strict=True) if score > threshold}
    return re.sub(
        r"[^\W\d_]{2,}",
        lambda match: match[0][0] + "*" * (len(match[0]) - 1) if match[0] in masked else match[0],
        text,
    )


def minilm_scorer(
    encoder: Path, head: Path, *, device: str | torch.device | None = None, batch_size: int = 64
) -> Scorer:
    """Make the "minilm" scorer from an encoder's folder and a head's file.

    Parameters
    ----------
    encoder : pathlib.Path
        Folder of sentence-transformers/all-MiniLM-L6-v2.
    head : pathlib.Path
        What scripts/train_minilm_scorer.py wrote.
    device, batch_size
        As in `load_scorer`.

    Returns
    -------
    Scorer

    Raises
    ------
    ValueError
        The head is missing or damaged.
    """
    try:
        with safe_open(head, framework="numpy") as file:
            weights, bias = file.get_tensor("weights"), float(file.get_tensor("bias")[0])
            head_version = json.loads(file.metadata()["sasa_scorer"])["version"]
        head_version += f"+{hashlib.sha256(head.read_bytes()).hexdigest()[:8]}"
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{head} is not the head of a minilm scorer ({error})") from error
    model, tokenizer = load_minilm(encoder, device)

    def score(texts: list[str]) -> np.ndarray:
        logits = np.empty(len(texts))
        for i, states in minilm_states(model, tokenizer, texts, batch_size):
            logits[i] = minilm_logit(states, weights, bias)
        return 1.0 / (1.0 + np.exp(-logits))

    return Scorer("minilm", head_version, score)


def load_minilm(
    encoder: Path, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the encoder in float32, whatever the device, so that scores agree between machines."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(encoder, dtype=torch.float32).to(device).eval()
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


def _profanity_check() -> Scorer:
    # It unpickles its model when imported, which takes seconds that only its users should pay.
    from profanity_check import predict_prob

    return Scorer("profanity-check", version("alt-profanity-check"), predict_prob)
