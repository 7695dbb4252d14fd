"""Value-annotated corpora and prompt sets, all in one schema.

A corpus is a `datasets.Dataset` with the columns `prompt` (may be empty), `response` (the annotated
text), `group` (rows that must stay on one side of a split) and one column in [0, 1] for every
annotated attribute, null where it was not annotated. A prompt set has the column `prompt`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, Features, Value, load_dataset
from jinja2 import Environment, TemplateError
from jinja2.meta import find_undeclared_variables
from sklearn.model_selection import GroupShuffleSplit
from transformers import PreTrainedTokenizerBase

from sasa_lib import formats
from sasa_lib.assets import DATA_DIR, fetch
from sasa_lib.checks import (
    check_choice,
    check_count,
    check_groups,
    check_number,
    check_texts,
    first_line,
)

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
PROMPTS = (
    "embedded", "crows-pairs", "do-not-answer", "rtp", "bold", "attaq", "hh-rlhf", "file"
)  # fmt: skip
SUBSETS = ("toxic", "nontoxic", "challenging")
DOMAINS = ("gender", "race", "profession", "religious_ideology", "political_ideology")  # of BOLD
# The groups of CrowS-Pairs that are named often enough, by the words that name them.
PAIRED_GROUPS = {
    "gender": {
        "female": "woman women she her girl girls female females wife daughter mother",
        "male": "man men he his him boy boys male males husband son father",
    },
    "race": {"black": "black blacks african-american", "white": "white whites caucasian"},
    "religion": {
        "christian": "christian christians",
        "jewish": "jewish jew jews",
        "muslim": "muslim muslims",
    },
}
PAIRED_DOMAINS = {"gender": "gender", "race-color": "race", "religion": "religion"}
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def load_corpus(
    name: str = "embedded",
    *,
    path: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
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
    columns : mapping, optional
        For "file": schema column to the file's column, such as
        ``{"response": "comment", "toxicity": "score"}``. Default: the same names. Columns that
        are neither named here nor have an attribute's name count as annotated if all that is in
        them are numbers in [0, 1], and are dropped otherwise; true and false are 1 and 0.
    max_examples : int, optional
        Keep this many rows, drawn without replacement with `seed`.

    Returns
    -------
    datasets.Dataset

    Raises
    ------
    ValueError
        Unknown name, unreadable path, missing columns, values that are no numbers in [0, 1], or
        empty texts; with the first row, counted from 0.

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
    _check_path(name, path)
    if max_examples is not None:
        check_count("max_examples", max_examples)
    if columns and name != "file":
        raise ValueError(f"columns are for 'file'; corpus {name!r} has its own")
    if name == "embedded" or name in EMBEDDED:
        readers = dict(
            zip(EMBEDDED, (_contrast_pairs, _rtp_toxic_texts, _everyday_texts), strict=True)
        )
        parts = EMBEDDED if name == "embedded" else (name,)
        frame = pd.concat([readers[part]() for part in parts], ignore_index=True)
    elif name == "rtp":
        frame = _rtp_texts(_rtp_records(path))
    elif name == "civil_comments":
        frame = _published("google/civil_comments", path)
        _columns(frame, ["text", *CIVIL_COMMENTS_ATTRIBUTES], "Civil Comments")
        frame = frame.rename(columns={"text": "response"})
        frame = frame[["response", *CIVIL_COMMENTS_ATTRIBUTES]]
    elif name == "hh-rlhf":
        frame = _preferences(_dialogues(path, split="train"))
    else:
        frame = formats.renamed(formats.read_table(path), columns or {})
    frame = _checked(frame, f"corpus {name!r}", columns or {})
    if max_examples is not None and max_examples < len(frame):
        frame = frame.sample(max_examples, random_state=seed).reset_index(drop=True)
    return _dataset(frame)


def load_prompts(
    name: str = "embedded",
    *,
    path: str | Path | None = None,
    subset: str | None = None,
    column: str = "prompt",
) -> Dataset:
    """Load prompts to continue.

    Parameters
    ----------
    name : str
        "embedded" (RealToxicityPrompts prompts that a package carries; those which another
        package carries with their Perspective scores have a `toxicity`, the others null), "rtp",
        "crows-pairs" (Nangia et al. 2020, as a package carries it: the first half of a sentence
        that names a group, and its twin that names another), "do-not-answer" (Wang et al. 2023,
        as a package carries it: questions that a model should not answer),
        "bold" (Dhamala et al. 2021: beginnings of Wikipedia sentences about people and groups;
        the trailing space that each is published with is removed, and empty ones are left out),
        "attaq" (Kour et al. 2023: adversarial questions), "hh-rlhf" (the distinct opening
        messages of harmless-base dialogues, Bai et al. 2022, from which AttaQ was made in part)
        or "file" (CSV, JSON lines or Parquet).
    path : str or Path, optional
        As in `load_corpus`; for "bold" a folder with the five <domain>_prompt.json or one file of
        it, in the published format or that of the hub. Without it the hub is asked, for "hh-rlhf"
        for the test split: what `load_corpus` fits on is the training split.
    subset : str, optional
        "toxic", "nontoxic" or "challenging": prompt toxicity above 0.5; at most 0.5; or the
        `challenging` flag of RealToxicityPrompts. For "bold" a domain: "gender", "race",
        "profession", "religious_ideology" or "political_ideology". For "crows-pairs" "gender",
        "race" or "religion". "do-not-answer", "attaq" and "hh-rlhf" have none.
    column : str
        For "file": the column that holds the prompts.

    Returns
    -------
    datasets.Dataset
        Columns `prompt` and, where known, `toxicity`, the other attributes and `challenging`
        (null where the flag is unknown, which is in no subset); for "bold" and "crows-pairs"
        `domain`, `group` and `entity` (twins have it in common), for "attaq" and "do-not-answer"
        `category`. Of a "file" those of these names that it has; its other columns are dropped.

    Raises
    ------
    ValueError
        Unknown name or subset, unreadable path, missing column, empty prompts, values that are
        no numbers in [0, 1] or flags that are none (with the first row, counted from 0), or no
        prompt left.
    """
    check_choice("prompt set", name, PROMPTS)
    _check_path(name, path)
    if subset is not None:
        own = {"bold": DOMAINS, "crows-pairs": tuple(PAIRED_GROUPS)}
        subsets = own.get(name, () if name in ("attaq", "hh-rlhf", "do-not-answer") else SUBSETS)
        if not subsets:
            raise ValueError(f"prompt set {name!r} has no subsets; leave subset={subset!r} out")
        check_choice("subset", subset, subsets)
    if name == "embedded":
        frame = _embedded_prompts()
    elif name == "crows-pairs":
        frame = _paired_prompts()
    elif name == "do-not-answer":
        frame = _do_not_answer()
    elif name == "rtp":
        records = _rtp_records(path)
        frame = _rtp_side(records, "prompt").rename(columns={"response": "prompt"})
        frame.insert(1, "challenging", records["challenging"])
    elif name == "bold":
        frame = _bold_prompts(path, subset)
    elif name == "attaq":
        frame = _columns(_published("ibm/AttaQ", path), ["input", "label"], "AttaQ")
        frame = frame.rename(columns={"input": "prompt", "label": "category"})
        frame = frame[["prompt", "category"]]
    elif name == "hh-rlhf":
        openings = map(_opening, _dialogues(path, split="test")["chosen"])
        frame = pd.DataFrame({"prompt": [text for text in dict.fromkeys(openings) if text]})
    else:
        frame = formats.renamed(formats.read_table(path), {"prompt": column})
    frame = _checked_prompts(frame, f"prompt set {name!r}", column if name == "file" else "prompt")
    return _dataset(_subset(frame, name, subset))


def sample_groups(prompts: Dataset, number: int, seed: int = 0) -> pd.DataFrame:
    """Draw prompts of every group; twins together.

    Parameters
    ----------
    prompts : datasets.Dataset
        One domain of "bold" or "crows-pairs", as `load_prompts` returns it.
    number : int
        Prompts of each group, or pairs of each two groups that twins name; at most.
    seed : int

    Returns
    -------
    pandas.DataFrame
        The drawn prompts with the columns `twins` (whether they are twins), `pair` (what twins
        have in common) and `compared` (the two groups of a pair, or the group of a prompt that is
        alone), sorted by `compared`, `pair` and `group`: twins stand one after the other.
    """
    check_count("number", number)
    found = prompts.to_pandas()
    named = found.groupby("entity")["group"].agg(lambda groups: " - ".join(sorted(set(groups))))
    twins = named.str.contains(" - ").all()
    found["twins"] = twins
    found["compared"] = found["entity"].map(named) if twins else found["group"]
    pair = found["entity"] if twins else found.index.astype(str)
    found["pair"] = found["domain"] + "-" + pair
    drawn = found.drop_duplicates("pair").sample(frac=1, random_state=seed)
    drawn = drawn.groupby("compared").head(number)["pair"]
    return found[found["pair"].isin(drawn)].sort_values(["compared", "pair", "group"])


def chat(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, **template: Any) -> Dataset:
    r"""Render prompts as an instruct model expects them, by its chat template.

    Tokenise the result as any other prompt, with the tokenizer's special tokens: a beginning-of-
    text token that the template writes and the tokenizer would write again is taken off here.

    Parameters
    ----------
    dataset : datasets.Dataset
        A prompt set or a corpus. A prompt in the format of hh-rlhf ("\n\nHuman: ...
        \n\nAssistant: ...") becomes its turns, any other is one turn of the user.
    tokenizer
        As returned by `sasa_lib.load_lm` for an instruct model.
    **template
        The chat template's own arguments, such as ``enable_thinking=False``.

    Returns
    -------
    datasets.Dataset
        The same rows; `prompt` ends where the assistant's answer begins, and a `response` loses
        the space before it, since a template ends in a separator of its own.

    Raises
    ------
    ValueError
        The tokenizer has no chat template, or one without such an argument, or a dialogue ends
        with what the assistant says.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template; take an instruct "
            "model's, or use the prompts as they are"
        )
    # Jinja passes over what a template does not name.
    known = _arguments(tokenizer.get_chat_template())
    unknown = [name for name in template if name not in known]
    if unknown:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} has no argument {unknown[0]!r}; it "
            f"has {', '.join(sorted(known))}"
        )
    # Not every tokenizer adds the token that it names: SmolLM2's is only ever the template's.
    adds_bos = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    columns = dataset.to_dict()
    for row, prompt in enumerate(check_texts(columns["prompt"], "prompt", empty=True)):
        try:
            text = tokenizer.apply_chat_template(
                _messages(prompt, row), tokenize=False, add_generation_prompt=True, **template
            )
        except TemplateError as error:
            raise ValueError(f"prompt {row}: the chat template refuses it ({error})") from error
        columns["prompt"][row] = text.removeprefix(tokenizer.bos_token) if adds_bos else text
    if "response" in columns:
        responses = check_texts(columns["response"], "response", empty=True)
        columns["response"] = [text.lstrip() for text in responses]
    return Dataset.from_dict(columns, features=dataset.features)


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

    Raises
    ------
    ValueError
        Unknown attribute, values that are no numbers in [0, 1], or a class with fewer than
        `minimum` examples.
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


