"""What detoxified sampling costs, against `model.generate` with the same settings: `make bench`.

Fills the first table of docs/cost.md and figures/cost.png.

Every repetition runs all methods of a setting one after the other on the same prompt; a ratio is
taken within a repetition. Settings vary one thing at a time around 25 generations of 20 tokens
from 16, k = 10. Measurements are appended to `runs/bench/measurements.jsonl`; what is there
already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import sasa_lib as sl
from sasa_lib.decoding import repeated
from sasa_lib.engine.models import EMBEDDED
from sasa_lib.subspace.embeddings import buckets_of, tokenised, tokens_at_once

FOLDER = Path("runs/bench")
BASE = {"sequences": 25, "k": 10, "prompt": 16, "new": 20}
SETTINGS = [
    BASE,
    BASE | {"sequences": 1},
    BASE | {"sequences": 100},
    BASE | {"k": 20},
    BASE | {"k": 50},
    BASE | {"prompt": 256},
    BASE | {"new": 100},
    BASE | {"sequences": 1, "k": 50},
]
EVERYWHERE = ("plain", "margin", "posterior")
AT_BASE = (*EVERYWHERE, "margin, last layer", "naive")


def main() -> None:
    """Measure, or with --memory print one method's peak memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="only 25 sequences and one")
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "METHOD"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print(peak_memory(*arguments.memory))
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    settings = SETTINGS[:2] if arguments.quick else SETTINGS
    for name in EMBEDDED:
        measure_speed(name, arguments.repetitions, settings)
        measure_judging(name, arguments.repetitions)
        if not arguments.quick:
            measure_extraction(name, arguments.repetitions)
            measure_memory(name)
    report()


def measure_speed(name: str, repetitions: int, settings: list[dict[str, int]]) -> None:
    """Seconds of every method in every setting."""
    wanted = [
        {"model": name, "method": method, "repetition": repetition, **setting}
        for setting in settings
        for repetition in range(repetitions)
        for method in (AT_BASE if setting == BASE else EVERYWHERE)
    ]
    known = [{key: row[key] for key in wanted[0]} for row in measurements("speed")]
    wanted = [row for row in wanted if row not in known]
    if not wanted:
        return
    model, tokenizer = sl.load_lm(name, dtype="auto")
    methods = decoders(model, tokenizer)
    texts = sl.load_prompts("embedded", subset="toxic")["prompt"]
    stream = [token for text in texts for token in tokenizer(text)["input_ids"]]
    run(model, methods["margin"], stream[:16], BASE | {"new": 4})  # warm up
    for row in tqdm(wanted, desc=f"speed, {name}", unit="call"):
        start = row["repetition"] * 300
        prompt = stream[start : start + row["prompt"]]
        seconds = run(model, methods[row["method"]], prompt, row)
        append("speed", row | {"seconds": seconds, "device": device()})


def decoders(model: object, tokenizer: object) -> dict[str, Callable | None]:
    """What is compared, by name; None is plain sampling."""
    corpus = sl.load_corpus("embedded").shuffle(seed=0).select(range(800))
    options = {"folder": FOLDER / "embeddings", "progress": False}
    middle = sl.Boundary.fit(
        model, tokenizer, corpus, layer=0.4, pooling="mean", covariance="ledoit_wolf", **options
    )
    last = sl.Boundary.fit(model, tokenizer, corpus, **options)
    return {
        "plain": None,
        "margin": sl.SASA(middle, beta=1.0),
        "posterior": sl.SASA(middle, beta=1.0, form="posterior"),
        "margin, last layer": sl.SASA(last, beta=1.0),
        "naive": Naive(middle, beta=1.0),
    }


class Naive(sl.SASA):
    """Every candidate in a copy of the whole phrase and its cache, as a beam search would."""

    def _phrases(self, model: object, inputs: object = None) -> repeated.RepeatedPhrases:
        return repeated.RepeatedPhrases(model, [boundary.layer for boundary, _ in self.pairs])


