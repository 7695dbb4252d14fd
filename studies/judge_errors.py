"""Measure where scorers are wrong: tests of hate speech, tweets, disguises, long texts.

    python studies/judge_errors.py
    python studies/judge_errors.py --scorers minilm detoxify
    python studies/judge_errors.py --own runs/table/generations/plain-*

Prints the tables of docs/scores.md, "Measured". HateCheck (Röttger et al. 2021), the tweets of
Davidson et al. 2017 and RealToxicityPrompts are read from SASA_SHARED_DATA. Of the latter only
texts are used that were kept aside when `minilm` was trained.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from train_minilm_scorer import read_texts
from write_results import as_table

import sasa_lib as sl
from sasa_lib.evaluation.statistics import TOXIC, wilson_interval
from sasa_lib.texts.assets import DATA_DIR

SHARED = Path(os.environ.get("SASA_SHARED_DATA", DATA_DIR.parent.parent / "shared" / "data"))
FUNCTIONS = {  # of HateCheck, in its own groups
    "derogation": "derog",
    "threat": "threat",
    "slur": "slur_h$",
    "slur, reclaimed or another word": ("slur_homonym", "slur_reclaimed"),
    "profanity, hateful": "profanity_h",
    "profanity, harmless": "profanity_nh",
    "reference in another clause": "ref_subs",
    "positive statement, negated": "negate_pos_h",
    "hateful statement, negated": "negate_neg_nh",
    "question or opinion": "phrase",
    "group, neutral or praised": "ident",
    "counter speech": "counter",
    "abuse of others than a group": "target",
    "spelling changed": "spell",
}
# Spellings and words that are frequent in African American English online, and not only there.
DIALECT = re.compile(
    r"\b(?:ain'?t|finna|tryna|imma|ima|gon|dat|dis|dey|dem|wit|bruh|y'?all|nuffin|"
    r"sumn|deadass|boutta|talmbout|da)\b",
    re.IGNORECASE,
)
ZERO_WIDTH = "\u200b"
DISGUISES: dict[str, Callable[[str], str]] = {
    "as they are": str,
    "digits for letters": lambda text: text.translate(str.maketrans("aeios", "43105")),
    "a space between letters": lambda text: "  ".join(" ".join(word) for word in text.split()),
    "a zero-width space between letters": lambda text: " ".join(
        ZERO_WIDTH.join(word) for word in text.split()
    ),
    "Cyrillic look-alikes": lambda text: text.translate(str.maketrans("aeopcx", "аеорсх")),
    "letters doubled": lambda text: re.sub(r"([aeiou])", r"\1\1", text),
    "upper case": str.upper,
}
AROUND = (50, 150, 300)  # harmless words around a toxic text


def table(header: list[str], rows: Iterable[list[object]]) -> None:
    """Print a table in Markdown."""
    lines = [header, ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    print(f"\n{as_table(lines)}", end="", flush=True)


def share(found: np.ndarray) -> str:
    """Write a share with its Wilson interval."""
    low, high = wilson_interval(found)
    return f"{np.mean(found):.2f} ({low:.2f} to {high:.2f})"


def hatecheck(scorers: dict[str, sl.scorers.Scorer]) -> None:
    """Print accuracy by function: hateful is to be over 0.5, non-hateful is not."""
    cases = pd.read_csv(SHARED / "hatecheck" / "half.csv.gz")
    hateful = cases["label_gold"] == "hateful"
    found = {name: scorer(cases["test_case"].tolist()) for name, scorer in scorers.items()}
    rows = []
    for said, names in FUNCTIONS.items():
        some = (cases["functionality"] + "$").str.startswith(names)
        gold = ", ".join(cases["label_gold"][some].unique())
        right = [share(((scores > TOXIC) == hateful)[some].to_numpy()) for scores in found.values()]
        rows.append([said, gold, some.sum(), *right])
    rows.append(
        ["all", "", len(cases)]
        + [share(((scores > TOXIC) == hateful).to_numpy()) for scores in found.values()]
    )
    aucs = [f"{roc_auc_score(hateful, scores):.2f}" for scores in found.values()]
    rows.append(["AUC", "", len(cases), *aucs])
    table(["HateCheck", "should be", "texts", *scorers], rows)


def davidson(scorers: dict[str, sl.scorers.Scorer]) -> None:
    """Print the share of tweets over 0.5, by class and by markers of a dialect."""
    tweets = pd.read_csv(SHARED / "davidson" / "part.csv.gz")
    over = {name: scorer(tweets["tweet"].tolist()) > TOXIC for name, scorer in scorers.items()}
    marked = tweets["tweet"].str.contains(DIALECT)
    rows = []
    for number, said in enumerate(("hate speech", "offensive", "neither")):
        of_class = tweets["class"] == number
        for some, which in ((of_class & marked, "with markers"), (of_class & ~marked, "without")):
            cells = [share(found[some.to_numpy()]) for found in over.values()]
            rows.append([said, which, some.sum(), *cells])
    table(["tweets called", "dialect", "texts", *scorers], rows)


def disguised(scorers: dict[str, sl.scorers.Scorer], toxic: list[str], harmless: list[str]) -> None:
    """Print the share of texts over 0.5 after what somebody does who wants to pass, or to alarm."""
    rows = []
    for said, change in DISGUISES.items():
        for texts, kind in ((toxic, "toxic"), (harmless, "harmless")):
            changed = [change(text) for text in texts]
            cells = [share(scorer(changed) > TOXIC) for scorer in scorers.values()]
            rows.append([said, kind, len(texts), *cells])
    table(["written", "texts that are", "texts", *scorers], rows)


def long(scorers: dict[str, sl.scorers.Scorer], toxic: list[str], harmless: list[str]) -> None:
    """Print the share of toxic texts that are found within harmless ones."""
    rng = np.random.default_rng(0)

    def words(number: int) -> str:
        found: list[str] = []
        while len(found) < number:
            found += harmless[rng.integers(len(harmless))].split()
        return " ".join(found[:number])

    rows = []
    for number in AROUND:
        padding = [words(number) for _ in toxic]
        for said, texts in {
            "behind": [f"{more} {text}" for text, more in zip(toxic, padding, strict=True)],
            "before": [f"{text} {more}" for text, more in zip(toxic, padding, strict=True)],
            "alone": padding,
        }.items():
            cells = [share(scorer(texts) > TOXIC) for scorer in scorers.values()]
            where = "no toxic text" if said == "alone" else f"toxic text {said} them"
            rows.append([number, where, len(texts), *cells])
    table(["harmless words", "with", "texts", *scorers], rows)


def written(run: Path) -> list[str]:
    """Read the texts of a run."""
    return [text for file in sorted(run.glob("shard-*")) for text in pd.read_parquet(file)["text"]]


def alike(scorers: dict[str, sl.scorers.Scorer], of: dict[str, list[str]]) -> None:
    """Print how far two scorers agree on texts that nobody has labelled."""
    rows = []
    for said, texts in of.items():
        first, second = (scorer(texts) for scorer in scorers.values())
        toxic = np.stack([first, second]) > TOXIC
        both = toxic.all(axis=0)[toxic.any(axis=0)]
        rank = spearmanr(first, second).statistic
        rows.append([said, len(texts), f"{rank:.2f}", *map(share, toxic), share(both)])
    over = [f"{name} over 0.5" for name in scorers]
    table(["texts", "number", "rank correlation", *over, "of those over by either, by both"], rows)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scorers", nargs="+", default=["minilm", "profanity-check"])
    parser.add_argument("--own", nargs="*", default=[], type=Path, help="folders of plain runs")
    options = parser.parse_args()
    scorers = {name: sl.load_scorer(name) for name in options.scorers}
    texts, reference, _, _, held_out = read_texts(SHARED / "rtp" / "dev.jsonl.gz")
    of = {
        kind: [text for text, yes in zip(texts, side & held_out, strict=True) if yes]
        for kind, side in (("toxic", reference > TOXIC), ("harmless", reference < 0.2))
    }
    web = {"of the web": [text for text, yes in zip(texts, held_out, strict=True) if yes]}
    alike(scorers, web | {str(run): written(run) for run in options.own})
    hatecheck(scorers)
    davidson(scorers)
    disguised(scorers, of["toxic"], of["harmless"])
    long(scorers, of["toxic"], of["harmless"])


if __name__ == "__main__":
    main()
