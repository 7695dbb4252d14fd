"""Time and memory."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

PEAK_RESET, PROCESS_STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # Linux


def cost(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    new_tokens: int,
    **options: Any,
) -> dict[str, float]:
    """Time and peak memory of one call of `generate`.

    Parameters
    ----------
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    prompt : str
    new_tokens : int
        Every text gets exactly so many, and none ends before.
    **options
        Of `generate`, such as `custom_generate`, `do_sample`, `top_k` or `num_return_sequences`.

    Returns
    -------
    dict
        `seconds`, and `megabytes` as `peak_memory` measures them.
    """
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
    options |= {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    seconds = []

    def call() -> None:
        start = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        seconds.append(time.perf_counter() - start)

    megabytes = peak_memory(call, model.device)
    return {"seconds": seconds[0], "megabytes": megabytes}


def peak_memory(call: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Peak memory while something runs, everything included that was there before.

    Parameters
    ----------
    call : callable
        It is called once, without arguments.
    device : torch.device or str
        Where it computes: of "cuda", the memory that torch has allocated there; of "cpu", the
        resident memory of the whole process.

    Returns
    -------
    float
        In MB (10^6 bytes); NaN where the system does not tell: other devices, and a CPU without
        Linux's /proc (macOS, Windows).
    """
    device = torch.device(device)
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc keeps what is freed, until it is told
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        PEAK_RESET.write_text("5")  # now the peak is what is resident
        known = device.type == "cpu"
    except OSError:
        known = False
    call()
    if not known:
        return float("nan")
    status = PROCESS_STATUS.read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
