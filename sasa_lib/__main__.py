"""`python -m sasa_lib`: `fit` a boundary for a model, `score` a file of texts, `lm-eval`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

import sasa_lib as sl
from sasa_lib.checks import check_columns, check_number
from sasa_lib.decoding.sasa import FORMS
from sasa_lib.engine.storage import atomic_file, write_table
from sasa_lib.evaluation.agreement import PerspectiveScale
from sasa_lib.evaluation.scorers.scorer import Scorer, ScorerError
from sasa_lib.evaluation.statistics import TOXIC, over_prompts
from sasa_lib.texts import formats

SAID = 5  # rows set aside that are named


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and do what it says."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["lm-eval"]:  # all that follows is the harness's
        _lm_eval(arguments[1:])
        return
    parser = argparse.ArgumentParser(prog="python -m sasa_lib", description=sl.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser(
        "fit", help="fit a boundary and write a folder for SASA.from_pretrained"
    )
    fit.add_argument("model", help="embedded model, folder, or id on the hub")
    fit.add_argument("--out", required=True, type=Path, help="folder to write")
    fit.add_argument("--corpus", default="embedded", help="name that load_corpus takes")
    fit.add_argument("--path", help="file of the corpus")
    fit.add_argument("--attribute", default="toxicity", help="annotated value")
    fit.add_argument("--max-examples", type=int, help="fit on that many texts; all by default")
    fit.add_argument("--layer", default="0.4", type=_layer, help="number, share of depth, or auto")
    fit.add_argument("--pooling", default="mean", help="mean, last, or auto")
    fit.add_argument(
        "--covariance", default="ledoit_wolf", help="ledoit_wolf, oas, empirical, auto"
    )
    fit.add_argument("--estimator", default="discriminant", help="discriminant, logistic, auto")
    fit.add_argument("--form", default="posterior", choices=FORMS, help="of the settings: g")
    fit.add_argument("--beta", type=float, default=1.0, help="of the settings: strength")
    fit.add_argument("--device", default="auto")
    fit.add_argument("--dtype", default="auto")
    score = commands.add_parser("score", help="add toxicity scores to a file of texts")
    score.add_argument("file", type=Path, help="CSV, JSON lines or Parquet, compressed or not")
    score.add_argument("--column", default="text", help="of the texts")
    score.add_argument("--out", required=True, type=Path, help="ends in .parquet or .csv")
    score.add_argument("--scorer", nargs="+", default=["minilm"], help="names for load_scorer")
    score.add_argument("--prompts", help="column of the prompts, for metrics over them")
    commands.add_parser("lm-eval", help="lm-evaluation-harness, with the model sasa and its tasks")
    options = parser.parse_args(arguments)
    try:
        {"fit": write_fitted, "score": write_scored}[options.command](options)
    except (ValueError, OSError, sl.AssetError, ScorerError) as error:
        sys.exit(f"python -m sasa_lib {options.command}: {error}")


def _lm_eval(arguments: list[str]) -> None:
    try:
        from sasa_lib.harness import lm_eval_model
    except ModuleNotFoundError as error:
        sys.exit(
            f"python -m sasa_lib lm-eval: {error.name} is not installed: python -m pip install "
            "'sasa-lib[lm-eval]'"
        )
    lm_eval_model.main(arguments)


def _layer(text: str) -> float | str:
    return text if text == "auto" else float(text)


def write_fitted(options: argparse.Namespace) -> None:
    """Fit on four fifths of a corpus, measure and calibrate on the rest, and write the folder."""
    check_number("beta", options.beta, least=0)
    _check_writable(options.out)
    corpus = sl.load_corpus(
        options.corpus, path=options.path, max_examples=options.max_examples, seed=0
    )
    training, held_out = sl.corpora.split(corpus, seed=0)
    model, tokenizer = sl.load_lm(options.model, device=options.device, dtype=options.dtype)
    boundary = sl.Boundary.fit(
        model, tokenizer, training, attribute=options.attribute, layer=options.layer,
        pooling=options.pooling, covariance=options.covariance, estimator=options.estimator,
        held_out=held_out,
    )  # fmt: skip
    boundary = boundary.calibrated(model, tokenizer, held_out, attribute=options.attribute)
    sasa = sl.SASA(boundary, options.beta, form=options.form, max_candidates=50)
    sasa.save_pretrained(options.out)
    print(
        f"layer {boundary.layer}, AUC on {len(held_out)} held-out texts: "
        f"{boundary.metadata['held_out_auc']:.3f}"
    )
    print(f"use it: sl.SASA.from_pretrained({str(options.out)!r})")


def _check_writable(folder: Path) -> None:
    nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"nothing can be written to {folder}: choose another folder")


def write_scored(options: argparse.Namespace) -> None:
    """Score a file's texts and write its rows with the scores; a call again goes on."""
    out = options.out
    if out.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{out} must end in .parquet or .csv")
    if out.exists():
        raise ValueError(f"{out} is there already: choose another name, or delete it")
    _check_writable(out.absolute().parent)
    table = formats.read_table(options.file)
    check_columns(table, (options.column,))
    if options.prompts:
        _check_prompts(table, options.prompts)
    unfinished = out.with_name(f"{out.name}.unfinished")
    scorers = [sl.load_scorer(name) for name in options.scorer]
    table, aside = sl.judging.with_scores(table, options.column, scorers, folder=unfinished)
    with atomic_file(out) as temporary:
        if out.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            try:
                write_table(table, temporary)
            except pa.ArrowException as error:
                raise ValueError(
                    f"these rows do not fit into Parquet ({error}): let --out end in .csv"
                ) from None
    shutil.rmtree(unfinished, ignore_errors=True)  # which is not there if no row has a text
    for name in options.scorer:
        scores = table[name].dropna()
        over = f", {(scores > TOXIC).mean():.1%} over {TOXIC:g}" if len(scores) else ""
        print(f"{name}: {len(scores)} texts{over}")
    for scorer in scorers if options.prompts else []:
        _print_metrics(table, options.prompts, scorer)
    for row, reason in list(aside.items())[:SAID]:
        print(f"set aside: row {row} {reason}")
    if len(aside) > SAID:
        print(f"and {len(aside) - SAID} more, whose scores are empty")
    print(f"written: {out}")


def _check_prompts(table: pd.DataFrame, column: str) -> None:
    check_columns(table, (column,))
    numbers = table[column].value_counts(dropna=False)
    if numbers.nunique() > 1 or table[column].isna().any():
        raise ValueError(
            f"{column!r} must name as many texts of every prompt, since a maximum grows with their "
            f"number; here some have {numbers.min()} and some {numbers.max()}, or there are gaps"
        )


def _print_metrics(table: pd.DataFrame, column: str, scorer: Scorer) -> None:
    """Print metrics over prompts, and what Perspective's would be where that is known."""
    prompts = table.groupby(column, sort=False)[scorer.name].apply(list)
    scores = [row for row in prompts if np.isfinite(row).all()]
    if not scores:
        print(f"{scorer.name}: no prompt has scores of all its texts")
        return
    scores = np.array(scores)  # [prompts, generations]
    rows = {scorer.name: over_prompts(scores)}
    if PerspectiveScale.exists(scorer.name, scorer.version):
        scale = PerspectiveScale.of(scorer.name, scorer.version)
        rows["Perspective, by that and its error"] = scale.equivalent(scores)
    for of, metrics in rows.items():
        toxicity, rate = (
            f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})" for row in metrics.itertuples()
        )
        print(
            f"{of}, {len(scores)} prompts: expected maximum toxicity {toxicity}, toxic rate {rate}"
        )


if __name__ == "__main__":
    main()
