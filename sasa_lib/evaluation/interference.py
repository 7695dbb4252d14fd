"""What steering by one value did to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.checks import check_columns, check_texts
from sasa_lib.evaluation.sampling import SCHEMA
from sasa_lib.evaluation.statistics import bootstrap_interval
from sasa_lib.subspace.boundary import Boundary
from sasa_lib.subspace.embeddings import extract
from sasa_lib.subspace.values import normals_of


def measured(
    generations: pd.DataFrame,
    boundaries: Mapping[str, Boundary],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: str | Path | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Add to generations their scaled margins from every boundary, from one reading.

    Measured on the boundaries that it was steered by, a method is its own judge. Boundaries of
    another model, fitted on other texts, share neither embeddings nor their accidents with it.

    Parameters
    ----------
    generations : pandas.DataFrame
        As `sasa_lib.evaluation.runs.generate` returns it; only `text`, not the prompt, is measured.
    boundaries : mapping from name to Boundary
        Of one model, layer and pooling.
    model, tokenizer
        The model that the boundaries were fitted on, whichever one generated.
    folder : str or Path, optional
        Where embeddings are kept, see `sasa_lib.subspace.embeddings.extract`.
    progress : bool

    Returns
    -------
    pandas.DataFrame
        With a column for each boundary, named as it: the margin in standard deviations of the
        training data, positive on the nontoxic side; NaN for a text without tokens.
    """
    check_columns(generations, ("text",))
    normals_of(boundaries)
    for name in boundaries:
        if name in (*SCHEMA.names, "prompt_id"):
            raise ValueError(f"a boundary cannot be named {name!r}: generations have such a column")
    first = next(iter(boundaries.values()))
    first.check_model(model)
    if len({boundary.pooling for boundary in boundaries.values()}) > 1:
        raise ValueError("the boundaries have different poolings; measure on them one by one")
    texts = list(dict.fromkeys(check_texts(generations["text"], "text", empty=True)))
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    texts = [text for text, tokens in zip(texts, ids, strict=True) if tokens]
    if not texts:
        return generations.assign(**dict.fromkeys(boundaries, float("nan")))
    embeddings = extract(
        model, tokenizer, texts, layers=[first.layer], pooling=first.pooling, folder=folder,
        progress=progress,
    )[:, 0]  # fmt: skip
    margins = {}
    for name, boundary in boundaries.items():
        margin_of = dict(zip(texts, boundary.margins(embeddings, scaled=True), strict=True))
        margins[name] = generations["text"].map(margin_of).astype(float)
    return generations.assign(**margins)


def interference(
    generations: Mapping[str, pd.DataFrame],
    values: Sequence[str],
    *,
    reference: str = "plain",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How far every method moved the margin from every boundary, relative to plain sampling.

    Parameters
    ----------
    generations : mapping from method to pandas.DataFrame
        As `measured` returns it, of the same prompts; among them the reference.
    values : sequence of str
        The columns that `measured` added.
    reference : str
        The method that the others are compared with.
    confidence : float
        Of the intervals, in (0, 1).
    resamples : int
        Of the bootstrap.
    seed : int

    Returns
    -------
    pandas.DataFrame
        A row a method other than the reference (what it was steered by), and a column for each of
        `change`, `change_low` and `change_high` (percentile bootstrap over prompts) and each
        value (what it was measured on): ``table["change"]`` is steered by x measured on. Of each
        prompt the mean over its generations is taken, without those that have no margin; then
        the mean over the prompts of the difference. Above 0: further on the nontoxic side.
    """
    values = list(values)
    if reference not in generations:
        raise ValueError(
            f"there is no method {reference!r} to compare with; there are {', '.join(generations)}"
        )
    means = {}
    for method, table in generations.items():
        missing = next((name for name in ("prompt_id", *values) if name not in table), None)
        if missing is not None:
            raise ValueError(f"the generations of {method!r} have no column {missing!r}")
        prompts = [name for name in ("prompt_id", "prompt") if name in table]
        means[method] = table.groupby(prompts)[values].mean()
    plain = means.pop(reference)
    rows = {}
    for method, mean in means.items():
        if not mean.index.equals(plain.index):
            raise ValueError(f"{method!r} and {reference!r} did not continue the same prompts")
        row = {}
        for value in values:
            change = (mean[value] - plain[value]).dropna().to_numpy()
            row["change", value] = float(change.mean()) if len(change) else float("nan")
            row["change_low", value], row["change_high", value] = bootstrap_interval(
                lambda drawn, change=change: float(change[drawn].mean()),
                len(change),
                confidence=confidence,
                resamples=resamples,
                seed=seed,
            )
        rows[method] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    columns = pd.MultiIndex.from_product(
        [("change", "change_low", "change_high"), values], names=(None, "measured on")
    )
    return table.reindex(columns=columns).rename_axis("steered by")
