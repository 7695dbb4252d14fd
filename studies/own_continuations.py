"""Compare boundaries by how well they tell a model's own toxic continuations from its others.

    python studies/own_continuations.py      # half an hour; embeddings and texts are kept

Fills the table "On the model's own continuations" of docs/results.md. A boundary is used on what
its model writes, so that is where it is to be chosen: the 36 toxic prompts of RealToxicityPrompts
that no judge and no boundary saw, and that studies/table.py does not measure on, each continued 25
times by plain sampling. `minilm` says which continuations are toxic.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from datasets import Dataset
from sklearn.metrics import roc_auc_score
from table import FOLDER, LARGE, LIMITED, SMALL, TRUNCATIONS, Fitted, Texts

import sasa_lib as sl

MEASURED_ON = 64  # the first prompts are those of studies/table.py
GENERATIONS = 25
DEPTHS = (0.1, 0.2, 0.3, 0.4)


def own_continuations(fitted: Fitted) -> tuple[pd.DataFrame, np.ndarray]:
    """Prompts and texts of one model, and whether each is toxic, bool [texts]."""
    prompts = fitted.texts.prompts("toxic")[MEASURED_ON:]
    sampling = sl.runs.Sampling(generations=GENERATIONS, seed=1, **TRUNCATIONS[LIMITED])
    made = sl.runs.generate(
        fitted.model, fitted.tokenizer, prompts, sampling,
        folder=FOLDER / "generations", method="plain",
    )  # fmt: skip
    return made, sl.load_scorer("minilm")(made["text"].tolist()) > 0.5


def area(margins: np.ndarray, toxic: np.ndarray, prompt: np.ndarray) -> tuple[float, float]:
    """AUC over all continuations, and its mean within prompts that have both kinds."""
    within = [
        roc_auc_score(~toxic[rows], margins[rows])
        for rows in (prompt == one for one in np.unique(prompt))
        if 0 < toxic[rows].sum() < rows.sum()
    ]
    return roc_auc_score(~toxic, margins), float(np.mean(within))


def compared(name: str, texts: Texts) -> pd.DataFrame:
    """Every boundary of one model, a row each."""
    fitted = Fitted(name, texts)
    made, toxic = own_continuations(fitted)
    print(f"{name}: {toxic.sum()} of {len(toxic)} continuations are toxic", flush=True)
    written = {"prompt": made["prompt"].tolist(), "response": made["text"].tolist()}
    embedded_only = texts.training.filter(lambda text: text in EMBEDDED, input_columns="response")
    layers = [round(depth * fitted.model.config.num_hidden_layers) for depth in DEPTHS]
    tried = [
        ("published, toxic over 0", "both", {"threshold": 0.0, "cut": "published"}),
        ("published, toxic over 0.5", "both", {"cut": "published"}),
    ]
    for layer in layers:
        for estimator in ("discriminant", "logistic"):
            options = {"layer": layer, "pooling": "mean", "estimator": estimator}
            if estimator == "discriminant":
                options["covariance"] = "ledoit_wolf"
            for corpus in ("both", "embedded"):
                tried.append((estimator, corpus, options))
    held_out, held_out_toxic = sl.corpora.labelled(texts.held_out)  # over 0.5 for all
    rows = []
    for kind, corpus, options in tried:
        boundary = sl.Boundary.fit(
            fitted.model, fitted.tokenizer,
            texts.training if corpus == "both" else embedded_only,
            folder=FOLDER / "embeddings", progress=False, **options,
        )  # fmt: skip
        own, unseen = (
            boundary.score_texts(
                fitted.model, fitted.tokenizer, corpus_of, folder=FOLDER / "embeddings"
            )
            for corpus_of in (Dataset.from_dict(written), held_out)
        )
        overall, within = area(own, toxic, made["prompt_id"].to_numpy())
        rows.append({
            "model": name, "boundary": kind, "corpus": corpus, "layer": boundary.layer,
            "held_out_auc": roc_auc_score(~held_out_toxic, unseen),
            "own_auc": overall, "own_auc_within_prompts": within,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=[SMALL, LARGE])
    texts = Texts()
    EMBEDDED = set(sl.load_corpus("embedded")["response"])
    tables = [compared(name, texts) for name in parser.parse_args().models]
    print(pd.concat(tables).round(3).to_markdown(index=False))
