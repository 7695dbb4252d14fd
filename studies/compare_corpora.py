"""Compare the embedded corpora by the boundaries they give, on real RealToxicityPrompts texts.

    python studies/compare_corpora.py

Fills the table of data/contrast_pairs.md. The texts of ../shared/data (or --rtp) are scored by
Perspective and are used for nothing but this comparison and that of layers, so the numbers of
the chosen corpus and layer are slightly optimistic; those that are in the embedded corpora too are
left out. Takes half an hour on two CPU cores the first time; the embeddings are kept in data/cache.
"""

from __future__ import annotations

import argparse
import os
from itertools import product
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

import sasa_lib as sl
from sasa_lib.engine.models import EMBEDDED as MODELS
from sasa_lib.subspace.embeddings import POOLINGS
from sasa_lib.texts.assets import DATA_DIR, cache_dir
from sasa_lib.texts.corpora import labelled
from sasa_lib.texts.sources import EMBEDDED

CHOICES = (
    (1, 0, 0),
    (1, 1, 0),
    (0, 1, 1),
    (1, 1, 1),
)  # which of the embedded corpora
LAYERS = (0.2, 0.3, 0.4, 0.5, 0.75, -1)


def main() -> None:
    """Extract, fit, judge, and write the table."""
    shared = Path(os.environ.get("SASA_SHARED_DATA", DATA_DIR.parent.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rtp", type=Path, default=shared / "rtp" / "dev.jsonl.gz")
    corpora = {name: labelled(sl.load_corpus(name), minimum=0) for name in EMBEDDED}
    known = {text for corpus, _ in corpora.values() for text in corpus["response"]}
    rtp, rtp_toxic = labelled(sl.load_corpus("rtp", path=parser.parse_args().rtp))
    new = [row for row, text in enumerate(rtp["response"]) if text not in known]
    print(f"{len(rtp) - len(new)} of {len(rtp)} texts are in the embedded corpora, and left out")
    rtp, rtp_toxic = rtp.select(new), rtp_toxic[new]
    lines = [
        f"AUC on {len(rtp)} RealToxicityPrompts texts, {int(rtp_toxic.sum())} of them toxic "
        "(Perspective > 0.5):",
        "",
        "| model | pooling | covariance | corpus | texts | "
        + " | ".join(f"layer {layer}" if layer != -1 else "last layer" for layer in LAYERS)
        + " |",
        "|---" * (5 + len(LAYERS)) + "|",
    ]
    for name, pooling in product(MODELS, POOLINGS):
        model, tokenizer = sl.load_lm(name)
        options = {"layers": LAYERS, "pooling": pooling, "folder": cache_dir() / "embeddings"}
        judged = sl.embeddings.extract(model, tokenizer, rtp, **options)
        embedded = {
            part: sl.embeddings.extract(model, tokenizer, corpus, **options)
            for part, (corpus, _) in corpora.items()
        }
        for covariance, choice in product(("ledoit_wolf", "empirical"), CHOICES):
            parts = [part for part, chosen in zip(EMBEDDED, choice, strict=True) if chosen]
            embeddings = np.concatenate([embedded[part] for part in parts])
            toxic = np.concatenate([corpora[part][1] for part in parts])
            row = [name, pooling, covariance, " + ".join(parts), str(len(toxic))]
            for i in range(len(LAYERS)):
                boundary = sl.Boundary.from_embeddings(
                    embeddings[:, i], toxic, covariance=covariance,
                    layer=i, pooling=pooling, model=name,
                )  # fmt: skip
                auc = roc_auc_score(~rtp_toxic, boundary.margins(judged[:, i]))
                row.append(f"{auc:.3f}")
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    card = DATA_DIR / "contrast_pairs.md"
    before, _, rest = card.read_text(encoding="utf-8").partition("<!-- numbers -->\n")
    after = rest.partition("<!-- /numbers -->")[2]
    block = "<!-- numbers -->\n" + "\n".join(lines) + "\n<!-- /numbers -->"
    card.write_text(before + block + after, encoding="utf-8")


if __name__ == "__main__":
    main()
