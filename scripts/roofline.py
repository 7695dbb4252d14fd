"""FLOPs and time of every method of notebook 5, from a model's sizes and a device's speeds.

A forward pass costs the larger of computing and of reading weights and cache, which is a lower
bound: kernel launches, drawing and loading are left out. `scripts/plan.py` prints what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import bench
import pandas as pd
import torch
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel

from sasa_lib.decoding import prefix_cache, repeated
from sasa_lib.decoding.draw import A_PASS
from sasa_lib.engine import models
from sasa_lib.subspace.embeddings import check_layer

PREFIX = 13  # tokens of a description of self-debiasing
BATCH, JUDGE_BATCH, CORPUS_BATCH = 100, 16, 4096  # the library's: sequences, texts, tokens
OPEN, FURTHER = 0.25, 2  # share of draws open after two candidates, as measured; what decides them
ON_CORPUS = ["embeddings", "reward head"]  # what reads the corpus, not the prompts
Size = SimpleNamespace  # of a model, by which a forward pass costs; see `size_of`


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


def at_hand(model: PreTrainedModel) -> Hardware:
    """A GPU of the table, or what a matrix product and a copy reach where a model lies."""
    name = bench.device()
    for gpu in GPUS:
        if model.device.type == "cuda" and gpu.name.split()[0] in name:
            return gpu
    matrix = torch.randn(2048, 2048).to(model.device, model.dtype)
    memory = torch.zeros(64 * 2**20, device=model.device, dtype=model.dtype)
    given = {"matrix": matrix, "memory": memory, "target": torch.ones_like(memory)}
    product, copy = (
        Timer(work, globals=given, num_threads=torch.get_num_threads()).timeit(3).mean
        for work in ("matrix @ matrix", "target.copy_(memory)")
    )
    peak = {model.dtype.itemsize: 2 * 2048**3 / product}
    return Hardware(f"{name}, as measured", peak, 2 * memory.nbytes / copy, 1.0, 1.0)


def size_of(model: PreTrainedModel, layer: float, layers: tuple[float, ...] = (-1,)) -> Size:
    """Return a model's sizes: its boundary lives at a layer, its embeddings come from layers."""
    config, index = models.text_config(model), check_layer(model, layer)
    heads, depth = config.num_attention_heads, config.num_hidden_layers
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    products = sum(p.numel() for p in models.blocks(model).parameters() if p.ndim > 1)
    return Size(
        layers=depth,
        block=products // depth,  # weights of a block's matrix products
        head=model.get_output_embeddings().weight.numel(),  # and of the head's
        width=heads * head_dim,  # units of all query heads
        # Numbers that a token leaves in a block's cache.
        kv=2 * (getattr(config, "num_key_value_heads", None) or heads) * head_dim,
        item=model.dtype.itemsize,  # bytes of a number
        layer=index,
        stop=prefix_cache.Phrases(model, [index]).narrows_at,  # up to here candidates are computed
        obstacle=repeated.obstacle(model),
        extracted=[check_layer(model, extracted) for extracted in layers],
    )


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
        attention = 4 * self.size.width * (self.cached + self.tokens)
        body = self.tokens * self.layers * (2 * self.size.block + attention)
        return self.rows * (body + 2 * self.heads * self.size.head)

    def seconds(self, device: Hardware) -> float:
        """Of all passes: each is bound by computing or by reading weights and cache."""
        size = self.size
        cache = self.rows * self.layers * size.kv * (self.cached + self.tokens)
        read = size.item * (self.layers * size.block + size.head * (self.heads > 0) + cache)
        computing = self.flops / (device.peak[size.item] * device.compute)
        return self.times * max(computing, read / (device.bandwidth * device.memory))


