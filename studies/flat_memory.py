"""Resident memory of a run of very many prompts, over time: it must not grow with the prompts.

    python studies/flat_memory.py                    100,000 prompts, this process
    python studies/flat_memory.py --engine ray       the same on Ray; driver and actors are counted

Fills the numbers on memory in docs/cluster.md. The model is tiny and random. Prints a line every
few seconds, and at last how much the memory
grew between a quarter of the prompts and all of them.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from itertools import islice, product
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sasa_lib as sl

SAMPLING = sl.runs.Sampling(generations=1, max_new_tokens=4)
WORDS = [f"word{i}" for i in range(64)]
MIB = 2**20


def main() -> None:
    """Make the model, run, watch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--engine", choices=sl.cluster.ENGINES, default="local")
    parser.add_argument("--actors", type=int)
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS")
    options = parser.parse_args()
    prompts = [" ".join(words) for words in islice(product(WORDS, repeat=4), options.prompts)]
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder, "model"))
        model, tokenizer = sl.load_lm(str(Path(folder, "model")), device="cpu")
        seen: list[tuple[int, float]] = []
        over = threading.Event()
        watcher = threading.Thread(target=watch, args=(Path(folder), options, seen, over))
        watcher.start()
        try:
            run = sl.runs.generate(
                model,
                tokenizer,
                prompts,
                SAMPLING,
                folder=folder,
                method="plain",
                batch_sequences=64,
                engine=options.engine,
                actors=options.actors,
                table=False,
                progress=False,
            )
        finally:
            over.set()
            watcher.join()
        print(f"{done(run.parent):,} generations in {len(list(run.glob('shard-*')))} shards")
    quarter = next((mib for number, mib in seen if number >= len(prompts) // 4), None)
    if quarter is None:
        print("too fast to be watched: give more --prompts")
    else:
        print(f"{seen[-1][1] - quarter:+,.0f} MiB since a quarter of the prompts")


def watch(
    folder: Path, options: argparse.Namespace, seen: list[tuple[int, float]], over: threading.Event
) -> None:
    """Print seconds, prompts done and resident memory of this process and all below it."""
    start = time.monotonic()
    print("seconds  prompts     MiB", flush=True)
    while not over.wait(options.every):
        seen.append((done(folder), resident() / MIB))
        print("{:7.0f} {:8,} {:7,.0f}".format(time.monotonic() - start, *seen[-1]), flush=True)


def done(folder: Path) -> int:
    """Count the generations that are written, from the files' own counts."""
    shards = folder.glob("*/shard-*.parquet")
    return sum(pq.read_metadata(shard).num_rows for shard in shards)


def resident() -> int:
    """Bytes of this process and of those it started; what they share counts in each."""
    own = psutil.Process()
    total = own.memory_info().rss
    for child in own.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def save_model(folder: Path) -> None:
    """Save a random model of one block, whose words are `WORDS`."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<pad>", "</s>", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
