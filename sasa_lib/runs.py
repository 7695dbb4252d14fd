"""Resumable generation runs: what was asked, and what was generated."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.assets import atomic_file, provenance
from sasa_lib.models import fingerprint, text_config


@dataclass(frozen=True)
class Sampling:
    """How every method of a comparison samples.

    Attributes
    ----------
    generations : int
        Continuations of each prompt.
    max_new_tokens : int
        Length of a continuation, at most.
    top_k, top_p, temperature
        As in `transformers.GenerationConfig`.
    seed : int
        The randomness of a prompt's generations comes from this seed and the prompt's text, and
        so does not depend on which other prompts are in the run.
    """

    generations: int = 25
    max_new_tokens: int = 20
    top_k: int = 10
    top_p: float = 0.9
    temperature: float = 1.0
    seed: int = 0


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    folder: str | Path,
    method: str,
    custom_generate: Callable | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Generate continuations of every prompt, resuming whatever is already there.

    Every prompt's generations are written, whole, as a Parquet file of their own as soon as they
    exist; a run that was killed goes on after the last of them.

    Parameters
    ----------
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    prompts : sequence of str
    sampling : Sampling
    folder : str or Path
        Where runs live. A run's own folder is named after all that it depends on, so that other
        parameters are another run.
    method : str
        Name in the results, such as "plain" or "sasa".
    custom_generate : callable, optional
        Such as `SASA`; None is plain sampling. What it says of itself by a method `describe`
        belongs to the run's parameters, and so do the source code and the libraries' versions.
    progress : bool

    Returns
    -------
    pandas.DataFrame
        One row a generation: `prompt_id`, `prompt`, `generation`, `text` (without the prompt),
        `n_tokens` (up to and with the end token) and `seconds` (its share of its batch's time).

    Raises
    ------
    ValueError
        No prompts, or a prompt that leaves no room in the model's context.
    """
    check_prompts(model, tokenizer, prompts, sampling.max_new_tokens)
    described = custom_generate.describe() if hasattr(custom_generate, "describe") else {}
    manifest = {
        "model": model.name_or_path,
        "model_fingerprint": fingerprint(model),
        "method": method,
        "parameters": described,
        "sampling": asdict(sampling),
        "device": str(model.device),
        "code": provenance(*_modules(custom_generate)),
    }
    text = json.dumps(manifest, indent=1, sort_keys=True)
    run = Path(folder) / f"{method}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    with atomic_file(run / "manifest.json") as temporary:
        temporary.write_text(text)
    shards = []
    label = f"{method} {described.get('beta', '')}".strip()
    bar = tqdm(prompts, desc=label, unit="prompt", disable=not progress)
    for prompt_id, prompt in enumerate(bar):
        shard = run / f"{hashlib.sha256(prompt.encode()).hexdigest()[:16]}.parquet"
        if not shard.exists():
            rows = _continuations(model, tokenizer, prompt, sampling, custom_generate)
            with atomic_file(shard) as temporary:
                rows.to_parquet(temporary)
        rows = pd.read_parquet(shard)
        rows.insert(0, "prompt_id", prompt_id)
        shards.append(rows)
    return pd.concat(shards, ignore_index=True)


def check_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
) -> None:
    """Raise ValueError if there is no prompt, or one that leaves no room to generate."""
    if isinstance(prompts, str) or len(prompts) == 0:
        raise ValueError("expected a list of at least one prompt")
    limit = getattr(text_config(model), "max_position_embeddings", None) or float("inf")
    for row, ids in enumerate(tokenizer(list(prompts))["input_ids"]):
        if not ids:
            raise ValueError(f"prompt {row} is empty")
        if len(ids) + max_new_tokens > limit:
            raise ValueError(
                f"prompt {row} has {len(ids)} tokens; with {max_new_tokens} new ones it exceeds "
                f"the context of {model.name_or_path} ({limit})"
            )


def _continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    custom_generate: Callable | None,
) -> pd.DataFrame:
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    digest = hashlib.sha256(f"{sampling.seed}|{prompt}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    start = time.perf_counter()
    output = model.generate(
        **inputs,
        custom_generate=custom_generate,
        do_sample=True,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        temperature=sampling.temperature,
        max_new_tokens=sampling.max_new_tokens,
        num_return_sequences=sampling.generations,
    )
    new = output[:, inputs["input_ids"].shape[1] :].tolist()
    seconds = time.perf_counter() - start
    return pd.DataFrame(
        {
            "prompt": prompt,
            "generation": range(len(new)),
            "text": tokenizer.batch_decode(new, skip_special_tokens=True),
            "n_tokens": [_length(ids, _ends(model)) for ids in new],
            "seconds": seconds / len(new),
        }
    )


def _ends(model: PreTrainedModel) -> set[int]:
    """Tokens at which `generate` stops."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


def _length(ids: list[int], ends: set[int]) -> int:
    return next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))


def _modules(custom_generate: Callable | None) -> list[ModuleType]:
    """Return the modules whose code makes the texts."""
    modules = [sys.modules[__name__], inspect.getmodule(type(custom_generate))]
    return [module for module in modules if hasattr(module, "__file__")]
