"""What a run needs and would cost, without its weights: `make plan PROFILE=paper`.

Checks every parameter, model, corpus and prompt set of a profile, then prints the FLOPs and GPU
hours that `scripts/roofline.py` estimates. On a GPU, or with `make plan MEASURE=1`, estimate and
measurement are compared. The exit status is 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import bench
import pandas as pd
import roofline
import torch
import transformers
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import notebooks
import sasa_lib as sl
from sasa_lib.engine import models
from sasa_lib.evaluation.scorers import HF_PREFIX, SCORERS
from sasa_lib.texts import corpora, prompts, sources
from sasa_lib.texts.assets import cache_dir

LLAMA = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
PUBLISHED = {  # sizes as published, for where the hub cannot be reached
    "gpt2-large": transformers.GPT2Config(n_layer=36, n_embd=1280, n_head=20),
    "gpt2-xl": transformers.GPT2Config(n_layer=48, n_embd=1600, n_head=25),
    "meta-llama/Llama-2-7b-hf": transformers.LlamaConfig(
        vocab_size=32000, intermediate_size=11008, **LLAMA),
    "meta-llama/Llama-3.1-8B-Instruct": transformers.LlamaConfig(
        vocab_size=128256, intermediate_size=14336, num_key_value_heads=8, **LLAMA),
    "smollm2-135m-instruct": transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, intermediate_size=1536, tie_word_embeddings=True),
    "gemma3-270m": transformers.Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, intermediate_size=2048),
}  # fmt: skip
CIVIL = ("text", *sources.CIVIL_COMMENTS_ATTRIBUTES)
SOURCES = {  # repository, split, folder and columns; number of texts and tokens of one (assumed)
    "rtp": ("allenai/real-toxicity-prompts", "train", None,
            ("prompt", "continuation", "challenging"), 99_442, 15),
    "civil_comments": ("google/civil_comments", "train", None, CIVIL, 1_804_874, 68),
    "hh-rlhf": ("Anthropic/hh-rlhf", "train", "harmless-base", ("chosen", "rejected"), 42_537, 200),
    "bold": ("AmazonScience/bold", "train", None,
             ("prompts", "domain", "category", "name"), 23_679, 11),
    "attaq": ("ibm/AttaQ", "train", None, ("input", "label"), 1_402, 20),
}  # fmt: skip
ATTRIBUTES = {"rtp": sources.ATTRIBUTES, "civil_comments": CIVIL[1:], "hh-rlhf": ("toxicity",)}
SUBSETS = {"rtp": prompts.SUBSETS, "bold": prompts.DOMAINS}
TOKENS_PER_WORD = 1.3


class Texts(NamedTuple):
    """How many texts there are, the tokens of one, and why nobody looked, if so."""

    number: int
    tokens: float
    unchecked: str | None = None


def main(arguments: list[str] | None = None) -> None:
    """Check, estimate, print; exit with 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("overrides", nargs="*", metavar="NAME=value")
    options = parser.parse_args(arguments)
    given = [text for text in options.overrides if not text.startswith("MEASURE=")]
    values = settle(options.profile, given)
    print(f"{len(values)} parameters of {', '.join(notebooks.names())}: all known")
    found, right = check(values)
    some = all(values[name] > 0 for name in ("n_prompts", "n_generations", "max_new_tokens"))
    if some and {"model", "judge", "corpus", "prompts"} <= found.keys():
        prompts = min(values["n_prompts"], found["prompts"].number), found["prompts"].tokens
        table = roofline.estimate(
            found["model"], found["judge"], values, prompts, found["corpus"][:2]
        )
        folder = notebooks.PROJECT / "runs" / options.profile
        folder.mkdir(parents=True, exist_ok=True)
        table.to_csv(folder / "plan.csv", index=False)
        report(table)
        if "MEASURE=1" in options.overrides or torch.cuda.is_available():
            try:
                print(measure(values).round(2).to_string())
            except (ValueError, sl.AssetError) as error:
                print(f"not measured: {error}")
    sys.exit(0 if right else 1)


def settle(profile: str, overrides: list[str]) -> dict[str, Any]:
    """Every notebook's parameters; runs/<profile> keeps its own, or `make run` would start anew."""
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        notebooks.settle_parameters(profile, overrides, Path(folder))
        for path in sorted(Path(folder).glob("*.json")):
            values |= json.loads(path.read_text())["parameters"]
    return values