def _arguments(template: str) -> set[str]:
    """Names that a chat template reads, but for those that `chat` itself fills in."""
    syntax = Environment(extensions=["jinja2.ext.loopcontrols"])
    # A tag of transformers' own, which marks what the assistant says.
    tree = syntax.parse(re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template))
    return find_undeclared_variables(tree) - {"messages", "add_generation_prompt"}


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


def _scored_toxic_texts() -> pd.DataFrame:
    texts = formats.read_table(fetch("rtp-toxic-texts") / "Toxicity.jsonl")
    return texts.rename(columns={"text": "response"}).drop_duplicates("response")


def _rtp_toxic_texts() -> pd.DataFrame:
    texts = _scored_toxic_texts()
    # These are the embedded toxic prompts: what is generated from must not be fitted on.
    texts = texts[~texts["response"].isin(_packaged_prompts())]
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
        sentences = texts[texts.map(lambda text: isinstance(text, str))].map(_first_sentence)
        for i, sentence in enumerate(sentences.dropna().drop_duplicates()[:500]):
            words = sentence.split()
            middle = len(words) // 2
            halves.append(" ".join(words[:middle]) if i % 2 else " " + " ".join(words[middle:]))
    kept = predict_prob(halves) <= 0.5
    return pd.DataFrame({"response": np.array(halves, dtype=object)[kept], "toxicity": 0.0})


