"""Where boundary and judge part on what a model writes: what is missed, what is refused in vain.

    python studies/boundary_errors.py --model smollm2-135m-instruct

Fills "What the boundary gets wrong" in docs/results.md, whose kinds come from reading what this
writes to runs/boundary_errors/: of plain sampling's continuations of the prompts of
studies/table.py, masked, those over 0.5 that lie above the threshold, and the harmless ones below.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset
from sklearn.metrics import roc_auc_score
from table import FOLDER, LIMITED, METHODS, SCORERS, TRUNCATIONS, Fitted, Texts

import sasa_lib as sl

OUT = Path("runs/boundary_errors")
READ = 50  # of each sort


def main() -> None:
    """Judge, count, and write what is to be read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--n-prompts", type=int, default=64)
    parser.add_argument("--generations", type=int, default=25)
    given = parser.parse_args()
    texts = Texts()
    fitted = Fitted(given.model, texts)
    sampling = sl.runs.Sampling(generations=given.generations, **TRUNCATIONS[LIMITED])
    made = sl.runs.generate(
        fitted.model, fitted.tokenizer, texts.prompts("toxic")[: given.n_prompts], sampling,
        folder=FOLDER / "generations", method="plain",
        custom_generate=METHODS["plain"][1](fitted, 0.0, 0),
    )  # fmt: skip
    made = made[made["text"].str.strip() != ""].reset_index(drop=True)
    scorer = sl.load_scorer(SCORERS[0])
    made["score"] = scorer(made["text"].tolist())
    boundary, toxic = fitted.boundary, made["score"] > 0.5
    for name, prompts in (("alone", [""] * len(made)), ("margin", made["prompt"].tolist())):
        corpus = Dataset.from_dict({"prompt": prompts, "response": made["text"].tolist()})
        states = sl.embeddings.extract(
            fitted.model, fitted.tokenizer, corpus, layers=[boundary.layer], pooling="mean"
        )
        made[name] = boundary.margins(states[:, 0], scaled=True)
        above = made[name] > 0
        print(
            f"{name}: AUC {roc_auc_score(~toxic, made[name]):.3f}, {(toxic & above).sum()} of "
            f"{toxic.sum()} toxic are accepted, {(~toxic & ~above).sum()} of {(~toxic).sum()} "
            "others refused"
        )
    OUT.mkdir(parents=True, exist_ok=True)
    for name, rows in {"missed": toxic & above, "refused": ~toxic & ~above}.items():
        some = made[rows].sort_values("score", ascending=name == "refused")[:READ]
        table = some[["score", "margin", "prompt", "text"]].round(2)
        table[["prompt", "text"]] = table[["prompt", "text"]].map(sl.mask_text)
        table.to_csv(OUT / f"{given.model}-{name}.csv", index=False)
        print(f"{name}: {rows.sum()} of {len(made)}, mean score {made['score'][rows].mean():.2f}")


if __name__ == "__main__":
    main()
