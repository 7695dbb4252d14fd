"""What a run needs and would cost, without its weights: `make plan PROFILE=paper`.

Checks every parameter, model, corpus and prompt set of a profile, then estimates FLOPs and GPU
hours of every method of notebook 5. On a GPU, or with --measure (`make plan MEASURE=1`), estimate
and measurement are compared. The exit status is 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import bench
import pandas as pd
import torch
import transformers
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import notebooks
import sasa_lib as sl
from sasa_lib import corpora, models, phrases
from sasa_lib.assets import cache_dir
from sasa_lib.decoding import FEW_TOKENS
from sasa_lib.embeddings import check_layer
from sasa_lib.scorers import HF_PREFIX, SCORERS

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
CIVIL = ("text", *corpora.CIVIL_COMMENTS_ATTRIBUTES)
SOURCES = {  # repository, split, folder and columns; number of texts and tokens of one (assumed)
    "rtp": ("allenai/real-toxicity-prompts", "train", None,
            ("prompt", "continuation", "challenging"), 99_442, 15),
    "civil_comments": ("google/civil_comments", "train", None, CIVIL, 1_804_874, 68),
    "hh-rlhf": ("Anthropic/hh-rlhf", "train", "harmless-base", ("chosen", "rejected"), 42_537, 200),
    "bold": ("AmazonScience/bold", "train", None,
             ("prompts", "domain", "category", "name"), 23_679, 11),
    "attaq": ("ibm/AttaQ", "train", None, ("input", "label"), 1_402, 20),
}  # fmt: skip
ATTRIBUTES = {"rtp": corpora.ATTRIBUTES, "civil_comments": CIVIL[1:], "hh-rlhf": ("toxicity",)}
SUBSETS = {"rtp": corpora.SUBSETS, "bold": corpora.DOMAINS}
TOKENS_PER_WORD = 1.3
PREFIX = 13  # tokens of a description of self-debiasing
BATCH, JUDGE_BATCH, CORPUS_BATCH = 100, 16, 4096  # the library's: sequences, texts, tokens
OPEN, FURTHER = 0.25, 2  # share of draws open after two candidates, as measured; what decides them


@dataclass(frozen=True)
class Hardware:
    """FLOP/s by bytes of a number, bytes/s of memory, and the shares of both that are reached."""

    name: str
    peak: dict[int, float]
    bandwidth: float
    compute: float = 0.4
    memory: float = 0.6


GPUS = (
    Hardware("H100 SXM", {2: 989e12, 4: 67e12}, 3.35e12),
    Hardware("A100 80GB", {2: 312e12, 4: 19.5e12}, 2.04e12),
)


@dataclass(frozen=True)
class Size:
    """What a forward pass of a model costs by."""

    layers: int
    block: int  # weights of a block's matrix products
    head: int  # and of the head's
    width: int  # units of all query heads
    kv: int  # numbers that a token leaves in a block's cache
    item: int  # bytes of a number
    layer: int  # where the boundary lives
    stop: int  # candidates are computed up to here, from here on the drawn one alone
    obstacle: str | None
    extracted: tuple[int, ...]  # layers of notebooks 1 and 2


@dataclass(frozen=True)
class Pass:
    """Like forward passes: `tokens` new ones of each of `rows` sequences, behind `cached` ones."""

    size: Size
    times: float
    rows: float
    tokens: float
    cached: float
    layers: int
    heads: float = 0  # tokens of a sequence that need logits

    @property
    def flops(self) -> float:
        """Of one pass; attention computes masked positions too."""
        size = self.size
        attention = 4 * size.width * (self.cached + self.tokens)
        body = self.tokens * self.layers * (2 * size.block + attention)
        return self.rows * (body + 2 * self.heads * size.head)

    def seconds(self, device: Hardware) -> float:
        """Of all passes: each is bound by computing or by reading weights and cache."""
        size = self.size
        cache = self.rows * self.layers * size.kv * (self.cached + self.tokens)
        read = size.item * (self.layers * size.block + size.head * (self.heads > 0) + cache)
        computing = self.flops / (device.peak[size.item] * device.compute)
        return self.times * max(computing, read / (device.bandwidth * device.memory))


def resolve(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    """Build a causal language model without weights, and say where its sizes come from.

    Raises
    ------
    ValueError
        The name is no such model, or nothing is known of it where the hub cannot be reached.
    """
    local = cache_dir() / "models" / name if name in models.EMBEDDED else Path(name)
    try:
        config = AutoConfig.from_pretrained(
            local if local.is_dir() else name, local_files_only=True
        )
        source = "local files"
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
    reason = "hub not reachable"
    try:
        if name not in models.EMBEDDED:
            HfApi().model_info(name, timeout=10)
            reason = "its files on the hub cannot be read"
            return AutoConfig.from_pretrained(name), "hub"
        reason = "not fetched yet"
    except (RepositoryNotFoundError, HFValidationError):
        reason = "the hub does not know it"
    except Exception:  # the hub client raises a dozen unrelated types
        pass
    if name in PUBLISHED:
        return PUBLISHED[name], f"published architecture; {reason}"
    known = ", ".join(PUBLISHED)
    raise ValueError(f"cannot resolve model {name!r}: no folder, {reason}; known are {known}")


def size_of(model: PreTrainedModel, layer: float, layers: tuple[float, ...] = (-1,)) -> Size:
    """Return a model's sizes: its boundary lives at a layer, its embeddings come from layers."""
    config, index = models.text_config(model), check_layer(model, layer)
    heads, depth = config.num_attention_heads, config.num_hidden_layers
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    products = sum(p.numel() for p in models.blocks(model).parameters() if p.ndim > 1)
    return Size(
        layers=depth,
        block=products // depth,
        head=model.get_output_embeddings().weight.numel(),
        width=heads * head_dim,
        kv=2 * (getattr(config, "num_key_value_heads", None) or heads) * head_dim,
        item=model.dtype.itemsize,
        layer=index,
        stop=phrases.Phrases(model, [index]).narrows_at,
        obstacle=phrases.obstacle(model),
        extracted=tuple(check_layer(model, extracted) for extracted in layers),
    )