def check(values: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Look at all that the parameters name; return what was found, and whether all is right."""
    found, unchecked, wrong = {}, [], []
    for key, look in looks(values):
        what = f"{key} {values[key]}" if key in values else key
        try:
            found[key] = look()
        except ValueError as error:
            wrong.append(f"{what}: {error}")
        except sl.AssetError as error:
            unchecked.append(f"{what}: {error}")
    for key, texts in found.items():
        if isinstance(texts, Texts):
            print(
                f"{key} {values[key]}: {texts.number:,} texts of {texts.tokens:.0f} tokens,",
                "assumed" if texts.unchecked else f"found; {TOKENS_PER_WORD} tokens a word assumed",
            )
            unchecked += [texts.unchecked] if texts.unchecked else []
    for line in [f"NOT CHECKED  {why}" for why in unchecked] + [f"WRONG  {why}" for why in wrong]:
        print(line)
    return found, not wrong


def looks(values: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what has to be looked at; ValueError is what is wrong with it."""
    yield "parameters", partial(check_values, values)
    for key, value in values.items():
        if not isinstance(value, str):
            continue
        if key.endswith(("model", "judge")):
            yield key, partial(find_model, value, values)
        elif key in ("corpus", "preferences"):
            yield key, partial(find_corpus, values, key)
        elif key.endswith("prompts"):
            subsets = [values["subset"] or None] if key == "prompts" else [None]
            for subset in values["domains"] if key == "group_prompts" else subsets:
                yield key, partial(find_prompts, value, values.get(f"{key}_path"), subset)
        elif key == "rtp_path" and value:
            yield key, partial(sl.load_corpus, "rtp", path=value)


def check_values(values: dict[str, Any]) -> None:
    """Raise ValueError for what a notebook would refuse."""
    sampling = {name: values[name] for name in ("max_new_tokens", "top_k", "top_p", "seed")}
    sl.runs.Sampling(generations=values["n_generations"], **sampling)
    if values["n_prompts"] < 1:
        raise ValueError(f"n_prompts must be at least 1, got {values['n_prompts']}")
    for name in values["scorers"]:
        if name not in SCORERS and not name.startswith(HF_PREFIX):
            raise ValueError(f"unknown scorer {name!r}; known are {', '.join(SCORERS)}, hf:<model>")


def find_model(name: str, values: dict[str, Any]) -> roofline.Size:
    """Print what a model is, and return its sizes."""
    model, source = resolve(name, models._dtype(values["dtype"], "cuda"))
    size = roofline.size_of(model, values["layer"], values["layers"])
    if size.item not in roofline.GPUS[0].peak:
        raise ValueError(f"no GPU's speed is known for dtype {values['dtype']!r}")
    way = size.obstacle or "candidates side by side"
    way += ", early stop" if size.stop < size.layers else ", no early stop"
    weights = model.num_parameters()
    print(
        f"{name} ({source}): {type(model).__name__}, {weights:,} parameters, "
        f"{weights * size.item / 1e9:.2f} GB, {size.layers} layers, boundary at {size.layer}; {way}"
    )
    return size


def resolve(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    """Build a causal language model without weights, and say where its sizes come from."""
    embedded = cache_dir() / "models" / name
    local = embedded if name in models.EMBEDDED and embedded.is_dir() else name
    try:
        config, source = AutoConfig.from_pretrained(local, local_files_only=True), "local files"
    except (OSError, ValueError):
        config, source = _from_hub(name)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{name!r} is no causal language model") from error
    model.name_or_path = name
    return model, source


def _from_hub(name: str) -> tuple[transformers.PreTrainedConfig, str]:
    reason = "not fetched yet" if name in models.EMBEDDED else "hub not reachable"
    try:
        if name not in models.EMBEDDED:
            HfApi().model_info(name, timeout=10)
            reason = "its files on the hub cannot be read"
            return AutoConfig.from_pretrained(name), "hub"
    except (RepositoryNotFoundError, HFValidationError):
        reason = "the hub does not know it"
    except Exception:  # the hub client raises a dozen unrelated types
        pass
    if name in PUBLISHED:
        return PUBLISHED[name], f"published architecture; {reason}"
    known = ", ".join(PUBLISHED)
    raise ValueError(f"cannot resolve model {name!r}: no folder, {reason}; known are {known}")


def find_corpus(values: dict[str, Any], key: str) -> Texts:
    """Look for a corpus, `corpus` or `preferences`, and its attribute; see `find_texts`."""
    name, path, most = values[key], values[f"{key}_path"], values["max_examples"] or None
    attribute = values["attribute"] if key == "corpus" else "toxicity"
    if attribute not in ATTRIBUTES.get(name, (attribute,)):
        known = ", ".join(ATTRIBUTES[name])
        raise ValueError(f"the corpus has no attribute {attribute!r}; it has {known}")

    def load() -> Dataset:
        corpus = sl.load_corpus(name, path=path, max_examples=most, seed=values["seed"])
        return corpora.labelled(corpus, attribute, values["threshold"])[0]

    found = find_texts(name if name in sources.CORPORA else "", path, load)
    # Both halves of a record of RealToxicityPrompts are texts, and both answers of a dialogue.
    number = found.number * (2 if name in ("rtp", "hh-rlhf") and not path else 1)
    return found._replace(number=min(number, most or number))


def find_prompts(name: str, path: str | None, subset: str | None) -> Texts:
    """Look for a prompt set and its subset; see `find_texts`."""
    known = SUBSETS.get(name, ())
    if name in SOURCES and subset and subset not in known:
        raise ValueError(f"{name} has no subset {subset!r}; known are {', '.join(known) or 'none'}")
    on_hub = name if name in prompts.PROMPTS else ""
    return find_texts(on_hub, path, lambda: sl.load_prompts(name, path=path, subset=subset))


def find_texts(name: str, path: str | None, load: Callable[[], Dataset]) -> Texts:
    """Load what is local; of a data set of the hub, look at the columns of its first row."""
    if path or name not in SOURCES:
        table = load().to_pandas()
        words = (table["prompt"] + " " + table.get("response", "")).str.split().str.len()
        return Texts(len(table), TOKENS_PER_WORD * words.mean())
    repository, split, folder, columns, number, tokens = SOURCES[name]
    try:
        HfApi().dataset_info(repository, timeout=10)
        stream = load_dataset(repository, split=split, data_dir=folder, streaming=True)
        found = next(iter(stream))
    except Exception:  # the hub client raises a dozen unrelated types
        return Texts(number, tokens, f"{repository}: hub not reachable")
    for column in columns:
        if column not in found:
            raise ValueError(f"{repository} has no column {column!r}; it has {', '.join(found)}")
    return Texts(number, tokens)


def report(table: pd.DataFrame) -> None:
    """Print the estimate and what it assumes."""
    print(f"\n{roofline.assumptions()}")
    counts = table.select_dtypes("int").columns
    total = table.filter(regex="PFLOP| h$").sum().to_dict()
    shown = pd.concat([table, pd.DataFrame([{"method": "all"} | total])])
    shown[counts] = shown[counts].astype("Int64")
    print(shown.to_string(index=False, na_rep="", float_format="{:,.3f}".format))
    hours = table.set_index("method").filter(regex=" h$").rename(columns=lambda c: c[:-2])
    once, split = hours.loc[roofline.ON_CORPUS].sum(), hours.drop(roofline.ON_CORPUS).sum()
    prompts = table["texts"][0]
    walls = {n: once + split * math.ceil(prompts / n) / prompts for n in (1, 8, 64)}
    print("\nWall time in hours by number of GPUs, prompts split evenly, the corpus read by one:")
    print(pd.DataFrame(walls).to_string(float_format="{:,.3f}".format))


def measure(values: dict[str, Any]) -> pd.DataFrame:
    """Tokens/s of one prompt's generations on this machine, estimated and measured."""
    name = values["model"]
    if not torch.cuda.is_available() and name not in models.EMBEDDED:
        name = models.EMBEDDED[-1]
    model, tokenizer = sl.load_lm(name, device=values["device"], dtype=values["dtype"])
    corpus = sl.load_corpus("embedded", max_examples=200)
    options = {"layer": values["layer"], "pooling": "mean", "covariance": "ledoit_wolf"}
    boundary = sl.Boundary.fit(model, tokenizer, corpus, **options)
    decoders = {
        "plain": sl.decoding.PlainSampling(seed=0),
        "sasa": sl.SASA(boundary, 1.0, seed=0),
        "sasa-posterior": sl.SASA(boundary, 1.0, form="posterior", seed=0),
    }
    text = " ".join(sl.load_prompts("embedded", subset="toxic")["prompt"])
    prompt = tokenizer(text)["input_ids"][:16]
    each, new = values["n_generations"], values["max_new_tokens"]
    setting = {"sequences": each, "new": new, "k": values["top_k"]}
    size, device = roofline.size_of(model, values["layer"]), roofline.at_hand(model)
    passes = roofline.method_passes(size, values, 1, len(prompt), batch=each)
    rows = {}
    for method, decoder in decoders.items():
        times = [bench.run(model, decoder, prompt, setting) for _ in range(4)]
        guess = sum(p.seconds(device) for p in passes[method][1])
        seconds = {"estimated": guess, "measured": statistics.median(times[1:])}
        rows[method] = {how: each * new / time for how, time in seconds.items()}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
    print(f"\nTokens/s, and time over plain sampling; {name} on {device.name}, {setting}")
    return table.join((table.iloc[0] / table).add_suffix(" ratio"))


if __name__ == "__main__":
    main()
