"""Published datasets as they come: their records, dialogues, columns and what these must hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, Features, Value, load_dataset

from sasa_lib.checks import first_line
from sasa_lib.texts import formats
from sasa_lib.texts.assets import fetch

ATTRIBUTES = (
    "toxicity", "severe_toxicity", "profanity", "sexually_explicit", "identity_attack",
    "flirtation", "threat", "insult",
)  # fmt: skip
CIVIL_COMMENTS_ATTRIBUTES = (
    "toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack",
    "sexual_explicit",
)  # fmt: skip
# What the columns of a prompt set must hold.
CHECKS = dict.fromkeys((*ATTRIBUTES, *CIVIL_COMMENTS_ATTRIBUTES), formats.values)
CHECKS |= dict.fromkeys(("domain", "group", "entity", "category"), formats.labels)
CHECKS |= {"challenging": formats.flags}
EMBEDDED = ("contrast-pairs", "rtp-toxic-texts", "everyday-texts")
CORPORA = ("embedded", *EMBEDDED, "rtp", "civil_comments", "hh-rlhf", "file")
PACKAGED = ("embedded", *EMBEDDED, "crows-pairs", "do-not-answer")
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def scored_toxic_texts() -> pd.DataFrame:
    """Texts of RealToxicityPrompts with all of Perspective's scores, from a package."""
    texts = formats.read_table(fetch("rtp-toxic-texts") / "Toxicity.jsonl")
    return texts.rename(columns={"text": "response"}).drop_duplicates("response")


def first_sentence(text: str) -> str | None:
    """First sentence of 8 to 45 words."""
    sentences = re.split(r"(?<=[.!?])\s+|\n+", text)
    return next((s for s in sentences if 8 <= len(s.split()) <= 45), None)


def packaged_prompts() -> list[str]:
    """Prompts of RealToxicityPrompts without scores, from a package."""
    files = sorted(fetch("rtp-prompts").glob("*.txt"))
    lines = [line for f in files for line in f.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(line for line in lines if line.strip()))


def rtp_side(records: pd.DataFrame, side: str) -> pd.DataFrame:
    """One side of RealToxicityPrompts, prompt or continuation, with its scores."""
    for row, text in enumerate(records[side]):
        missing = [c for c in ("text", *ATTRIBUTES) if not isinstance(text, dict) or c not in text]
        if missing:
            raise ValueError(
                "this is not RealToxicityPrompts in its published format: "
                f"{side} of row {row} has no {missing[0]!r}"
            )
    texts = pd.DataFrame(list(records[side]), dtype=object).rename(columns={"text": "response"})
    return texts[["response", *ATTRIBUTES]]


def rtp_records(path: str | Path | None) -> pd.DataFrame:
    """All records of RealToxicityPrompts, of a file or from the hub."""
    records = load_published("allenai/real-toxicity-prompts", path)
    return columns_of(records, ["prompt", "continuation", "challenging"], "RealToxicityPrompts")


def dialogues_of(path: str | Path | None, split: str) -> pd.DataFrame:
    """Pairs of dialogues of hh-rlhf, of a file or from the hub."""
    dialogues = load_published("Anthropic/hh-rlhf", path, split=split, data_dir="harmless-base")
    columns_of(dialogues, ["chosen", "rejected"], "hh-rlhf")
    for side in ("chosen", "rejected"):
        good = [isinstance(text, str) and text.startswith(HUMAN) for text in dialogues[side]]
        if not all(good):
            raise ValueError(
                f"this is not hh-rlhf in its published format: {side} of row {good.index(False)} "
                f"does not begin with {HUMAN!r}"
            )
    return dialogues


def opening_of(dialogue: str) -> str:
    """All of a dialogue up to what the assistant says last."""
    return turns_of(dialogue)[0]["content"]


