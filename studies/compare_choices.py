"""Compare choices of a boundary on held-out texts of three kinds of corpora.

    python studies/compare_choices.py

Prints the table "Which boundary?" of docs/results.md: the AUC of each choice, fitted on 400 texts
and on all, on a fifth of
each corpus that it never saw. Needs the files of ../shared/data (or SASA_SHARED_DATA). Takes
twenty minutes on two CPU cores the first time; the embeddings are kept in data/cache.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sasa_lib as sl
from sasa_lib.engine.models import EMBEDDED as MODELS
from sasa_lib.subspace import selection
from sasa_lib.texts.assets import DATA_DIR, cache_dir

SHARED = Path(os.environ.get("SASA_SHARED_DATA", DATA_DIR.parent.parent / "shared" / "data"))
CORPORA = {
    "contrast pairs": lambda: sl.load_corpus("contrast-pairs"),
    "RealToxicityPrompts": lambda: sl.load_corpus(
        "rtp", path=SHARED / "rtp" / "dev.jsonl.gz", max_examples=3000
    ),
    "hh-rlhf": lambda: sl.load_corpus(
        "hh-rlhf", path=SHARED / "hh-rlhf" / "harmless-base-test.jsonl.gz", max_examples=500
    ),
}
SIZES = (400, 1_000_000)  # training texts: 400, and all
RESAMPLES = 1000


def shrunk_lda() -> LinearDiscriminantAnalysis:
    """Return scikit-learn's linear discriminant with the Ledoit-Wolf covariance."""
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=(0.5, 0.5))


REFERENCES = {  # at 0.4 of the depth, mean
    "0.4, mean, standardised, Ledoit-Wolf": lambda: make_pipeline(StandardScaler(), shrunk_lda()),
    "0.4, mean, 64 principal components": lambda: make_pipeline(
        PCA(64, random_state=0), LinearDiscriminantAnalysis(solver="lsqr", priors=(0.5, 0.5))
    ),
    "0.4, mean, logistic regression": lambda: make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=np.logspace(-4, 1, 6), cv=5, max_iter=500, class_weight="balanced",
            l1_ratios=(0.0,), use_legacy_attributes=False, scoring="neg_log_loss",
        ),
    ),
}  # fmt: skip


def judged(embedded: dict[str, np.ndarray], layers: list[int], toxic: np.ndarray, rows) -> dict:
    """Return every choice's margins on the held-out rows, by name, and what `auto` took."""
    training, groups, held_out = rows
    middle = layers.index(max(1, round(0.4 * layers[-1])))

    def boundary(place: int, pooling: str, covariance: str) -> np.ndarray:
        of_layer = embedded[pooling][:, place]
        fitted = sl.Boundary.from_embeddings(
            of_layer[training], toxic[training], covariance=covariance,
            layer=layers[place], pooling=pooling, model="",
        )  # fmt: skip
        return fitted.margins(of_layer[held_out])

    folds = selection.grouped_folds(groups, toxic[training])
    tried = selection.cross_validate(
        {pooling: states[training] for pooling, states in embedded.items()},
        layers, selection.SIMPLEST_COVARIANCES, toxic[training], folds,
    )  # fmt: skip
    chosen = next(row for row in tried if row["chosen"])
    margins = {
        "as published: last layer, last token, empirical": boundary(-1, "last", "empirical"),
        "last layer, last token, Ledoit-Wolf": boundary(-1, "last", "ledoit_wolf"),
        "last layer, mean, Ledoit-Wolf": boundary(-1, "mean", "ledoit_wolf"),
        "0.4, last token, Ledoit-Wolf": boundary(middle, "last", "ledoit_wolf"),
        "0.4, mean, empirical": boundary(middle, "mean", "empirical"),
        "0.4, mean, OAS": boundary(middle, "mean", "oas"),
        "0.4, mean, Ledoit-Wolf": boundary(middle, "mean", "ledoit_wolf"),
        "auto": boundary(layers.index(chosen["layer"]), chosen["pooling"], chosen["covariance"]),
    }
    states = embedded["mean"][:, middle]
    for name, make in REFERENCES.items():
        fitted = make().fit(states[training], ~toxic[training])
        margins[name] = fitted.decision_function(states[held_out])
    took = f"{chosen['layer']}/{layers[-1]}, {chosen['pooling']}, {chosen['covariance']}"
    return {"margins": margins, "auto": took}


def main() -> None:
    """Extract, fit, judge, and print the table."""
    rows = []
    for model_name in MODELS:
        model, tokenizer = sl.load_lm(model_name)
        layers = selection.candidate_layers(model)
        for corpus_name, load in CORPORA.items():
            corpus, toxic = sl.corpora.labelled(load())
            options = {"layers": layers, "folder": cache_dir() / "embeddings"}
            embedded = {
                pooling: sl.embeddings.extract(model, tokenizer, corpus, pooling=pooling, **options)
                for pooling in sl.embeddings.POOLINGS
            }
            groups = np.array(corpus["group"])
            splitter = GroupShuffleSplit(n_splits=1, test_size=0.2, random_state=0)
            ((training, held_out),) = splitter.split(groups, groups=groups)
            shuffled = np.random.default_rng(0).permutation(training)
            for size in sorted({min(size, len(training)) for size in SIZES}):
                some = shuffled[:size]
                split = some, corpus.select(some), held_out
                found = judged(embedded, layers, toxic, split)
                for name, margins in found["margins"].items():
                    low, high = interval(margins, toxic[held_out])
                    rows.append({
                        "model": model_name, "corpus": corpus_name, "texts": len(some),
                        "held out": len(held_out), "choice": name,
                        "auc": roc_auc_score(~toxic[held_out], margins), "low": low, "high": high,
                        "auto": found["auto"] if name == "auto" else "",
                    })  # fmt: skip
                    print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(cache_dir() / "choices.csv", index=False)
    table["cell"] = table.apply(lambda r: f"{r.auc:.3f} ({r.low:.2f} to {r.high:.2f})", axis=1)
    columns = ["model", "corpus", "texts"]
    print(table.pivot(index="choice", columns=columns, values="cell").to_string())


def interval(margins: np.ndarray, toxic: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval of the AUC over the held-out texts."""
    generator = np.random.default_rng(0)
    aucs = []
    while len(aucs) < RESAMPLES:
        drawn = generator.integers(len(toxic), size=len(toxic))
        if 0 < toxic[drawn].sum() < len(toxic):
            aucs.append(roc_auc_score(~toxic[drawn], margins[drawn]))
    return tuple(np.quantile(aucs, (0.025, 0.975)))


if __name__ == "__main__":
    main()
