"""Margins of growing phrases, and how likely they make a text to be nontoxic."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
from datasets import Dataset
from scipy.signal import lfilter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.checks import check_choice
from sasa_lib.subspace.embeddings import token_states, tokenised
from sasa_lib.texts.corpora import fingerprint as corpus_fingerprint
from sasa_lib.texts.corpora import labelled

PHRASES = ("candidate", "response", "text")


class CalibratedMargins:
    """What a `Boundary` knows of phrases."""

    def phrase_margins(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Dataset | Sequence[str],
        *,
        phrase: str = "response",
        decay: float = 1.0,
        scaled: bool = False,
    ) -> list[np.ndarray]:
        """Margins of a growing phrase: what `SASA` would see at every token of a given text.

        Parameters
        ----------
        model, tokenizer
            The model that the boundary was fitted on.
        corpus : datasets.Dataset or sequence of str
        phrase, decay
            As in `sasa_lib.SASA`.
        scaled : bool
            See `margins`.

        Returns
        -------
        list of numpy.ndarray of float64, one a text, shape [tokens of the response]
            Without the first position of the sequence. With "candidate", the last number is the
            margin of the text's embedding with pooling "last"; with "response", pooling "mean".
        """
        self.check_model(model)
        check_choice("phrase", phrase, PHRASES)
        responses = [len(t.tokens) - t.start for t in tokenised(model, tokenizer, corpus)]
        found: list[np.ndarray] = [np.empty(0)] * len(responses)
        states = token_states(
            model, tokenizer, corpus, layer=self.layer, prompts=phrase == "text"
        )  # fmt: skip
        for row, of_tokens in states:
            margins = self.margins(of_tokens.numpy(), scaled=scaled)
            if phrase != "candidate":
                # y[t] = decay * y[t - 1] + x[t], of the margins and of their weights.
                recursion = [1.0], [1.0, -decay]
                margins = lfilter(*recursion, margins) / lfilter(*recursion, np.ones(len(margins)))
            found[row] = margins[-responses[row] :]
        return found

    def calibrated(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Dataset,
        *,
        attribute: str = "toxicity",
        threshold: float = 0.5,
        phrase: str = "candidate",
        decay: float = 1.0,
    ) -> Self:
        """Return this boundary with the slope and intercept that its margins deserve.

        A logistic regression on one number, the scaled margin (Platt 1999, with his targets
        (n + 1) / (n + 2) and 1 / (n + 2), which keep it finite where the classes are apart), says
        how likely a text is to be nontoxic, when as much of it has been read as the margin has
        seen: all growing phrases of all texts are examples, those of a text share its weight, and
        both classes weigh the same, so that a corpus's share of toxic texts does not matter.

        Parameters
        ----------
        model, tokenizer
            The model that the boundary was fitted on.
        corpus : datasets.Dataset
            Annotated texts that it was not fitted on.
        attribute, threshold
            As in `fit`.
        phrase, decay
            Of the `sasa_lib.SASA` that is to use it: margins of means vary less than those of
            tokens.

        Returns
        -------
        Boundary
            What was fitted on is in ``metadata["calibration"]``.
        """
        corpus, toxic = labelled(corpus, attribute, threshold, minimum=2)
        margins = self.phrase_margins(
            model, tokenizer, corpus, phrase=phrase, decay=decay, scaled=True
        )
        lengths = np.array([len(of_text) for of_text in margins])
        share = np.where(toxic, toxic.mean(), 1 - toxic.mean())
        weight = np.repeat(1 / (lengths * share), lengths)
        x, nontoxic = np.concatenate(margins)[:, None], np.repeat(~toxic, lengths)
        if roc_auc_score(nontoxic, x[:, 0], sample_weight=weight) == 1:
            warnings.warn(
                f"the margins of these {len(corpus)} texts separate the classes without an error, "
                "so the slope follows from how few they are: calibrate on more texts",
                stacklevel=2,
            )
        # Each example counts for both classes, for the other as one among so many and two more.
        counts = np.bincount(toxic, minlength=2)  # nontoxic, toxic
        target = np.where(nontoxic, (counts[0] + 1) / (counts[0] + 2), 1 / (counts[1] + 2))
        regression = LogisticRegression(C=np.inf).fit(
            np.concatenate([x, x]),
            np.repeat([True, False], len(x)),
            sample_weight=np.concatenate([weight * target, weight * (1 - target)]),
        )
        slope, intercept = float(regression.coef_[0, 0]), float(regression.intercept_[0])
        if slope <= 0:
            raise ValueError(
                "on this corpus the margin does not rise with the share of nontoxic texts: it "
                "cannot be calibrated (is this boundary for this attribute?)"
            )
        facts = {
            "phrase": phrase,
            "decay": decay,
            "n": len(corpus),
            "data_fingerprint": corpus_fingerprint(corpus, attribute),
        }
        metadata = self.metadata | {"calibration": facts}
        return replace(self, slope=slope, intercept=intercept, metadata=metadata)
