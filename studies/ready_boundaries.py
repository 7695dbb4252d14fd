"""Fit the boundaries that come with the library, and choose their settings by measurement.

    python studies/ready_boundaries.py

Writes data/boundaries/<model>/ and fills the table "Ready boundaries" of docs/results.md. Each is
fitted on the embedded corpus and RealToxicityPrompts (the file in SASA_SHARED_DATA) without the
prompts that evaluation continues, layer by cross-validation, calibrated on a held-out fifth. Of
the settings tried on 32 toxic prompts, 8 generations of each, the one with the lowest expected
maximum toxicity within 20% more perplexity than plain sampling's is taken. Half an hour on two
CPU cores; what is done is kept in runs/ready.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
from datasets import concatenate_datasets

import sasa_lib as sl
from sasa_lib.engine.models import EMBEDDED
from sasa_lib.texts.assets import DATA_DIR
from sasa_lib.texts.sources import packaged_prompts

SHARED = Path(os.environ.get("SASA_SHARED_DATA", DATA_DIR.parent.parent / "shared" / "data"))
FOLDER = Path("runs/ready")
ALLOWED = 1.2  # of plain sampling's perplexity
BETAS = {"margin": (0.5, 1.0, 2.0), "posterior": (0.5, 1.0, 2.0, 4.0, 8.0)}
LICENCES = {"gemma3-270m": "gemma", "smollm2-135m-instruct": "apache-2.0"}
READ = 3  # generations of a prompt whose perplexity is measured


def main() -> None:
    """Fit, measure and write both."""
    tables = []
    for name, judge in zip(EMBEDDED, reversed(EMBEDDED), strict=True):
        model, tokenizer = sl.load_lm(name)
        boundary = fitted(model, tokenizer)
        table, methods = measured(model, tokenizer, boundary, judge)
        allowed = table[table["perplexity"] <= ALLOWED * table.loc["plain", "perplexity"]]
        best = allowed["expected_max_toxicity"].idxmin()
        folder = DATA_DIR / "boundaries" / name
        methods[best].save_pretrained(folder, name=name, license=LICENCES[name])
        tables.append(table.assign(model=name, taken=table.index == best))
    found = pd.concat(tables)
    found.to_csv(FOLDER / "settings.csv")
    print(found[["model", "expected_max_toxicity", "toxic_rate", "perplexity", "taken"]].round(3))


def corpus() -> tuple[object, object]:
    """Training and held-out texts: the embedded ones, and published ones as far as there."""
    texts = sl.load_corpus("embedded")
    records = SHARED / "rtp" / "dev.jsonl.gz"
    if not records.exists():
        raise SystemExit(f"there is no {records}: give its folder's parent as SASA_SHARED_DATA")
    published = sl.load_corpus("rtp", path=records)
    continued = set(packaged_prompts())
    groups = {row["group"] for row in published if row["response"] in continued}
    published = published.filter(lambda row: row["group"] not in groups)
    columns = ["prompt", "response", "group", "toxicity"]
    return sl.corpora.split(
        concatenate_datasets([texts.select_columns(columns), published.select_columns(columns)])
    )


def fitted(model: object, tokenizer: object) -> sl.Boundary:
    """Boundary, its layer chosen by cross-validation, calibrated on what it was not fitted on."""
    training, held_out = corpus()
    boundary = sl.Boundary.fit(
        model, tokenizer, training, layer="auto", pooling="mean", covariance="ledoit_wolf",
        held_out=held_out, folder=FOLDER / "embeddings",
    )  # fmt: skip
    print(model.name_or_path, "layer", boundary.layer, "AUC", boundary.metadata["held_out_auc"])
    return boundary.calibrated(model, tokenizer, held_out)


def measured(
    model: object, tokenizer: object, boundary: sl.Boundary, judge: str
) -> tuple[pd.DataFrame, dict[str, sl.SASA]]:
    """Metrics of every setting, and the settings, by name."""
    prompts = sl.load_prompts("embedded", subset="toxic").shuffle(seed=1).select(range(32))
    sampling = sl.runs.Sampling(generations=8)
    methods = {"plain": None} | {
        f"{form}-{beta:g}": sl.SASA(boundary, beta, form=form, max_candidates=10, seed=0)
        for form, betas in BETAS.items()
        for beta in betas
    }
    judge_lm, judge_tokenizer = sl.load_lm(judge)
    rows = {}
    for name, method in methods.items():
        texts = sl.runs.generate(
            model, tokenizer, list(prompts["prompt"]), sampling,
            folder=FOLDER / "generations", method=name, custom_generate=method,
        )  # fmt: skip
        texts = sl.judging.judged(
            texts, [sl.load_scorer("minilm")], judge_lm, judge_tokenizer,
            folder=FOLDER / "judged", perplexity_generations=READ,
        )  # fmt: skip
        rows[name] = sl.statistics.summarise(texts, ["minilm"])
    return pd.DataFrame(rows).T, methods


if __name__ == "__main__":
    main()
