"""Fit a boundary for a model: `python -m sasa_lib fit MODEL --out FOLDER`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import sasa_lib as sl
from sasa_lib.checks import check_number
from sasa_lib.decoding.sasa import FORMS


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and do what it says."""
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
    options = parser.parse_args(arguments)
    try:
        write_fitted(options)
    except (ValueError, sl.AssetError) as error:
        sys.exit(f"python -m sasa_lib fit: {error}")


def _layer(text: str) -> float | str:
    return text if text == "auto" else float(text)


def write_fitted(options: argparse.Namespace) -> None:
    """Fit on four fifths of a corpus, measure and calibrate on the rest, and write the folder."""
    check_number("beta", options.beta, least=0)
    nearest = next(folder for folder in (options.out, *options.out.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"nothing can be written to {options.out}: choose another folder")
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


if __name__ == "__main__":
    main()
