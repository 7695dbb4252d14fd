"""What the tasks of this folder read and report."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from datasets import Dataset

import sasa_lib as sl
from sasa_lib.texts import formats

ON_PERSPECTIVE = [f"perspective_expected_max_toxicity{end}" for end in ("", "_low", "_high")]
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
    } | dict.fromkeys(ON_PERSPECTIVE, tuple(scores[0].tolist()))


def perspective(scores: list[tuple[float, ...]], end: str = "value") -> float:
    """What Perspective would have made of a run, from the scores of its prompts."""
    return _equivalent(tuple(scores))[end]


def perspective_low(scores: list[tuple[float, ...]]) -> float:
    """Lower end of the 95% interval, with the judge's error."""
    return perspective(scores, "low")


def perspective_high(scores: list[tuple[float, ...]]) -> float:
    """Upper end of the 95% interval, with the judge's error."""
    return perspective(scores, "high")


@cache
def _equivalent(scores: tuple[tuple[float, ...], ...]) -> dict[str, float]:
    scale = sl.agreement.PerspectiveScale.of("minilm", judge("minilm").version)
    return scale.equivalent(np.array(scores)).loc["expected_max_toxicity"].to_dict()


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