def last_turn(dialogue: str) -> tuple[str, str]:
    """Split off all that the assistant says after the last human turn."""
    start = dialogue.find(ASSISTANT, dialogue.rfind(HUMAN))
    if start < 0:
        return dialogue, ""
    # Tokenised apart from the prompt, a response needs the space between them.
    return dialogue[:start] + ASSISTANT, " " + turns_of(dialogue[start:])[0]["content"]


def turns_of(dialogue: str) -> list[dict[str, str]]:
    """Turns of a dialogue of hh-rlhf as messages of a chat."""
    """Messages of a dialogue in the format of hh-rlhf.

    Some dialogues name one speaker twice in a row; chat templates insist on turns. One line break
    between the two, for an assistant that says "Human:" must not look like the next turn.
    """
    _, *pieces = re.split(f"({HUMAN}|{ASSISTANT})", dialogue)
    turns: list[dict[str, str]] = []
    for speaker, text in zip(pieces[::2], pieces[1::2], strict=True):
        role = "user" if speaker == HUMAN else "assistant"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n" + text.strip()
        else:
            turns.append({"role": role, "content": text.strip()})
    return turns


def load_published(
    repository: str, path: str | Path | None, *, split: str = "train", data_dir: str | None = None
) -> pd.DataFrame:
    """Rows of a published dataset on the hub, or a sentence that says why not."""
    if path is not None:
        return formats.read_table(path)
    try:
        dataset = load_dataset(repository, split=split, data_dir=data_dir)
        return formats.from_arrow(dataset.with_format("arrow")[:])
    except Exception as error:  # the hub client raises a dozen unrelated types
        said = f"cannot load {repository} from the hub ({first_line(error)})"
        raise ValueError(f"{said}; give a local copy as path=...") from error


def columns_of(frame: pd.DataFrame, needed: Iterable[str], what: str) -> pd.DataFrame:
    """These columns of a table, which must be there."""
    missing = [column for column in needed if column not in frame]
    if missing:
        raise ValueError(
            f"this is not {what} in its published format: it has no column {missing[0]!r}; "
            "load a file of your own by the name 'file'"
        )
    return frame


def check_path(name: str, path: str | Path | None) -> None:
    """Raise ValueError where a corpus needs a file, or takes none."""
    if name == "file" and path is None:
        raise ValueError("'file' needs path=..., a .csv, .jsonl or .parquet file")
    if path is not None and name in PACKAGED:
        raise ValueError(f"{name!r} comes with a package; leave path={str(path)!r} out")


def checked_corpus(frame: pd.DataFrame, name: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """A table whose columns hold what the schema says, in a sentence with row and column else."""
    if "response" not in frame:
        raise ValueError(f"{name} has no column 'response' (the annotated text)")

    def said(column: str) -> str:
        return f"{name}: {columns.get(column, column)}"

    nothing = [None] * len(frame)
    table: dict[str, list[Any]] = {
        "prompt": formats.texts(frame.get("prompt", nothing), said("prompt"), empty=True),
        "response": formats.texts(frame["response"], said("response")),
    }
    groups = formats.labels(frame.get("group", nothing), said("group"))
    table["group"] = [f"row-{i}" if group is None else group for i, group in enumerate(groups)]
    # A file may hold other numbers too, such as ids; only what is named as a value must be one.
    known = {*ATTRIBUTES, *CIVIL_COMMENTS_ATTRIBUTES, *columns}
    for column in frame.columns.difference(list(table), sort=False):
        try:
            values = formats.values(frame[column], said(column))
        except ValueError:
            if column in known:
                raise
            continue
        if column in known or not np.isnan(values).all():
            table[column] = values
    if len(table) == 3:
        raise ValueError(f"{name} has no column with values in [0, 1]")
    return pd.DataFrame(table)


def dataset_of(frame: pd.DataFrame) -> Dataset:
    """A table as a `datasets.Dataset`."""
    features = Features()
    for name, column in frame.items():
        text = "bool" if name == "challenging" else "large_string"
        features[name] = Value("float64" if column.dtype == float else text)
    return Dataset.from_pandas(frame.reset_index(drop=True), features, preserve_index=False)
