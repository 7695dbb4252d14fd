"""Load a causal language model and its tokenizer by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sasa_lib.checks import first_line
from sasa_lib.texts.assets import cache_dir, fetch, made_once

EMBEDDED = ("gemma3-270m", "smollm2-135m-instruct")
OTHER_SENSES = ("vision", "visual", "image", "audio")  # in the names of modules
SPREAD = "balanced"  # the device that is all GPUs together


def load_lm(
    name: str, *, device: str = "auto", dtype: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model in evaluation mode, with its tokenizer.

    Parameters
    ----------
    name : str
        One of `EMBEDDED`, a local folder, or a model id of the Hugging Face hub.
    device : str
        "auto" (CUDA, then Apple MPS, then CPU), a torch device, or "balanced": spread over all
        GPUs, for a model larger than one of them.
    dtype : str
        "auto" (bfloat16 on CUDA, float32 elsewhere) or the name of a torch dtype.

    Returns
    -------
    model, tokenizer
        The tokenizer pads on the left, as generation needs, and has a pad token.

    Raises
    ------
    AssetError
        An embedded model could not be fetched.
    """
    spread = device == SPREAD and torch.cuda.is_available()
    device = _device("auto" if device == SPREAD else device)
    torch_dtype = _dtype(dtype, device)
    source = _converted(name) if name in EMBEDDED else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch_dtype, device_map=SPREAD if spread else None
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"cannot load model {name!r}: it is neither embedded ({', '.join(EMBEDDED)}), "
            f"nor a folder with a causal language model, nor reachable on the hub "
            f"({first_line(error)})"
        ) from error
    if spread and any(weight.device.type != "cuda" for weight in model.parameters()):
        raise ValueError(
            f"{name!r} does not fit into the memory of {torch.cuda.device_count()} GPUs: "
            "give it more of them, or a smaller dtype"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Its sampling defaults would silently join those that a caller passes to `generate`.
    settings = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
    model.generation_config.update(do_sample=False, **dict.fromkeys(settings))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.name_or_path = name
    return (model if spread else model.to(device)).eval(), tokenizer


def language_model(model: torch.nn.Module) -> PreTrainedModel:
    """Return the transformers model inside whatever wraps it, with the adapters that act in it."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not hasattr(model, "peft_config") or not hasattr(model, "get_base_model"):
        return model
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            "adapters that learn a prompt (prompt or prefix tuning) are not supported: use one "
            "that changes layers, such as LoRA"
        )
    return model.get_base_model()


def head(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of final hidden states, without the model's forward pass.

    A model may do more with its logits than this: compare once by `is_own_head`.
    """
    logits = model.get_output_embeddings()(hidden)
    config = text_config(model)
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits / (getattr(config, "logits_scaling", None) or 1.0)


def is_own_head(model: PreTrainedModel, hidden: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether `head` turns these final hidden states into these logits, the model's own."""
    tolerance = 1e-3 if model.dtype == torch.float32 else 3e-2
    found = head(model, hidden).float()
    logits = logits.to(found.device).float()  # a spread model's are where its first block is
    return torch.allclose(found, logits, atol=tolerance, rtol=tolerance)


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the configuration of the language part of a model."""
    return model.config.get_text_config()


def context_length(model: torch.nn.Module) -> float:
    """Return how many tokens a model takes; infinity where nothing says.

    RoBERTa and its kin count positions from behind the pad token's, so they take fewer tokens
    than their configuration says.
    """
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return module.weight.shape[0] - padding - 1
    config = getattr(model, "config", None)
    config = config.get_text_config() if config else None
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if (length := getattr(config, name, None)) and length > 0:  # XLNet has -1
            return length
    return math.inf


def body(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a model below its head, from token ids to `last_hidden_state`."""
    # Not the decoder alone, where there is more: it would take an image's token for a word.
    inner = getattr(model, "language_model", None)
    parts = model.base_model, getattr(model, "model", None), getattr(inner, "model", None)
    return next((part for part in parts if _is_below_the_head(part, model)), model.base_model)


def decoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return the innermost part that gives `last_hidden_state`: every pass goes through it."""
    part = model.get_decoder()
    return part if _is_below_the_head(part, model) else body(model)


def _is_below_the_head(part: object, model: PreTrainedModel) -> bool:
    return (
        isinstance(part, PreTrainedModel)
        and part is not model
        and part.get_output_embeddings() is None
    )


def reading(
    part: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor
) -> dict[str, torch.Tensor | bool]:
    """Inputs for reading token ids [batch, length], padded on the right, as `generate` reads them.

    Without positions, RoBERTa and its kin count from elsewhere.
    """
    device = part.device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
    if "position_ids" in inspect.signature(part.forward).parameters:
        inputs["position_ids"] = torch.arange(ids.shape[1], device=device).expand(ids.shape)
    return inputs


def blocks(model: PreTrainedModel) -> torch.nn.ModuleList:
    """Return the stack of blocks; hidden state l is what block l gets, from 0."""
    depth = text_config(model).num_hidden_layers
    for name, module in body(model).named_modules():
        # The part of a model that looks at images may be as deep.
        stack = isinstance(module, torch.nn.ModuleList) and len(module) == depth
        if stack and not any(sense in name for sense in OTHER_SENSES):
            return module
    raise ValueError(f"{type(model).__name__} has no stack of {depth} blocks to look into")


def _converted(name: str) -> Path:
    """Convert an embedded GGUF to safetensors once; later loads take a second, not a minute."""
    target = cache_dir() / "models" / name
    with made_once(target) as folder:
        if folder:
            source = fetch(name)
            print(f"converting {name} to safetensors, once ...", flush=True)
            with _read_once():
                tokenizer = AutoTokenizer.from_pretrained(source, gguf_file="model.gguf")
                model = AutoModelForCausalLM.from_pretrained(
                    source,
                    gguf_file="model.gguf",
                    quantization_config=GgufConfig(dequantize=True),
                    dtype=torch.float32,
                )
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return target


class _Reader(gguf.GGUFReader):
    """Reads a file through a plain array: a slice of a memory map costs several times as much."""

    @property
    def data(self) -> np.ndarray:
        """The file's bytes."""
        return self._data

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._data = mapped.view(np.ndarray)


@contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers, which reads a GGUF anew for tokenizer, configuration and weights, share."""
    before, gguf.GGUFReader = gguf.GGUFReader, cache(_Reader)
    try:
        yield
    finally:
        gguf.GGUFReader = before


def _device(device: str) -> str:
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"unknown device {device!r} on this machine; use auto, cpu, cuda or mps "
                f"({first_line(error)})"
            ) from error
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(dtype: str, device: str) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    value = getattr(torch, dtype, None)
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ValueError(f"unknown dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    return value
