"""Scorers by name."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version

import torch

from sasa_lib import checks
from sasa_lib.evaluation.scorers.classifiers import HF_PREFIX, detoxify_scorer, hf_scorer
from sasa_lib.evaluation.scorers.minilm import GROUP_NAMES, MINILM_HEAD, minilm_scorer
from sasa_lib.evaluation.scorers.perspective import PERSPECTIVE_KEY, perspective_scorer
from sasa_lib.evaluation.scorers.scorer import Scorer, device_or_best
from sasa_lib.texts.assets import fetch
from sasa_lib.texts.words import word_list

# Of what is written as one word, such as names for people.
OFFENSIVE_STEMS = (
    "bitch", "faggot", "fisted", "fisting", "fuck", "masturbat", "nigga", "nigger", "shit", "slut",
    "whore",
)  # fmt: skip
SCORERS = ("minilm", "profanity-check", "detoxify", "perspective")


def load_scorer(
    name: str,
    *,
    device: str | torch.device | None = None,
    batch_size: int = 64,
    label: str | None = None,
    queries_per_second: float = 1.0,
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

    Raises
    ------
    ScorerError
        The package detoxify or the key of Perspective is missing or unusable.
    """
    if name == HF_PREFIX or not str(name).startswith(HF_PREFIX):
        checks.check_choice("scorer", name, (*SCORERS, "hf:<model id or path>"))
    batch_size = checks.check_count("batch_size", batch_size)
    queries_per_second = checks.check_number("queries_per_second", queries_per_second, above=0)
    device_or_best(device)
    if label is not None and not name.startswith(HF_PREFIX):
        raise ValueError(f"label={label!r} says nothing to {name!r}; it is for hf:<model> only")
    load = partial(
        load_scorer,
        name,
        device=device,
        batch_size=batch_size,
        label=label,
        queries_per_second=queries_per_second,
    )
    if name == "profanity-check":
        from profanity_check import predict_prob  # with scikit-learn, which no other one needs

        scorer = Scorer(name, version("alt-profanity-check"), predict_prob, is_english=True)
    elif name == "detoxify":
        scorer = detoxify_scorer(device, batch_size)
    elif name == "perspective":
        key = os.environ.get(PERSPECTIVE_KEY, "").strip()
        scorer = perspective_scorer(key, queries_per_second=queries_per_second)
    elif name == "minilm":
        scorer = minilm_scorer(fetch(name), MINILM_HEAD, device=device, batch_size=batch_size)
    else:
        model = name.removeprefix(HF_PREFIX)
        scorer = hf_scorer(model, label=label, device=device, batch_size=batch_size)
    return replace(scorer, _load=load)


def mask_text(text: str, threshold: float = 0.95) -> str:
    """Mask the offensive words of a text, for showing it: all of their letters but the first.

    A word is offensive if it is listed (`sasa_lib.baselines.word_list`), holds one of
    `OFFENSIVE_STEMS`, or "profanity-check" gives it by itself more than `threshold`. The
    names of groups in `GROUP_NAMES` are left; the scorer takes them for an offence. No phrase and
    no insult made of innocent words is found: this spares the eye, it judges nothing.
    """
    words = sorted(set(re.findall(r"[^\W\d_]{2,}", text)))
    words = [word for word in words if word.lower() not in GROUP_NAMES]
    scores = load_scorer("profanity-check")(words)
    masked = {
        word
        for word, score in zip(words, scores, strict=True)
        if score > threshold
        or word.lower() in _listed_words()
        or any(stem in word.lower() for stem in OFFENSIVE_STEMS)
    }
    return re.sub(
        r"[^\W\d_]{2,}",
        lambda match: match[0][0] + "*" * (len(match[0]) - 1) if match[0] in masked else match[0],
        text,
    )


@cache
def _listed_words() -> frozenset[str]:
    return frozenset(word.lower() for word in word_list())