def run(
    model: object, method: Callable | None, prompt: list[int], setting: dict[str, int]
) -> float:
    """Seconds of one call of `generate`."""
    ids = torch.tensor([prompt], device=model.device)
    torch.manual_seed(0)
    synchronise()
    start = time.perf_counter()
    model.generate(
        ids, attention_mask=torch.ones_like(ids), custom_generate=method, do_sample=True,
        top_k=setting["k"], top_p=0.9, num_return_sequences=setting["sequences"],
        min_new_tokens=setting["new"], max_new_tokens=setting["new"],
    )  # fmt: skip
    synchronise()
    return time.perf_counter() - start


def measure_judging(name: str, repetitions: int) -> None:
    """Seconds of generating 16 x 8 texts, and of the other model's reading them, or 3 of 8."""
    if any(row["model"] == name for row in measurements("judging")):
        return
    (judge,) = set(EMBEDDED) - {name}
    prompts = list(sl.load_prompts("embedded", subset="toxic")["prompt"])[:16]
    sampling = sl.runs.Sampling(generations=8)
    loaded, (judging, tokenizer) = sl.load_lm(name), sl.load_lm(judge)
    for repetition in range(repetitions + 1):  # the first one warms up, and is checked
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            texts = sl.runs.generate(
                *loaded, prompts, sampling, folder=folder, method="plain", progress=False
            )
            row = {"model": name, "repetition": repetition, "device": device()}
            row["generating"] = time.perf_counter() - start
        few = texts[texts["generation"] < 3]
        for which, table in (("few", few), ("all", texts)):
            start = time.perf_counter()
            found, _ = sl.likelihood.negative_log_likelihoods(
                judging, tokenizer, table["prompt"], table["text"], progress=False
            )
            row[which] = time.perf_counter() - start
        if repetition:
            append("judging", row)
            continue
        pairs = zip(texts["prompt"], texts["text"], strict=True)
        alone = np.array([loss_of(judging, tokenizer, *pair) for pair in pairs])
        error = float(max(abs(found - alone) / (1 + alone)))
        print(f"likelihoods by {judge}: largest relative error {error:.1e}")
        if error > 1e-4:
            sys.exit("they are not those of each text by itself")


def loss_of(model: object, tokenizer: object, prompt: str, text: str) -> float:
    """Negative log-likelihood of a text behind its prompt, in nats, by the model's own loss."""
    before = tokenizer(prompt)["input_ids"]
    after = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + after], device=model.device)
    labels = ids.clone()
    labels[:, : len(before)] = -100
    with torch.no_grad():
        return float(model(ids, labels=labels).loss) * len(after) if after else 0.0


def measure_extraction(name: str, repetitions: int) -> None:
    """Seconds of `extract` and of the model's bare forward passes over the same batches."""
    if any(row["model"] == name for row in measurements("extraction")):
        return
    model, tokenizer = sl.load_lm(name)
    texts = sl.load_corpus("embedded").shuffle(seed=1).select(range(200))
    tokens = [text.tokens for text in tokenised(model, tokenizer, texts)]
    batches = [
        torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(tokens[row]) for row in rows], batch_first=True
        ).to(model.device)
        for rows in buckets_of([len(ids) for ids in tokens], tokens_at_once(model))
    ]
    for repetition in range(repetitions):
        synchronise()
        start = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                model.base_model(batch, use_cache=False)
        synchronise()
        bare = time.perf_counter() - start
        row = {"model": name, "repetition": repetition, "device": device(), "bare": bare}
        for layer in (-1, 0.4):
            start = time.perf_counter()
            sl.embeddings.extract(model, tokenizer, texts, layers=[layer], progress=False)
            row[f"layer {layer}"] = time.perf_counter() - start
        append("extraction", row)


