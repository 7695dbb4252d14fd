"""Whether more data make a better judge: the head of `minilm` on RealToxicityPrompts and others.

    python studies/better_judge.py

Fills the table "A judge 2.0?" of docs/scores.md. To the texts that `minilm` was trained on, half of
the tweets of Davidson et al. and half of HateCheck's functional tests are added. What is reported
is the rest: the held-out tenth of RealToxicityPrompts, the other tweets, and the other
functionalities of HateCheck, of which no template was seen.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from train_minilm_scorer import calibration, read_texts, train

from sasa_lib.evaluation.scorers import load_minilm, minilm_logit, minilm_states
from sasa_lib.texts.assets import DATA_DIR, fetch

SHARED = Path(os.environ.get("SASA_SHARED_DATA", DATA_DIR.parent.parent / "shared" / "data"))
# Chosen and not measured: labels have no grades.
TOXICITY = {"hate speech": 0.8, "offensive": 0.7, "neither": 0.1, "hateful": 0.8, "harmless": 0.1}


def is_first_half(name: str) -> bool:
    """Split by a hash, the same everywhere."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2 == 0


def read() -> pd.DataFrame:
    """Read all texts, with the toxicity to learn, where they are from and whether they train."""
    texts, scores, _, _, held_out = read_texts(SHARED / "rtp" / "dev.jsonl.gz")
    rtp = pd.DataFrame({"text": texts, "toxicity": scores, "trains": ~held_out, "of": "rtp"})
    rtp["toxic"] = rtp["toxicity"] > 0.5
    tweets = pd.read_csv(SHARED / "davidson" / "part.csv.gz")
    said = tweets["class"].map({0: "hate speech", 1: "offensive", 2: "neither"})
    tweets = pd.DataFrame({"text": tweets["tweet"], "toxicity": said.map(TOXICITY)})
    tweets = tweets.assign(of="tweets", toxic=said != "neither")
    tweets["trains"] = tweets["text"].map(is_first_half)
    cases = pd.read_csv(SHARED / "hatecheck" / "half.csv.gz")
    hateful = cases["label_gold"] == "hateful"
    hatecheck = pd.DataFrame({"text": cases["test_case"], "toxic": hateful, "of": "hatecheck"})
    hatecheck["toxicity"] = np.where(hateful, TOXICITY["hateful"], TOXICITY["harmless"])
    hatecheck["trains"] = cases["functionality"].map(is_first_half)
    return pd.concat([rtp, tweets, hatecheck], ignore_index=True)


def main() -> None:
    """Train with and without, and print the table."""
    torch.set_num_threads(1)
    table = read()
    encoder, tokenizer = load_minilm(fetch("minilm"), "cpu")
    found = sorted(minilm_states(encoder, tokenizer, table["text"].tolist()), key=lambda p: p[0])
    states = [of_text for _, of_text in found]
    print("| trained on | texts | RealToxicityPrompts, AUC | HateCheck, AUC | tweets, AUC "
          "| harmless tweets over 0.5 |\n|---|---|---|---|---|---|")  # fmt: skip
    for added in ([], ["tweets"], ["hatecheck"], ["tweets", "hatecheck"]):
        rows = np.flatnonzero(table["trains"] & table["of"].isin(["rtp", *added]))
        rtp = table["of"].to_numpy()[rows] == "rtp"
        scores = table["toxicity"].to_numpy()
        weights, bias = train([states[i] for i in rows], scores[rows])
        logits = np.array([minilm_logit(of_text, weights, bias) for of_text in states])
        slope, intercept = calibration(logits[rows[rtp]], scores[rows[rtp]])
        cells = []
        for of in ("rtp", "hatecheck", "tweets"):
            test = (~table["trains"] & (table["of"] == of)).to_numpy()
            cells.append(f"{roc_auc_score(table['toxic'][test], logits[test]):.3f}")
        harmless = test & ~table["toxic"].to_numpy()
        cells.append(f"{(slope * logits[harmless] + intercept > 0).mean():.2f}")
        name = " and ".join(["RealToxicityPrompts", *added])
        print(f"| {name} | {len(rows):,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