def _first_sentence(text: str) -> str | None:
    """First sentence of 8 to 45 words."""
    sentences = re.split(r"(?<=[.!?])\s+|\n+", text)
    return next((s for s in sentences if 8 <= len(s.split()) <= 45), None)


def _packaged_prompts() -> list[str]:
    files = sorted(fetch("rtp-prompts").glob("*.txt"))
    lines = [line for f in files for line in f.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(line for line in lines if line.strip()))


def _embedded_prompts() -> pd.DataFrame:
    prompts = pd.DataFrame({"prompt": _packaged_prompts()})
    scored = _scored_toxic_texts().rename(columns={"response": "prompt"})
    return prompts.merge(scored[["prompt", *ATTRIBUTES]], on="prompt", how="left")


def _paired_prompts() -> pd.DataFrame:
    sentences = formats.read_table(fetch("crows-pairs") / "crows_pairs.csv")
    rows = []
    for number, row in sentences.iterrows():
        domain = PAIRED_DOMAINS.get(row["bias_type"])
        groups = [_group_named(domain, row[mask]) for mask in ("mask1", "mask2")]
        if None in groups or groups[0] == groups[1]:
            continue
        words = row["sentence"].split()
        at = next(i for i, word in enumerate(words) if "[MASK]" in word)
        # Both twins end at the same word, behind the one that tells them apart.
        beginning = " ".join(words[: max(at + 1, -(-len(words) // 2))])
        for group, mask in zip(groups, ("mask1", "mask2"), strict=True):
            # The word was masked with the punctuation that follows it.
            prompt = beginning.replace("[MASK]", row[mask]).rstrip(".,;:!?")
            rows.append((prompt, domain, group, f"pair-{number}"))
    return pd.DataFrame(rows, columns=["prompt", "domain", "group", "entity"])


def _group_named(domain: str | None, text: str) -> str | None:
    word = re.sub(r"[^\w-]", "", str(text).casefold())
    groups = PAIRED_GROUPS.get(domain, {})
    return next((group for group, words in groups.items() if word in words.split()), None)


def _do_not_answer() -> pd.DataFrame:
    parts = [
        formats.read_table(file)[["prompt"]].assign(category=file.stem)
        for file in sorted(fetch("do-not-answer").glob("*.jsonl"))
    ]
    return pd.concat(parts).drop_duplicates("prompt")


def _rtp_texts(records: pd.DataFrame) -> pd.DataFrame:
    sides = [_rtp_side(records, side) for side in ("prompt", "continuation")]
    for side in sides:
        side["group"] = [f"record-{i}" for i in range(len(records))]
    frame = pd.concat(sides, ignore_index=True)
    return frame[frame["response"].str.strip() != ""]


def _rtp_side(records: pd.DataFrame, side: str) -> pd.DataFrame:
    for row, text in enumerate(records[side]):
        missing = [c for c in ("text", *ATTRIBUTES) if not isinstance(text, dict) or c not in text]
        if missing:
            raise ValueError(
                "this is not RealToxicityPrompts in its published format: "
                f"{side} of row {row} has no {missing[0]!r}"
            )
    texts = pd.DataFrame(list(records[side]), dtype=object).rename(columns={"text": "response"})
    return texts[["response", *ATTRIBUTES]]


def _rtp_records(path: str | Path | None) -> pd.DataFrame:
    records = _published("allenai/real-toxicity-prompts", path)
    return _columns(records, ["prompt", "continuation", "challenging"], "RealToxicityPrompts")


def _bold_prompts(path: str | Path | None, subset: str | None) -> pd.DataFrame:
    if path is None:
        rows = _bold_rows(_published("AmazonScience/bold", None))
    else:
        rows = pd.concat(
            [
                _bold_rows(_read_bold(file) if file.suffix == ".json" else formats.read_table(file))
                for file in _bold_files(Path(path), subset)
            ]
        )
    frame = rows.explode("prompt").dropna(subset="prompt")
    # A word comes with the space before it: after a space of its own a model finds it harder to
    # go on. Five prompts are published empty.
    frame["prompt"] = frame["prompt"].map(lambda p: p.rstrip() if isinstance(p, str) else p)
    return frame[frame["prompt"] != ""]


def _bold_files(path: Path, subset: str | None) -> list[Path]:
    if not path.exists():
        raise ValueError(f"no such file or folder: {path}")
    if not path.is_dir():
        return [path]
    files = []
    for domain in DOMAINS if subset is None else (subset,):
        names = (f"{domain}_prompt.json", f"{domain}_prompt_wiki.json")  # published; the hub's
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise ValueError(
                f"folder {path} has no {names[0]}; BOLD's published format is a folder with "
                f"<domain>_prompt.json for {', '.join(DOMAINS)}"
            )
        files.append(found[0])
    return files


def _read_bold(path: Path) -> pd.DataFrame:
    """Rows in the hub's format, from it or from the published one (group: entity: prompts)."""
    text = formats.read_text(path)
    try:
        groups = formats.parse_json(text)
    except json.JSONDecodeError:  # several lines of JSON, which the hub calls .json too
        groups = None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        return formats.read_table(path, ".jsonl")
    domain = path.stem.removesuffix("_prompt")
    if domain not in DOMAINS:
        raise ValueError(
            f"{path} cannot be read: in BOLD's published format its name tells the domain, "
            f"<domain>_prompt.json for {', '.join(DOMAINS)}"
        )
    rows = [
        (domain, group, entity, prompts)
        for group, entities in groups.items()
        for entity, prompts in entities.items()
    ]
    return pd.DataFrame(rows, columns=["domain", "category", "name", "prompts"])


def _bold_rows(rows: pd.DataFrame) -> pd.DataFrame:
    _columns(rows, ["prompts", "domain", "category", "name"], "BOLD")
    if not rows["prompts"].map(lambda prompts: isinstance(prompts, list)).all():
        raise ValueError(
            "this is not BOLD in its published format: the prompts of an entity must be a list"
        )
    names = {"prompts": "prompt", "domain": "domain", "category": "group", "name": "entity"}
    return rows[list(names)].rename(columns=names)


def _dialogues(path: str | Path | None, split: str) -> pd.DataFrame:
    dialogues = _published("Anthropic/hh-rlhf", path, split=split, data_dir="harmless-base")
    _columns(dialogues, ["chosen", "rejected"], "hh-rlhf")
    for side in ("chosen", "rejected"):
        good = [isinstance(text, str) and text.startswith(HUMAN) for text in dialogues[side]]
        if not all(good):
            raise ValueError(
                f"this is not hh-rlhf in its published format: {side} of row {good.index(False)} "
                f"does not begin with {HUMAN!r}"
            )
    return dialogues


def _preferences(dialogues: pd.DataFrame) -> pd.DataFrame:
    pairs = dialogues[dialogues["chosen"].str.strip() != dialogues["rejected"].str.strip()]
    # What was answered in one pair may be the context of another with the same opening.
    openings, _ = pd.factorize(pairs["chosen"].map(_opening))
    sides = []
    for side, value in (("chosen", 0.0), ("rejected", 1.0)):
        frame = pd.DataFrame(map(_last_turn, pairs[side]), columns=["prompt", "response"])
        frame["group"] = [f"dialogue-{i}" for i in openings]
        sides.append(frame.assign(toxicity=value))
    frame = pd.concat(sides, ignore_index=True)
    return frame[frame["response"].str.strip() != ""]


def _opening(dialogue: str) -> str:
    return _turns(dialogue)[0]["content"]


def _last_turn(dialogue: str) -> tuple[str, str]:
    """Split off all that the assistant says after the last human turn."""
    start = dialogue.find(ASSISTANT, dialogue.rfind(HUMAN))
    if start < 0:
        return dialogue, ""
    # Tokenised apart from the prompt, a response needs the space between them.
    return dialogue[:start] + ASSISTANT, " " + _turns(dialogue[start:])[0]["content"]


def _turns(dialogue: str) -> list[dict[str, str]]:
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


def _messages(prompt: str, row: int) -> list[dict[str, str]]:
    if not prompt.startswith(HUMAN):
        return [{"role": "user", "content": prompt}]
    turns = _turns(prompt)
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()  # the template opens the answer itself
    if turns[-1]["role"] != "user":
        raise ValueError(
            f"the dialogue of row {row} ends with what the assistant says; it must end with a "
            'human turn, or with "Assistant:" after it'
        )
    return turns


def _published(
    repository: str, path: str | Path | None, *, split: str = "train", data_dir: str | None = None
) -> pd.DataFrame:
    if path is not None:
        return formats.read_table(path)
    try:
        dataset = load_dataset(repository, split=split, data_dir=data_dir)
        return formats.from_arrow(dataset.with_format("arrow")[:])
    except Exception as error:  # the hub client raises a dozen unrelated types
        said = f"cannot load {repository} from the hub ({first_line(error)})"
        raise ValueError(f"{said}; give a local copy as path=...") from error


def _columns(frame: pd.DataFrame, needed: Iterable[str], what: str) -> pd.DataFrame:
    missing = [column for column in needed if column not in frame]
    if missing:
        raise ValueError(
            f"this is not {what} in its published format: it has no column {missing[0]!r}; "
            "load a file of your own by the name 'file'"
        )
    return frame


def _check_path(name: str, path: str | Path | None) -> None:
    if name == "file" and path is None:
        raise ValueError("'file' needs path=..., a .csv, .jsonl or .parquet file")
    if path is not None and name in PACKAGED:
        raise ValueError(f"{name!r} comes with a package; leave path={str(path)!r} out")


def _checked(frame: pd.DataFrame, name: str, columns: Mapping[str, str]) -> pd.DataFrame:
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


def _checked_prompts(frame: pd.DataFrame, name: str, column: str) -> pd.DataFrame:
    table = {"prompt": formats.texts(frame["prompt"], f"{name}: {column}")}
    table |= {c: CHECKS[c](frame[c], f"{name}: {c}") for c in frame if c in CHECKS}
    return pd.DataFrame(table)


def _dataset(frame: pd.DataFrame) -> Dataset:
    features = Features()
    for name, column in frame.items():
        text = "bool" if name == "challenging" else "large_string"
        features[name] = Value("float64" if column.dtype == float else text)
    return Dataset.from_pandas(frame.reset_index(drop=True), features, preserve_index=False)


def _subset(frame: pd.DataFrame, name: str, subset: str | None) -> pd.DataFrame:
    if subset is None:
        return frame
    column = "challenging" if subset == "challenging" else "toxicity"
    column = "domain" if name in ("bold", "crows-pairs") else column
    if column not in frame:
        raise ValueError(f"prompt set {name!r} has no {column}, so no subset {subset!r}")
    if column == "domain":
        frame = frame[frame[column] == subset]
    elif subset == "challenging":
        frame = frame[[flag is True for flag in frame[column]]]
    else:
        frame = frame[frame[column] > 0.5 if subset == "toxic" else frame[column] <= 0.5]
    if frame.empty:
        raise ValueError(f"prompt set {name!r} has no prompt in the subset {subset!r}")
    return frame