def measure_memory(name: str) -> None:
    """Peak memory of a process that generates, one process a method."""
    known = [(row["model"], row["method"]) for row in measurements("memory")]
    for method in EVERYWHERE:
        if (name, method) not in known:
            command = [sys.executable, __file__, "--memory", name, method]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            megabytes = float(done.stdout.split()[-1])
            append("memory", {"model": name, "method": method, "megabytes": megabytes})


def peak_memory(name: str, method: str) -> float:
    """MB at the peak of generating in the base setting with prompts of 256 tokens."""
    model, tokenizer = sl.load_lm(name)
    decoder = decoders(model, tokenizer)[method]
    setting = BASE | {"prompt": 256}
    prompt = list(range(1000, 1256))
    return sl.cost.peak_memory(lambda: run(model, decoder, prompt, setting), model.device)


def report() -> None:
    """Print the tables, and draw the figure."""
    speed = pd.DataFrame(measurements("speed"))
    table = ratios(speed)
    table.to_csv(FOLDER / "speed.csv", index=False)
    print(markdown(table))
    judging = pd.DataFrame(measurements("judging"))
    for which in ("few", "all"):
        judging[which] = judging[which] / judging["generating"]
        print(judging.groupby("model")[which].agg(["median", "min", "max"]).round(2))
    if not measurements("extraction"):
        return
    extraction = pd.DataFrame(measurements("extraction"))
    for layer in ("layer -1", "layer 0.4"):
        extraction[layer] = extraction["bare"] / extraction[layer]
        print(extraction.groupby("model")[layer].agg(["median", "min", "max"]).round(2))
    memory = pd.DataFrame(measurements("memory")).pivot(
        index="model", columns="method", values="megabytes"
    )
    print(memory.div(memory["plain"], axis=0).round(2))
    sl.plots.set_style()
    sl.plots.save(sl.plots.cost(table), FOLDER, "cost")
    print(f"\nMeasurements, speed.csv and cost.png: {FOLDER}/")


def ratios(speed: pd.DataFrame) -> pd.DataFrame:
    """Tokens/s over those of plain sampling in the same repetition: median and range."""
    setting = ["model", *BASE]
    plain = speed[speed["method"] == "plain"].set_index([*setting, "repetition"])["seconds"]
    speed = speed.join(plain.rename("plain"), on=[*setting, "repetition"])
    speed["milliseconds"] = 1000 * speed["seconds"] / speed["new"]
    speed["ratio"] = speed["plain"] / speed["seconds"]
    return (
        speed.groupby([*setting, "method"], sort=False)
        .agg(
            milliseconds=("milliseconds", "median"),
            ratio=("ratio", "median"),
            ratio_low=("ratio", "min"),
            ratio_high=("ratio", "max"),
            repetitions=("ratio", "size"),
        )
        .reset_index()
    )


def markdown(table: pd.DataFrame) -> str:
    """Ratios, as "median (range)", a row a setting and method, a column a model."""
    table = table[table["method"] != "plain"].copy()
    table["cell"] = table.apply(sl.statistics.with_interval, axis=1, name="ratio")
    cells = table.pivot_table(
        index=[*BASE, "method"], columns="model", values="cell", aggfunc="first", sort=False
    )
    lines = [" | ".join(["", *cells.index.names, *cells.columns, ""]).strip()]
    lines.append("|" + "---|" * (len(cells.index.names) + len(cells.columns)))
    for index, row in cells.iterrows():
        lines.append(" | ".join(["", *map(str, index), *map(str, row), ""]).strip())
    return "\n".join(lines)


def measurements(kind: str) -> list[dict]:
    """All rows that were measured of a kind."""
    path = FOLDER / f"{kind}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(kind: str, row: dict) -> None:
    """Add a measured row."""
    with open(FOLDER / f"{kind}.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def synchronise() -> None:
    """Wait until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device() -> str:
    """Return the device that is measured."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