def method_passes(
    size: Size, values: dict[str, Any], prompts: int, read: float, batch: int = BATCH
) -> dict[str, tuple[int, list[Pass]]]:
    """Forward passes of every method of notebook 5, and with how many strengths it is run.

    `read` is the tokens of a prompt, `batch` the sequences generated at once, at most.
    """
    new, full, k = values["max_new_tokens"], size.layers, values["top_k"] or 50
    generations = values["n_generations"]
    distinct = max(1, batch // generations)  # prompts in a batch
    rows, times = distinct * generations, prompts / distinct
    phrase = read + (new - 1) / 2  # tokens before a candidate, on average over the steps
    first = min(k, max(2, A_PASS // rows))  # candidates judged first by the posterior form

    def start(rows: float, read: float = read) -> Pass:
        return Pass(size, times, rows, read, 0, full, heads=1)

    def drawn(rows: float, read: float = read, layers: int = full) -> Pass:
        return Pass(size, times * (new - 1), rows, 1, read + new / 2 - 1, layers, heads=1)

    def judged(rows: float, number: float, layers: int, share: float = 1, heads: int = 0) -> Pass:
        return Pass(size, times * new * share, rows, number, phrase, layers, heads)

    def sasa(number: int, stop: int) -> list[Pass]:
        if size.obstacle:
            return [start(rows), judged(rows * k, 1, full, heads=1)]
        return [start(distinct), judged(rows, number, stop), drawn(rows, layers=full - stop)]

    plain, posterior = [start(rows), drawn(rows)], sasa(first, size.stop)
    if first < k and not size.obstacle:
        share = 1 - (1 - OPEN) ** rows  # of the steps, in which a draw of the batch is open
        further = min(FURTHER, k - first)
        posterior.append(judged(rows * OPEN / share, further, size.stop, share))
    reward = [Pass(size, times, distinct, read, 0, full), judged(rows, k, full)]
    if size.obstacle:  # every candidate's text is read from its beginning
        reward = [Pass(size, times * new, rows * k, phrase, 0, full)]
    described = rows * len(values["debiased"]), read + PREFIX
    biased = [start(*described), drawn(*described)]
    passes = {
        "plain": (1, plain),
        "sasa": (len(values["beta"]), sasa(k, size.stop)),
        "sasa-posterior": (len(values["beta_posterior"]), posterior),
        "random": (1, posterior),
        "sasa-published": (len(values["beta_published"]), sasa(k, full)),
        "rad": (len(values["beta_rad"]), plain + reward),
        "self-debiasing": (len(values["decay"]), plain + biased),
        "word-filter": (1, plain),
        "sasa-posterior-filtered": (1, posterior),
    }
    methods = values.get("methods") or list(passes)
    if "best-of" in methods:  # as many sequences more, in as many passes more
        drawn_ones = values | {"methods": [], "n_generations": generations * values["best_of"]}
        several = method_passes(size, drawn_ones, prompts, read, batch)["sasa-posterior"][1]
        passes["best-of"] = len(values["beta_best_of"]), several
    return {name: of for name, of in passes.items() if name in methods}


def estimate(
    size: Size, judge: Size, values: dict[str, Any], prompts: tuple, corpus: tuple
) -> pd.DataFrame:
    """Estimate FLOPs and hours of every method, the judge, the embeddings and the reward head.

    Of prompts and of the corpus are given their number and the tokens of one.
    """
    (number, read), (texts, long) = prompts, corpus
    generations, new = values["n_generations"], values["max_new_tokens"]

    def reading(layers: int, share: float = 1.0) -> Pass:
        batches = share * texts * long / CORPUS_BATCH
        return Pass(size, batches, CORPUS_BATCH / long, long, 0, layers)

    work = method_passes(size, values, number, read)
    batches = number * min(generations, values["n_read"]) / JUDGE_BATCH
    judging = Pass(judge, batches, JUDGE_BATCH, read + new, 0, judge.layers, heads=new)
    work["judge's perplexity"] = sum(runs for runs, _ in work.values()), [judging]
    again = {size.layer, size.layers} - set(size.extracted)
    work["embeddings"] = 1, [reading(layer) for layer in (max(size.extracted), *again)]
    work["reward head"] = 1, [reading(size.layers, share=0.8)]
    rows = []
    for method, (runs, passes) in work.items():
        facts = (texts, 1, round(long)) if method in ON_CORPUS else (number, generations, new)
        row = {"method": method, "runs": runs}
        row |= zip(("texts", "generations", "tokens each"), facts, strict=True)
        depths = sum(p.times * p.layers / p.size.layers for p in passes)
        row["forward passes"] = round(runs * depths)
        row["PFLOP"] = runs * sum(p.times * p.flops for p in passes) / 1e15
        row |= {f"{gpu.name} h": runs * sum(p.seconds(gpu) for p in passes) / 3600 for gpu in GPUS}
        rows.append(row)
    return pd.DataFrame(rows)


def assumptions() -> str:
    """Say what the estimates assume."""
    text = "Assumed: a forward pass costs the larger of computing and of reading weights and cache"
    for gpu in GPUS:
        peak = ", ".join(f"{8 * item} bits: {rate / 1e12:g}" for item, rate in gpu.peak.items())
        text += f"\n- {gpu.name}: {peak} TFLOP/s, {gpu.bandwidth / 1e12:g} TB/s, "
        text += f"of which {gpu.compute:g} and {gpu.memory:g} are reached"
    return f"""{text}
- {BATCH} sequences at once, {JUDGE_BATCH} texts judged, {CORPUS_BATCH} tokens of the corpus; \
every generation takes all tokens, and top-p removes no candidate
- posterior: {2 + OPEN * FURTHER:g} candidates judged: two leave {OPEN:.0%} of draws open \
(measured, small models); self-debiasing reads {PREFIX} tokens more
- not counted: the notebooks after 5, loading, drawing, scorers, and kernel launches, which
  a small model waits for: these hours are a lower bound
"""
