"""Toxicity scorers: from texts to numbers in [0, 1]."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
import torch

from sasa_lib import checks
from sasa_lib.engine import models

WORD = re.compile(r"[^\W\d_]+")
# Frequent ones that no neighbour writes alike.
ENGLISH = frozenset(
    WORD.findall(
        "the and that with this you they from his their your them what just like who about she "
        "would there were our more which how"
    )
)
MANY_WORDS = 10  # different ones, in a text whose language can be told
SEVERAL = 3  # texts
BEYOND = 0.25  # so far a regression on [0, 1] may miss the interval


class ScorerError(RuntimeError):
    """A scorer cannot be had or does not answer; the message says why and what to do."""


class RefusedError(Exception):
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
    is_english : bool
        Whether it knows no other language: texts that are surely in another get a warning.

    Notes
    -----
    Pickled is how `load_scorer` was called, not the weights: another process loads its own.
    """

    name: str
    version: str
    _score: Callable[[list[str]], np.ndarray] = field(repr=False)
    asks_service: bool = False
    is_english: bool = False
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
            A text cannot be scored, or a service does not answer.
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
        if self.is_english:
            _warn_of_other_languages(self.name, good)
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
        score_of: dict[str, float] = {}
        refused: dict[str, str] = {}
        # A service refuses a request as a whole, so it is given one text at a time.
        step = 1 if self.asks_service else max(len(texts), 1)
        for start in range(0, len(texts), step):
            batch = texts[start : start + step]
            try:
                scores = dict(zip(batch, map(float, self._score(batch)), strict=True))
            except RefusedError as error:
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
            score_of |= new
            if stop and refused:
                break
        return score_of, refused


def _warn_of_other_languages(name: str, texts: Mapping[int, str]) -> None:
    """Warn of texts in other letters, and where most of the long ones hold no English word."""
    letters = [row for row, text in texts.items() if not text.isascii() and _in_others(text)]
    words = {row: set(WORD.findall(text.lower())) for row, text in texts.items()}
    long = [row for row, of_text in words.items() if len(of_text) >= MANY_WORDS]
    without = [row for row in long if not words[row] & ENGLISH]
    # One text in twelve holds none and is English.
    others = without if len(without) >= SEVERAL and 2 * len(without) > len(long) else []
    if found := sorted({*letters, *others}):
        warnings.warn(
            f"{len(found)} of {len(texts)} texts, such as {found[0]}, seem not to be English, the "
            f"one language that {name!r} knows: their scores mean nothing",
            stacklevel=4,
        )


def _in_others(text: str) -> bool:
    """Whether most letters are not Latin ones."""
    letters = [character for character in text if character.isalpha()]
    latin = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    return latin < len(letters) / 2


def batches_of(texts: Sequence[str], batch_size: int) -> Iterator[list[int]]:
    """Rows of texts of similar length, which saves padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def device_or_best(device: str | torch.device | None) -> str:
    """Name of a device; of None the best there is."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return models._device(str(device))
