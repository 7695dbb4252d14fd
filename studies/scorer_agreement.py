"""Compare scorers with Perspective on RealToxicityPrompts texts that "minilm" never saw.

    python studies/scorer_agreement.py
    python studies/scorer_agreement.py --scorers minilm detoxify hf:unitary/toxic-bert
    python studies/scorer_agreement.py --scale data/perspective_scale.csv

Fills the table of docs/scorers.md: agreement with 95% intervals over records, and texts per
second on one thread of the CPU. The texts are those that studies/train_minilm_scorer.py kept
aside. `--scale` keeps the pairs of scores, from which `PerspectiveScale.of` is made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from threadpoolctl import threadpool_limits
from train_minilm_scorer import read_texts

from sasa_lib.evaluation.agreement import agreement
from sasa_lib.evaluation.scorers import MINILM_HEAD, Scorer, load_scorer
from sasa_lib.texts.assets import DATA_DIR

PASSES = 3
COLUMNS = {"auc": "AUC", "spearman": "Spearman", "share": "same side of 0.5", "kappa": "kappa"}


def trained_on(texts: list[str], scores: np.ndarray) -> bool:
    """Whether these are, by their SHA-256, the training texts and scores of the minilm head."""
    digest = hashlib.sha256()
    for text, score in zip(texts, scores, strict=True):
        digest.update(repr((text, float(score))).encode())
    with safe_open(MINILM_HEAD, framework="numpy") as file:
        metadata = json.loads(file.metadata()["sasa_scorer"])
    return digest.hexdigest() == metadata["training_data_sha256"]


def timed(scorer: Scorer, texts: list[str]) -> tuple[np.ndarray, float]:
    """Return the scores and the texts per second of the fastest pass, as others slow it down."""
    scorer(texts[:64])
    seconds = []
    for _ in range(PASSES):
        start = time.perf_counter()
        scores = scorer(texts)
        seconds.append(time.perf_counter() - start)
    return scores, len(set(texts)) / min(seconds)


def main() -> None:
    """Score the held-out texts by every scorer and print the table."""
    shared = Path(os.environ.get("SASA_SHARED_DATA", DATA_DIR.parent.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rtp", type=Path, default=shared / "rtp" / "dev.jsonl.gz")
    parser.add_argument("--scorers", nargs="+", default=["minilm", "profanity-check"])
    parser.add_argument("--scale", type=Path, help="CSV to write the scores to")
    arguments = parser.parse_args()
    if not arguments.rtp.is_file():
        parser.error(f"{arguments.rtp} is missing; name the RealToxicityPrompts file with --rtp")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)

    texts, reference, _, records, held_out = read_texts(arguments.rtp)
    test, training = np.flatnonzero(held_out), np.flatnonzero(~held_out)
    known = trained_on([texts[i] for i in training], reference[training])
    print(
        f"{len(test)} texts of {len(np.unique(records[test]))} held-out records. "
        + (
            "By its SHA-256, minilm was trained on all others of this file, and on nothing else."
            if known
            else "minilm was not trained on the rest of this very file, but kept aside by the "
            "same rule."
        )
        + "\n"
    )
    print(f"| scorer | {' | '.join(COLUMNS.values())} | texts/s, one thread |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    kept = []
    for name in arguments.scorers:
        scorer = load_scorer(name, device="cpu")
        with threadpool_limits(1):
            scores, speed = timed(scorer, [texts[i] for i in test])
        found = agreement(scores, reference[test], groups=records[test]).statistics
        cells = [f"{v:.3f} ({low:.3f} to {high:.3f})" for v, low, high in found.to_numpy()]
        print(f"| {name} | {' | '.join(cells)} | {speed:,.0f} |", flush=True)
        columns = {"score": scores, "reference": reference[test], "record": records[test]}
        kept.append(pd.DataFrame({"scorer": name, "version": scorer.version} | columns))
    if arguments.scale:
        pd.concat(kept).round(4).to_csv(arguments.scale, index=False)


if __name__ == "__main__":
    main()