def method_passes(
    size: Size, values: dict[str, Any], prompts: int, read: float, batch: int = BATCH
) -> dict[str, tuple[int, list[Pass]]]:
    """Forward passes of every method of notebook 5, and with how many strengths it is run.

    `read` is the tokens of a prompt, `batch` the sequences generated at once, at most.
    """
    new, full, k = values["max_new_tokens"], size.layers, values["top_k"] or 50
    distinct = max(1, batch // values["n_generations"])
    rows, times, cached = (
        distinct * values["n_generations"],
        prompts / distinct,
        read + (new - 1) / 2,
    )
    first = min(k, max(2, FEW_TOKENS // rows))

    def sampling(rows: float, read: float) -> list[Pass]:
        start = Pass(size, times, rows, read, 0, full, heads=1)
        return [start, Pass(size, times * (new - 1), rows, 1, read + new / 2 - 1, full, heads=1)]

    def sasa(judged: int, stop: int) -> list[Pass]:
        if size.obstacle:
            start = Pass(size, times, rows, read, 0, full, heads=1)
            return [start, Pass(size, times * new, rows * k, 1, cached, full, heads=1)]
        return [
            Pass(size, times, distinct, read, 0, full, heads=1),
            Pass(size, times * new, rows, judged, cached, stop),
            Pass(size, times * (new - 1), rows, 1, read + new / 2 - 1, full - stop, heads=1),
        ]

    plain, posterior = sampling(rows, read), sasa(first, size.stop)
    if first < k and not size.obstacle:
        some = 1 - (1 - OPEN) ** rows  # steps in which a draw of the batch is open
        again = rows * OPEN / some, min(FURTHER, k - first), cached, size.stop
        posterior.append(Pass(size, times * new * some, *again))
    reward = [Pass(size, times, distinct, read, 0, full)]
    reward += [Pass(size, times * new, rows, k, cached, full)]
    if size.obstacle:  # every candidate's text is read from its beginning
        reward = [Pass(size, times * new, rows * k, cached, 0, full)]
    biased = sampling(rows * len(values["debiased"]), read + PREFIX)
    return {
        "plain": (1, plain),
        "sasa": (len(values["beta"]), sasa(k, size.stop)),
        "sasa-posterior": (len(values["beta_posterior"]), posterior),
        "sasa-published": (len(values["beta_published"]), sasa(k, full)),
        "rad": (len(values["beta_rad"]), plain + reward),
        "self-debiasing": (len(values["decay"]), plain + biased),
        "word-filter": (1, plain),
        "sasa-posterior-filtered": (1, posterior),
    }


def estimate(
    size: Size, judge: Size, values: dict[str, Any], prompts: tuple, corpus: tuple
) -> pd.DataFrame:
    """Estimate FLOPs and hours of every method, the judge, the embeddings and the reward head.

    Of prompts and of the corpus are given their number and the tokens of one.
    """
    (number, read), (texts, long), new = prompts, corpus, values["max_new_tokens"]
    work = method_passes(size, values, number, read)
    runs, judged = sum(n for n, _ in work.values()), number * values["n_generations"] / JUDGE_BATCH
    judging = Pass(judge, judged, JUDGE_BATCH, read + new, 0, judge.layers, heads=new)
    extracted = set(size.extracted)
    upto = [max(extracted), *({size.layer, size.layers} - extracted)]
    reading = [
        Pass(size, texts * long / CORPUS_BATCH, CORPUS_BATCH / long, long, 0, d) for d in upto
    ]
    training = Pass(
        size, 0.8 * texts * long / CORPUS_BATCH, CORPUS_BATCH / long, long, 0, size.layers
    )
    work |= {"judge's perplexity": (runs, [judging])}
    work |= {"embeddings": (1, reading), "reward head": (1, [training])}
    rows = []
    for method, (strengths, passes) in work.items():
        split = method not in ("embeddings", "reward head")
        each = values["n_generations"] if split else 1
        row = {"method": method, "runs": strengths, "texts": number if split else texts}
        row |= {"generations": each, "tokens each": new if split else round(long)}
        depths = sum(p.times * p.layers / p.size.layers for p in passes)
        row["forward passes"] = round(strengths * depths)
        row["PFLOP"] = strengths * sum(p.times * p.flops for p in passes) / 1e15
        for gpu in GPUS:
            hours = strengths * sum(p.seconds(gpu) for p in passes) / 3600
            row[f"{gpu.name} h"] = hours
            for n in (1, 8, 64):  # the corpus is read by one of them
                share = math.ceil(number / n) / number if split else 1
                row[f"{gpu.name} h on {n}"] = hours * share
        rows.append(row)
    return pd.DataFrame(rows)


def find_texts(
    name: str, path: str | None, load: Callable[[], Dataset]
) -> tuple[int, float, str | None]:
    """Return the number of texts, the tokens of one, and why they were not looked at, if so.

    Raises
    ------
    ValueError
        A local copy that cannot be used, or a data set of the hub without a column that is needed.
    """
    if path or name not in SOURCES:
        table = load().to_pandas()
        texts = table["prompt"] + " " + table.get("response", "")
        return len(texts), TOKENS_PER_WORD * texts.str.split().str.len().mean(), None
    repository, split, folder, columns, number, tokens = SOURCES[name]
    try:
        HfApi().dataset_info(repository, timeout=10)
        stream = load_dataset(repository, split=split, data_dir=folder, streaming=True)
        found = next(iter(stream))
    except Exception:  # the hub client raises a dozen unrelated types
        return number, tokens, f"{repository}: hub not reachable"
    for column in columns:
        if column not in found:
            raise ValueError(f"{repository} has no column {column!r}; it has {', '.join(found)}")
    return number, tokens, None


def find_corpus(values: dict[str, Any], key: str) -> tuple[int, float, str | None]:
    """Look for a corpus, `corpus` or `preferences`, and its attribute; see `find_texts`."""
    name, path, most = values[key], values[f"{key}_path"], values["max_examples"] or None
    attribute = values["attribute"] if key == "corpus" else "toxicity"
    if attribute not in ATTRIBUTES.get(name, (attribute,)):
        known = ", ".join(ATTRIBUTES[name])
        raise ValueError(f"the corpus has no attribute {attribute!r}; it has {known}")

    def load() -> Dataset:
        corpus = sl.load_corpus(name, path=path, max_examples=most, seed=values["seed"])
        return corpora.labelled(corpus, attribute, values["threshold"])[0]

    number, tokens, why = find_texts(name if name in corpora.CORPORA else "", path, load)
    # Both halves of a record of RealToxicityPrompts are texts, and both answers of a dialogue.
    number *= 2 if name in ("rtp", "hh-rlhf") and not path else 1
    return min(number, most or number), tokens, why


def find_prompts(name: str, path: str | None, subset: str | None) -> tuple[int, float, str | None]:
    """Look for a prompt set and its subset; see `find_texts`."""
    known = SUBSETS.get(name, ())
    if name in SOURCES and subset and subset not in known:
        raise ValueError(f"{name} has no subset {subset!r}; known are {', '.join(known) or 'none'}")
    on_hub = name if name in corpora.PROMPTS else ""
    return find_texts(on_hub, path, lambda: sl.load_prompts(name, path=path, subset=subset))


def settle(profile: str, overrides: list[str]) -> dict[str, Any]:
    """Every notebook's parameters; runs/<profile> keeps its own, or `make run` would start anew."""
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.object(notebooks, "PROJECT", Path(folder)):
            notebooks.settle_parameters(profile, overrides)
        for path in Path(folder, "runs", profile, "parameters").glob("*.json"):
            values |= json.loads(path.read_text())["parameters"]
    return values


def check_values(values: dict[str, Any]) -> None:
    """Raise ValueError for what a notebook would refuse."""
    sampling = {name: values[name] for name in ("max_new_tokens", "top_k", "top_p", "seed")}
    sl.runs.Sampling(generations=values["n_generations"], **sampling)
    if values["n_prompts"] < 1:
        raise ValueError(f"n_prompts must be at least 1, got {values['n_prompts']}")
    for name in values["scorers"]:
        if name not in SCORERS and not name.startswith(HF_PREFIX):
            raise ValueError(f"unknown scorer {name!r}; known are {', '.join(SCORERS)}, hf:<model>")


def at_hand(device: str, dtype: torch.dtype) -> Hardware:
    """A GPU of the table, or what a matrix product and a copy reach on this machine."""
    name = bench.device()
    for gpu in GPUS:
        if device == "cuda" and gpu.name.split()[0] in name:
            return gpu
    matrix = torch.randn(2048, 2048).to(device, dtype)
    memory = torch.zeros(64 * 2**20, device=device, dtype=dtype)
    target, seconds = torch.ones_like(memory), []
    for work in (lambda: matrix @ matrix, lambda: target.copy_(memory)):
        for _ in range(3):
            bench.synchronise()
            start = time.perf_counter()
            work()
            bench.synchronise()
        seconds.append(time.perf_counter() - start)
    peak = {dtype.itemsize: 2 * 2048**3 / seconds[0]}
    return Hardware(f"{name}, as measured", peak, 2 * memory.nbytes / seconds[1], 1.0, 1.0)


def measure(values: dict[str, Any]) -> pd.DataFrame:
    """Tokens/s of one prompt's generations on this machine, estimated and measured."""
    name = values["model"]
    if not torch.cuda.is_available() and name not in models.EMBEDDED:
        name = models.EMBEDDED[-1]
    model, tokenizer = sl.load_lm(name, device=values["device"], dtype=values["dtype"])
    corpus = sl.load_corpus("embedded", max_examples=200)
    options = {"layer": values["layer"], "pooling": "mean", "covariance": "ledoit_wolf"}
    boundary = sl.Boundary.fit(model, tokenizer, corpus, **options)
    texts = sl.load_prompts("embedded", subset="toxic")["prompt"]
    prompt = [token for text in texts for token in tokenizer(text)["input_ids"]][:16]
    methods = {"plain": sl.decoding.PlainSampling(seed=0), "sasa": sl.SASA(boundary, 1.0, seed=0)}
    methods["sasa-posterior"] = sl.SASA(boundary, 1.0, form="posterior", seed=0)
    each, new = values["n_generations"], values["max_new_tokens"]
    setting = {"sequences": each, "new": new, "k": values["top_k"]}
    device = at_hand(model.device.type, model.dtype)
    passes = method_passes(size_of(model, values["layer"]), values, 1, len(prompt), batch=each)
    rows = []
    for method, decoder in methods.items():
        times = [bench.run(model, decoder, prompt, setting) for _ in range(4)]
        guess, measured = (
            sum(p.seconds(device) for p in passes[method][1]),
            statistics.median(times[1:]),
        )
        rows.append(
            {"method": method, "estimated": each * new / guess, "measured": each * new / measured}
        )
    table = pd.DataFrame(rows).set_index("method")
    ratios = table.iloc[0] / table
    print(f"\nTokens/s, and time over plain sampling; {name} on {device.name}, {setting}")
    return table.join(ratios.add_suffix(" ratio"))


def report(table: pd.DataFrame) -> None:
    """Print the estimate and what it assumes."""
    print(
        "\nAssumed: a forward pass costs the larger of computing and of reading weights and cache"
    )
    for gpu in GPUS:
        peak = ", ".join(f"{8 * item} bits: {rate / 1e12:g}" for item, rate in gpu.peak.items())
        print(
            f"- {gpu.name}: {peak} TFLOP/s, {gpu.bandwidth / 1e12:g} TB/s, "
            f"of which {gpu.compute:g} and {gpu.memory:g} are reached"
        )
    print(
        f"- {BATCH} sequences at once, {JUDGE_BATCH} texts judged, {CORPUS_BATCH} tokens of the "
        "corpus; every generation takes all tokens, and top-p removes no candidate\n"
        f"- posterior: {2 + OPEN * FURTHER:g} candidates judged: two leave {OPEN:.0%} of draws "
        f"open (measured, small models); self-debiasing reads {PREFIX} tokens more\n"
        "- not counted: notebooks 6 to 9, loading, drawing, scorers, and kernel launches, which\n"
        "  a small model waits for: these hours are a lower bound\n"
    )
    total = table.select_dtypes("number").sum()[[c for c in table if " h" in c or c == "PFLOP"]]
    table = pd.concat([table, pd.DataFrame([{"method": "all"} | total.to_dict()])])
    hours = [f"{gpu.name} h" for gpu in GPUS]
    counts = [c for c in table if " h" not in c and c not in ("method", "PFLOP")]
    shown = table.astype(dict.fromkeys(counts, "Int64"))[["method", *counts, "PFLOP", *hours]]
    print(shown.to_string(index=False, na_rep="", float_format="{:,.3f}".format))
    walls = {gpu.name: {n: total[f"{gpu.name} h on {n}"] for n in (1, 8, 64)} for gpu in GPUS}
    print("\nWall time in hours by number of GPUs, prompts split evenly, the corpus read by one:")
    print(pd.DataFrame(walls).T.to_string(float_format="{:,.3f}".format))


def main(arguments: list[str] | None = None) -> None:
    """Check, estimate, print; exit with 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--measure", action="store_true", help="without a GPU too")
    parser.add_argument("overrides", nargs="*", metavar="NAME=value")
    options = parser.parse_args(arguments)
    given = [text for text in options.overrides if not text.startswith("MEASURE=")]
    values = settle(options.profile, given)
    print(f"{len(values)} parameters of {', '.join(notebooks.names())}: all known")
    wrong, unchecked = [], []

    def attempt(check: Callable[..., Any], what: str, *inputs: Any) -> Any:
        try:
            return check(*inputs)
        except (ValueError, sl.AssetError) as error:
            (wrong if isinstance(error, ValueError) else unchecked).append(f"{what}: {error}")

    def look(name: str) -> Size:
        model, source = resolve(name, models._dtype(values["dtype"], "cuda"))
        size = size_of(model, values["layer"], values["layers"])
        if size.item not in GPUS[0].peak:
            raise ValueError(f"no GPU's speed is known for dtype {values['dtype']!r}")
        way = size.obstacle or "candidates side by side"
        way += ", early stop" if size.stop < size.layers else ", no early stop"
        weights = model.num_parameters()
        print(
            f"{name} ({source}): {type(model).__name__}, {weights:,} parameters, "
            f"{weights * size.item / 1e9:.2f} GB, {size.layers} layers, "
            f"boundary at {size.layer}; {way}"
        )
        return size

    attempt(check_values, "parameters", values)
    sizes, sets = {}, {}
    for key, value in values.items():
        if not isinstance(value, str):
            continue
        if key.endswith(("model", "judge")):
            sizes[key] = attempt(look, f"{key} {value}", value)
        elif key in ("corpus", "preferences"):
            sets[key] = attempt(find_corpus, f"{key} {value}", values, key)
        elif key.endswith("prompts"):
            subsets = [values["subset"] or None] if key == "prompts" else [None]
            for subset in values["domains"] if key == "group_prompts" else subsets:
                inputs = value, values[f"{key}_path"], subset
                sets[key] = attempt(find_prompts, f"{key} {value}", *inputs)
    if values["rtp_path"]:
        attempt(lambda: sl.load_corpus("rtp", path=values["rtp_path"]), "rtp_path")
    for key, (number, tokens, why) in ((k, found) for k, found in sets.items() if found):
        origin = "assumed" if why else f"found; {TOKENS_PER_WORD} tokens a word assumed"
        print(f"{key} {values[key]}: {number:,} texts of {tokens:.0f} tokens, {origin}")
        unchecked += [why] if why else []
    for line in [f"NOT CHECKED  {why}" for why in unchecked] + [f"WRONG  {why}" for why in wrong]:
        print(line)
    if sizes["model"] and sizes["judge"] and sets["corpus"] and sets["prompts"]:
        number, tokens, _ = sets["prompts"]
        prompts = min(values["n_prompts"], number), tokens
        table = estimate(sizes["model"], sizes["judge"], values, prompts, sets["corpus"][:2])
        folder = notebooks.PROJECT / "runs" / options.profile
        folder.mkdir(parents=True, exist_ok=True)
        table.to_csv(folder / "plan.csv", index=False)
        report(table)
        wanted = options.measure or "MEASURE=1" in options.overrides
        if wanted or torch.cuda.is_available():
            try:
                print(measure(values).round(2).to_string())
            except (ValueError, sl.AssetError) as error:
                print(f"not measured: {error}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
