"""Toxicity scorers: from texts to numbers in [0, 1]."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from math import isfinite
from pathlib import Path

import numpy as np
import requests
import torch
from profanity_check import predict_prob
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sasa_lib import checks, models
from sasa_lib.assets import DATA_DIR, fetch
from sasa_lib.identity import key, model_digest, tokenizer_digest

SCORERS = ("minilm", "profanity-check", "detoxify", "perspective")
MINILM_HEAD = DATA_DIR / "minilm_scorer.safetensors"
MINILM_MAX_TOKENS = 256  # what the encoder was trained for
GROUP_NAMES = frozenset({"gay", "gays", "homosexual", "homosexuals", "queer"})  # never masked
HF_PREFIX = "hf:"
HF_MAX_TOKENS = 512
HF_TOXIC_LABELS = frozenset(
    ("toxic", "toxicity", "hate", "hateful", "hate_speech", "offensive", "abusive")
)
DETOXIFY_MODEL = "unbiased"
PERSPECTIVE_URL = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
PERSPECTIVE_KEY = "PERSPECTIVE_API_KEY"
PERSPECTIVE_ATTEMPTS = 8  # the waits between them add up to two minutes; quotas are per minute
PERSPECTIVE_REFUSALS = {
    "COMMENT_EMPTY": "it counts as empty; leave it out",
    "COMMENT_TOO_LONG": "it has more than 20,480 bytes; shorten it",
    "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE": "it is not taken for English; leave it out",
}
BEYOND = 0.25  # so far a regression on [0, 1] may miss the interval
COMMIT_EVERY = 1024  # texts: some seconds of a scorer's work


class ScorerError(RuntimeError):
    """A scorer cannot be had or does not answer; the message says why and what to do."""


class _RefusedError(Exception):
    """A service takes all texts but these; the message says why, and quotes none."""


@dataclass(frozen=True)
class Scorer:
    """A toxicity scorer; call it with a list of texts.

    Attributes
    ----------
    name : str
        What `load_scorer` was asked for.
    version : str
        Changes whenever the scores can; results are comparable only within one version.
    asks_service : bool
        Whether its speed is a service's quota, so that a second of its kind would not help.

    Notes
    -----
    Pickled is how `load_scorer` was called, not the weights: another process loads its own.
    """

    name: str
    version: str
    _score: Callable[[list[str]], np.ndarray] = field(repr=False)
    _cache: _Cache | None = field(default=None, repr=False)
    _commit_every: int = field(default=COMMIT_EVERY, repr=False)
    asks_service: bool = False
    _load: Callable[[], Scorer] | None = field(default=None, repr=False)

    def __reduce_ex__(self, protocol: int) -> str | tuple:
        return (self._load, ()) if self._load else super().__reduce_ex__(protocol)

    def check_version(self, expected: str) -> None:
        """Raise ValueError if a scorer that an actor loaded is not of the driver's version."""
        if self.version != expected:
            raise ValueError(
                f"an actor's {self.name!r} is of version {self.version}, the one given of "
                f"{expected}: install the same packages and models on all machines"
            )

    def __call__(self, texts: Iterable[str], *, set_aside: bool = False) -> np.ndarray:
        """Score every text by itself, wherever it stands in the list.

        Parameters
        ----------
        texts : iterable of str
            English texts; a blank one scores 0.
        set_aside : bool
            Whether a text that cannot be scored gets NaN, with a warning, instead of an error.

        Returns
        -------
        numpy.ndarray of float64, shape [n]
            Toxicity in [0, 1].

        Raises
        ------
        TypeError
            An item that is no str.
        ScorerError
            A text cannot be scored, a service does not answer, or the cache cannot be used. What
            was scored before is in the cache.
        """
        texts = checks.as_list(texts, "texts")
        scores, faults = self.scored(texts, stop=not set_aside)
        if faults and set_aside:
            checks.set_aside("texts", faults, len(texts), f"scored by {self.name}")
        elif faults:
            row = min(faults)
            error = ScorerError if isinstance(texts[row], str) else TypeError
            raise error(f"{self.name!r} cannot score item {row}: {faults[row]}")
        return scores

    def scored(
        self, texts: Iterable[str], *, stop: bool = False
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Score what can be scored, and say why the rest cannot.

        Parameters
        ----------
        texts : iterable of str
        stop : bool
            Whether to stop at the first fault, so that what is sure to fail costs no more.

        Returns
        -------
        scores : numpy.ndarray of float64, shape [n]
            Toxicity in [0, 1], or NaN.
        faults : dict from row to reason
            Items that are no str or no Unicode text, that a service refuses, or whose score is
            not a finite number.
        """
        texts = checks.as_list(texts, "texts")
        found = ((row, checks.text_fault(text, empty=True)) for row, text in enumerate(texts))
        faults = {row: fault for row, fault in found if fault}
        good = {row: text for row, text in enumerate(texts) if row not in faults}
        scores = np.full(len(texts), np.nan)
        if stop and faults:
            return scores, faults
        # Sampling at a low temperature repeats itself, so each distinct text is scored once.
        distinct = list(dict.fromkeys(text for text in good.values() if text.strip()))
        score_of, refused = self._asked(distinct, stop)
        for row, text in good.items():
            if text in refused:
                faults[row] = refused[text]
            else:
                scores[row] = score_of.get(text, np.nan if text.strip() else 0.0)
        return scores, faults

    def _asked(self, texts: list[str], stop: bool) -> tuple[dict[str, float], dict[str, str]]:
        """Return the score of each text, or why it has none."""
        cache, refused = self._cache, {}
        score_of = cache.read(self.name, self.version, texts) if cache else {}
        missing = [text for text in texts if text not in score_of]
        # A service refuses a request as a whole, so it is given one text at a time.
        step = self._commit_every if cache or self.asks_service else max(len(missing), 1)
        for start in range(0, len(missing), step):
            batch = missing[start : start + step]
            try:
                scores = dict(zip(batch, map(float, self._score(batch)), strict=True))
            except _RefusedError as error:
                scores, refused = {}, refused | dict.fromkeys(batch, str(error))
            far = [s for s in scores.values() if isfinite(s) and not -BEYOND <= s <= 1 + BEYOND]
            if far:
                raise ScorerError(
                    f"{self.name!r} gives a score of {far[0]:.3g}, which is no toxicity in [0, 1]: "
                    "a regression must have been trained on that scale"
                )
            new = {t: min(max(score, 0.0), 1.0) for t, score in scores.items() if isfinite(score)}
            for text in scores.keys() - new.keys():
                refused[text] = f"its score is {scores[text]}; the weights may be damaged"
            if cache:
                cache.write(self.name, self.version, new)
            score_of |= new
            if stop and refused:
                break
        return score_of, refused


def load_scorer(
    name: str,
    *,
    device: str | torch.device | None = None,
    batch_size: int = 64,
    label: str | None = None,
    queries_per_second: float = 1.0,
    cache: str | Path | None = None,
) -> Scorer:
    """Load a toxicity scorer by name.

    Parameters
    ----------
    name : {"minilm", "profanity-check", "detoxify", "perspective"} or "hf:<model id or path>"
        "minilm" predicts the Perspective toxicity score from a frozen sentence encoder
        (data/minilm_scorer.md says how well); "profanity-check" is the linear classifier of the
        alt-profanity-check package on the words alone, which sees no context; "detoxify" is the
        model "unbiased" of the optional package of that name (Hanu and Unitary 2020), whose
        weights come from GitHub; "perspective" is Google's service, until it shuts down at the
        end of 2026 (see `perspective_scorer`), with the key in PERSPECTIVE_API_KEY; "hf:..." is
        any text classifier of the Hugging Face hub or of a local folder (see `hf_scorer`).
    device : str or torch.device, optional
        Where a model runs; None is CUDA where there is one, else the CPU.
    batch_size : int
        Texts in one forward pass of a model. It does not change the scores.
    label : str, optional
        For "hf:...": the label whose probability is the toxicity.
    queries_per_second : float
        For "perspective": the quota of the key.
    cache : str or Path, optional
        Folder in which scores are kept by name, version and SHA-256 of the text, so that no text
        is scored twice. Several processes may share it. A killed one loses at most
        `COMMIT_EVERY` scores, of "perspective" none that was answered.

    Raises
    ------
    ScorerError
        The package detoxify, the key of Perspective or the cache is missing or unusable.
    """
    if name == HF_PREFIX or not str(name).startswith(HF_PREFIX):
        checks.check_choice("scorer", name, (*SCORERS, "hf:<model id or path>"))
    batch_size = checks.check_count("batch_size", batch_size)
    queries_per_second = checks.check_number("queries_per_second", queries_per_second, above=0)
    _device(device)
    if label is not None and not name.startswith(HF_PREFIX):
        raise ValueError(f"label={label!r} says nothing to {name!r}; it is for hf:<model> only")
    # An unusable folder should be known before a model is loaded.
    kept = None if cache is None else _Cache(cache)
    load = partial(
        load_scorer,
        name,
        device=device,
        batch_size=batch_size,
        label=label,
        queries_per_second=queries_per_second,
        cache=None if cache is None else Path(cache).absolute(),
    )
    if name == "profanity-check":
        scorer = Scorer(name, version("alt-profanity-check"), predict_prob)
    elif name == "detoxify":
        scorer = _detoxify(device, batch_size)
    elif name == "perspective":
        key = os.environ.get(PERSPECTIVE_KEY, "").strip()
        scorer = perspective_scorer(key, queries_per_second=queries_per_second)
    elif name == "minilm":
        scorer = minilm_scorer(fetch(name), MINILM_HEAD, device=device, batch_size=batch_size)
    else:
        model = name.removeprefix(HF_PREFIX)
        scorer = hf_scorer(model, label=label, device=device, batch_size=batch_size)
    return replace(scorer, _cache=kept, _load=load)


def mask_text(text: str, threshold: float = 0.8) -> str:
    """Mask the offensive words of a text, for showing it: all of their letters but the first.

    A word is offensive if "profanity-check" gives it by itself more than `threshold`, and is no
    name of a group, which that scorer often takes for an offence. This masks some innocent words
    and no insult made of innocent ones: it spares the eye, it judges nothing.
    """
    words = sorted(set(re.findall(r"[^\W\d_]{2,}", text)))
    words = [word for word in words if word.lower() not in GROUP_NAMES]
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

    return Scorer("minilm", head_version, score)


def load_minilm(
    encoder: Path, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the encoder in float32, whatever the device, so that scores agree between machines."""
    model = AutoModel.from_pretrained(encoder, dtype=torch.float32).to(_device(device)).eval()
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


def hf_scorer(
    model: str,
    *,
    label: str | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 64,
) -> Scorer:
    """Make a scorer of a Hugging Face text classifier: the probability of its toxic label.

    As in the text-classification pipeline of transformers, that is the sigmoid of the label's
    logit if the labels do not exclude each other or there is only one, the output itself of a
    regression, and else the softmax. The model runs in float32.

    Parameters
    ----------
    model : str
        Id on the hub, or a folder. Texts are cut at `HF_MAX_TOKENS` tokens, or where the model
        can take no more.
    label : str, optional
        Name of the toxic label, whatever its case. None: the one that is called as in
        `HF_TOXIC_LABELS`.
    device, batch_size
        As in `load_scorer`.

    Returns
    -------
    Scorer
        Its version is made of the library's, a fingerprint of the weights, and the label.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        classifier, loading = AutoModelForSequenceClassification.from_pretrained(
            model, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"cannot load {model!r}: it is neither a folder with a text classifier nor one that "
            f"the hub returns ({checks.first_line(error)})"
        ) from error
    # Transformers fills in a missing classifier with random numbers.
    prefix = f"{classifier.base_model_prefix}."
    if any(not key.startswith(prefix) for key in loading["missing_keys"]):
        raise ValueError(
            f"{model!r} has no trained classifier on top, so its scores would be random; name a "
            "model that was trained for text classification"
        )
    config = classifier.config
    column = _toxic_label(config, label, model)
    classifier = classifier.to(_device(device)).eval()
    limit = min(HF_MAX_TOKENS, tokenizer.model_max_length, models.context_length(classifier))
    tokenizer.padding_side = "right"  # positions of a decoder would shift by padding on the left
    # A decoder reads the class at the last token that is not its configuration's pad token.
    text_config = config.get_text_config()
    if text_config.pad_token_id is None:
        text_config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id != text_config.pad_token_id:
        batch_size = 1

    @torch.inference_mode()
    def score(texts: list[str]) -> np.ndarray:
        scores = np.empty(len(texts))
        for rows in _batches(texts, batch_size):
            inputs = tokenizer(
                [texts[i] for i in rows],
                padding=len(rows) > 1,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            logits = classifier(**inputs.to(classifier.device)).logits.cpu().double()
            if config.problem_type == "regression":
                values = logits
            elif config.problem_type == "multi_label_classification" or config.num_labels == 1:
                values = logits.sigmoid()
            else:
                values = logits.softmax(dim=-1)
            scores[rows] = values[:, column].numpy()
        return scores

    weights = key([model_digest(classifier), tokenizer_digest(tokenizer)], 8)
    parts = (version("transformers"), weights, config.id2label[column])
    return Scorer(HF_PREFIX + model, "+".join(parts), score)


def perspective_scorer(
    key: str,
    *,
    url: str = PERSPECTIVE_URL,
    queries_per_second: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Scorer:
    """Make a scorer of Google's Perspective API, attribute TOXICITY, or of one that speaks alike.

    Google changed the model without notice or version (Pozzobon et al. 2023), so the version here
    is that of the interface alone, and scores of different years are not comparable. Texts are
    sent with doNotStore.

    Parameters
    ----------
    key : str
        Sent as a header, so that it is in no address that an error or a proxy might show.
    url : str
        Address of the method comments:analyze.
    queries_per_second : float
        At most so many, above 0; a new key has a quota of 1.
    sleep : callable
        Waits for a number of seconds.

    Returns
    -------
    Scorer
        It tries `PERSPECTIVE_ATTEMPTS` times, with growing random waits, before it gives up on a
        quota, a failure of the server or of the connection.
    """
    if not key:
        raise ScorerError(
            f"the scorer 'perspective' needs an API key in the environment variable "
            f"{PERSPECTIVE_KEY}; without one use 'minilm' or 'detoxify'"
        )
    queries_per_second = checks.check_number("queries_per_second", queries_per_second, above=0)
    session = requests.Session()
    session.headers["X-Goog-Api-Key"] = key
    last = -float("inf")

    def ask(text: str) -> float:
        nonlocal last
        body = {
            "comment": {"text": text},
            "languages": ["en"],
            "requestedAttributes": {"TOXICITY": {}},
            "doNotStore": True,
        }
        problem = ""
        for attempt in range(PERSPECTIVE_ATTEMPTS):
            # Random, so that processes that were refused together do not come back together.
            pause = 2 ** (attempt - 1) * random.uniform(0.5, 1.5) if attempt else 0.0
            pause = max(pause, 1 / queries_per_second - (time.monotonic() - last))
            if pause > 0:
                sleep(pause)
            last = time.monotonic()
            try:
                # A redirection would lead to a page about the end of the service.
                answer = session.post(url, json=body, timeout=30, allow_redirects=False)
            except (
                requests.ConnectionError,
                requests.Timeout,
                requests.exceptions.ChunkedEncodingError,
            ) as error:
                problem = type(error).__name__
                continue
            if answer.status_code != 429 and answer.status_code < 500:
                return _perspective_score(answer)
            problem = f"HTTP {answer.status_code}"
        raise ScorerError(
            f"Perspective did not answer {PERSPECTIVE_ATTEMPTS} attempts ({problem}); try again "
            "later, or use 'minilm' or 'detoxify' (Perspective ends with 2026)"
        )

    def score(texts: list[str]) -> np.ndarray:
        return np.array([ask(text) for text in texts])

    return Scorer("perspective", "v1alpha1", score, _commit_every=1, asks_service=True)


class _Cache:
    """Scores in a SQLite file, whose transactions survive a killed process."""

    def __init__(self, folder: str | Path) -> None:
        self.file = Path(folder) / "scores.sqlite"
        with self._open() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS scores (scorer TEXT, version TEXT, sha256 BLOB, "
                "score REAL NOT NULL, PRIMARY KEY (scorer, version, sha256)) WITHOUT ROWID"
            )

    def read(self, scorer: str, version: str, texts: list[str]) -> dict[str, float]:
        query = "SELECT score FROM scores WHERE scorer = ? AND version = ? AND sha256 = ?"
        with self._open() as connection:
            rows = [
                (text, connection.execute(query, (scorer, version, self._digest(text))).fetchone())
                for text in texts
            ]
        return {text: row[0] for text, row in rows if row}

    def write(self, scorer: str, version: str, score_of: dict[str, float]) -> None:
        rows = [(scorer, version, self._digest(text), score) for text, score in score_of.items()]
        with self._open() as connection:
            connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", rows)

    @staticmethod
    def _digest(text: str) -> bytes:
        # The texts are offensive: they need not lie around in one more file.
        return hashlib.sha256(text.encode()).digest()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.file, timeout=60)) as connection, connection:
                yield connection
        except (OSError, sqlite3.Error) as error:
            raise ScorerError(
                f"{self.file} cannot be used as a cache of scores ({error}); delete it, or name "
                "another folder"
            ) from error


def _detoxify(device: str | torch.device | None, batch_size: int) -> Scorer:
    try:
        from detoxify import Detoxify
    except ImportError as error:
        raise ScorerError(
            f"the scorer 'detoxify' needs a package that is missing ({error}); install it by: "
            "python -m pip install detoxify"
        ) from error
    try:
        model = Detoxify(DETOXIFY_MODEL, device=_device(device))
    except Exception as error:  # downloads from two places, by two libraries
        raise ScorerError(
            f"detoxify cannot load its model ({checks.first_line(error)}); it needs github.com "
            "and the Hugging Face hub the first time"
        ) from error

    def score(texts: list[str]) -> np.ndarray:
        scores = np.empty(len(texts))
        for rows in _batches(texts, batch_size):
            # Of a list of one text it makes a single number.
            scores[rows] = np.atleast_1d(model.predict([texts[i] for i in rows])["toxicity"])
        return scores

    return Scorer("detoxify", f"{version('detoxify')}+{DETOXIFY_MODEL}", score)


def _perspective_score(answer: requests.Response) -> float:
    try:
        content = answer.json()
        if answer.status_code == 200:
            return float(content["attributeScores"]["TOXICITY"]["summaryScore"]["value"])
        error = content["error"]
        kinds = {detail.get("errorType") or detail.get("reason") for detail in error["details"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        kinds = set()
    # A wrong key is a 400 as well.
    if answer.status_code == 400 and "API_KEY_INVALID" not in kinds:
        known = [PERSPECTIVE_REFUSALS[kind] for kind in kinds if kind in PERSPECTIVE_REFUSALS]
        # Not the message of the service, which may quote the text.
        unknown = f"HTTP 400 {', '.join(sorted(map(str, kinds)))}".strip()
        raise _RefusedError(known[0] if known else f"{unknown}; leave it out")
    raise ScorerError(
        f"Perspective is shut down (its end was announced for the end of 2026) or refuses the key "
        f"in {PERSPECTIVE_KEY} (HTTP {answer.status_code}); use 'minilm' or 'detoxify' instead"
    )


def _toxic_label(config: PreTrainedConfig, label: str | None, model: str) -> int:
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    if label is None:
        names = [re.sub(r"[\s-]+", "_", name.lower()) for name in labels]
        matches = [i for i, name in enumerate(names) if name in HF_TOXIC_LABELS]
    else:
        matches = [i for i, name in enumerate(labels) if name.lower() == label.lower()]
    if len(matches) != 1:
        problem = "no single label has a toxic name" if label is None else f"no label {label!r}"
        raise ValueError(f"{model!r} has {problem}; give label=... one of {', '.join(labels)}")
    return matches[0]


def _batches(texts: Sequence[str], batch_size: int) -> Iterator[list[int]]:
    """Rows of texts of similar length, which saves padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _device(device: str | torch.device | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return models._device(str(device))
