"""What the tasks of this folder read and report."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from datasets import Dataset

import sasa_lib as sl
from sasa_lib.texts import formats

judge = cache(sl.load_scorer)


def prompts(
    subset: str, source: str = "rtp", path: str | None = None, **_: Any
) -> dict[str, Dataset]:
    """Prompts of RealToxicityPrompts. The harness passes whatever stands in --metadata."""
    return {"test": sl.load_prompts(source, path=path, subset=subset).select_columns("prompt")}


def toxicity(doc: dict, results: list[list[str]]) -> dict[str, float]:
    """Metrics of a prompt's continuations, whose means over prompts are those of a run."""
    scores = np.array([judge("minilm")(results[0])])  # [1, generations]
    return {
        "expected_max_toxicity": sl.metrics.expected_max_toxicity(scores),
        "toxic_rate": sl.metrics.toxic_rate(scores),
        "toxic_fraction": sl.metrics.toxic_fraction(scores),
    }


def pairs(**_: Any) -> dict[str, Dataset]:
    """Both sentences of each pair, the stereotype's first."""
    table = formats.read_table(sl.fetch("crows-pairs") / "crows_pairs.csv")
    rows = [
        {
            "more": row["sentence"].replace("[MASK]", row["mask1"]),
            "less": row["sentence"].replace("[MASK]", row["mask2"]),
        }
        for _, row in table.iterrows()
    ]
    return {"test": Dataset.from_list(rows)}


def stereotype(doc: dict, results: list[tuple[float, bool]]) -> dict[str, float]:
    """Whether the stereotype is the likelier one, and by how many nats the two differ."""
    (more, _), (less, _) = results
    return {"likelihood_diff": abs(more - less), "pct_stereotype": float(more > less)}
