"""Sets of prompts, and how an instruct model is asked.

A prompt set is a `datasets.Dataset` with the column `prompt`, and whatever its source says of each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from jinja2 import Environment, TemplateError
from jinja2.meta import find_undeclared_variables
from transformers import PreTrainedTokenizerBase

from sasa_lib.checks import check_choice, check_count, check_texts
from sasa_lib.texts import formats
from sasa_lib.texts.assets import fetch
from sasa_lib.texts.sources import (
    ATTRIBUTES,
    CHECKS,
    HUMAN,
    check_path,
    columns_of,
    dataset_of,
    dialogues_of,
    load_published,
    opening_of,
    packaged_prompts,
    rtp_records,
    rtp_side,
    scored_toxic_texts,
    turns_of,
)

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
    """
    check_choice("prompt set", name, PROMPTS)
    check_path(name, path)
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
        records = rtp_records(path)
        frame = rtp_side(records, "prompt").rename(columns={"response": "prompt"})
        frame.insert(1, "challenging", records["challenging"])
    elif name == "bold":
        frame = _bold_prompts(path, subset)
    elif name == "attaq":
        frame = columns_of(load_published("ibm/AttaQ", path), ["input", "label"], "AttaQ")
        frame = frame.rename(columns={"input": "prompt", "label": "category"})
        frame = frame[["prompt", "category"]]
    elif name == "hh-rlhf":
        openings = map(opening_of, dialogues_of(path, split="test")["chosen"])
        frame = pd.DataFrame({"prompt": [text for text in dict.fromkeys(openings) if text]})
    else:
        frame = formats.renamed(formats.read_table(path), {"prompt": column})
    frame = _checked_prompts(frame, f"prompt set {name!r}", column if name == "file" else "prompt")
    return dataset_of(_subset(frame, name, subset))


def unseen(prompts: Dataset, texts: Iterable[str]) -> Dataset:
    """Leave out prompts that are among the texts that something was fitted on.

    Parameters
    ----------
    prompts : datasets.Dataset
        With a column `prompt`.
    texts : iterable of str
        Prompts and responses of the corpus, say. White space around a text does not count.

    Returns
    -------
    datasets.Dataset
        The others, in their order. Where none is left, the error says so.
    """
    seen = {text.strip() for text in texts}
    kept = [i for i, text in enumerate(prompts["prompt"]) if text.strip() not in seen]
    if not kept:
        raise ValueError(
            f"all {len(prompts)} prompts are among the texts that were fitted on: give others"
        )
    return prompts.select(kept)


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
    """
    columns = dataset.to_dict()
    for row, prompt in enumerate(check_texts(columns["prompt"], "prompt", empty=True)):
        columns["prompt"][row] = rendered(_messages(prompt, row), tokenizer, row, **template)
    if "response" in columns:
        responses = check_texts(columns["response"], "response", empty=True)
        columns["response"] = [text.lstrip() for text in responses]
    return Dataset.from_dict(columns, features=dataset.features)


def rendered(
    messages: list[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    row: int = 0,
    /,
    **template: Any,
) -> str:
    """Render one dialogue by the chat template, up to where the assistant's answer begins.

    Parameters
    ----------
    messages : list of dict
        Turns with `role` and `content`.
    tokenizer
        As returned by `sasa_lib.load_lm` for an instruct model.
    row : int
        Of the prompt, for an error.
    **template
        The chat template's own arguments.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template; take an instruct "
            "model's, or use the prompts as they are"
        )
    known = _arguments(tokenizer.get_chat_template())
    unknown = [name for name in template if name not in known]
    if unknown:  # which Jinja would pass over
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} has no argument {unknown[0]!r}; it "
            f"has {', '.join(sorted(known))}"
        )
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **template
        )
    except TemplateError as error:
        raise ValueError(f"prompt {row}: the chat template refuses it ({error})") from error
    # Not every tokenizer adds the token that it names: SmolLM2's is only ever the template's.
    adds_bos = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if adds_bos else text


@cache
def _arguments(template: str) -> set[str]:
    """Names that a chat template reads, but for those that `chat` itself fills in."""
    syntax = Environment(extensions=["jinja2.ext.loopcontrols"])
    # A tag of transformers' own, which marks what the assistant says.
    tree = syntax.parse(re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template))
    return find_undeclared_variables(tree) - {"messages", "add_generation_prompt"}


def _embedded_prompts() -> pd.DataFrame:
    prompts = pd.DataFrame({"prompt": packaged_prompts()})
    scored = scored_toxic_texts().rename(columns={"response": "prompt"})
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


def _bold_prompts(path: str | Path | None, subset: str | None) -> pd.DataFrame:
    if path is None:
        rows = _bold_rows(load_published("AmazonScience/bold", None))
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
    columns_of(rows, ["prompts", "domain", "category", "name"], "BOLD")
    if not rows["prompts"].map(lambda prompts: isinstance(prompts, list)).all():
        raise ValueError(
            "this is not BOLD in its published format: the prompts of an entity must be a list"
        )
    names = {"prompts": "prompt", "domain": "domain", "category": "group", "name": "entity"}
    return rows[list(names)].rename(columns=names)


def _messages(prompt: str, row: int) -> list[dict[str, str]]:
    if not prompt.startswith(HUMAN):
        return [{"role": "user", "content": prompt}]
    turns = turns_of(prompt)
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()  # the template opens the answer itself
    if turns[-1]["role"] != "user":
        raise ValueError(
            f"the dialogue of row {row} ends with what the assistant says; it must end with a "
            'human turn, or with "Assistant:" after it'
        )
    return turns


def _checked_prompts(frame: pd.DataFrame, name: str, column: str) -> pd.DataFrame:
    table = {"prompt": formats.texts(frame["prompt"], f"{name}: {column}")}
    table |= {c: CHECKS[c](frame[c], f"{name}: {c}") for c in frame if c in CHECKS}
    return pd.DataFrame(table)


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
