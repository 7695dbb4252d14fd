"""What a kept result depends on, in one place for runs, embeddings, judgements and boundaries.

Everything that is kept is found again by a key of all that shaped it: the weights as they act, the
tokenizer, every setting of `generate`, the method, the libraries, and for our own code a format
number, which is raised when results change, not whenever a comment does.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
)
from uuid import uuid4

import numpy as np
import torch
from datasets.fingerprint import Hasher
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.checks import first_line, to_json
from sasa_lib.models import language_model

# Raise a number when what is kept under it would come out otherwise.
FORMATS = {"run": 2, "embedding": 2, "judgement": 2, "reward": 2}
CHUNK = 1 << 16  # numbers of 8 bytes; fits a core's cache
# Of a configuration: where it came from, and what only callers read.
NOT_ACTING = {
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures",
    "dtype", "torch_dtype", "use_cache", "output_attentions", "output_hidden_states",
    "return_dict", "task_specific_params", "_attn_implementation_internal",
    "_attn_implementation_autoset", "quantization_config", "auto_map",
}  # fmt: skip
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Hooks and forwards of these only move tensors between devices or look at them.
LIBRARIES = ("transformers.", "accelerate.", "peft.", "torch.", "sasa_lib.")
_PROCESS = uuid4().hex
_UNKNOWN: list[object] = []  # functions and objects that nothing tells from others


def depends_on(kind: str, **facts: object) -> dict[str, object]:
    """Return everything that a kept result depends on, ready for `key`.

    Parameters
    ----------
    kind : {"run", "embedding", "judgement", "reward"}
    **facts
        Whatever else shapes it: models, tokenizers, methods, settings; see `described`.
    """
    libraries = {name: version(name) for name in ("torch", "transformers")}
    return {"kind": kind, "format": FORMATS[kind], "libraries": libraries} | {
        name: described(value) for name, value in facts.items()
    }


def key(facts: object, length: int = 16) -> str:
    """Return so many hexadecimal digits of a SHA-256 of facts, which `to_json` can write."""
    return hashlib.sha256(to_json(facts).encode()).hexdigest()[:length]


def described(value: object, inside: tuple[int, ...] = ()) -> object:
    """Describe a value by all that it does to a result, in what JSON can hold.

    Models and tokenizers by their digests, what has a `describe` method by its class and that,
    functions by their code and everything that it refers to, other objects by their class and
    attributes. Where nothing tells a value from others, with a warning, by what no other process
    has. `inside` are the ids of the values that hold this one.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.dtype | torch.device | Path | bytes):
        return str(value)
    if isinstance(value, type | ModuleType | BuiltinFunctionType):
        name = getattr(value, "__qualname__", value.__name__)
        return f"{getattr(value, '__module__', '')} {name}"
    if id(value) in inside:
        return "itself"
    inside = (*inside, id(value))

    def each(items: Iterable[object]) -> list[object]:
        return [described(item, inside) for item in items]

    if isinstance(value, np.ndarray) and value.dtype != object:
        facts = f"{value.dtype} {value.shape} ".encode()
        return hashlib.sha256(facts + value.tobytes()).hexdigest()
    if isinstance(value, torch.Tensor):
        return tensor_digest(value)
    if isinstance(value, nn.Module):
        return model_digest(value, inside)
    if isinstance(value, PreTrainedTokenizerBase):
        return tokenizer_digest(value)
    if isinstance(value, Mapping):
        return {str(name): described(item, inside) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return each(value)
    if isinstance(value, set | frozenset):
        return sorted(map(to_json, each(value)))
    if isinstance(value, FunctionType):
        # A library's is known by the library's version, unless it holds another's.
        if not value.__closure__ and _home(value).startswith(LIBRARIES):
            return f"{value.__module__} {value.__qualname__}"
        return _function(value, inside)
    if isinstance(value, MethodType):
        return each([value.__func__, value.__self__])
    if isinstance(value, partial):
        return each([value.func, value.args, value.keywords])
    kind = type(value)
    if not kind.__module__.startswith("pandas"):
        if hasattr(value, "describe"):
            return [kind.__qualname__, described(value.describe(), inside)]
        if hasattr(value, "fingerprint"):
            return value.fingerprint()
        if hasattr(value, "__dict__"):
            call = vars(kind).get("__call__")  # the code of an object that is called
            return [kind.__qualname__, *each([vars(value), call])]
    try:
        return Hasher.hash(value)
    except Exception as error:  # whatever a class may do when it is pickled
        if not any(value is known for known in _UNKNOWN):
            _UNKNOWN.append(value)
            warnings.warn(
                f"a {kind.__qualname__} cannot be told from others ({first_line(error)}), so "
                "nothing that is kept with it is found again by another process: give it a method "
                "describe() that returns its parameters",
                stacklevel=2,
            )
        return f"{_PROCESS} {next(i for i, known in enumerate(_UNKNOWN) if known is value)}"


def _function(function: FunctionType, inside: tuple[int, ...]) -> list[object]:
    """Code of a function, and what it refers to: its defaults, closure and globals."""
    names: set[str] = set()

    def code_of(code: CodeType) -> list[object]:
        names.update(code.co_names)
        inner = [code_of(c) for c in code.co_consts if isinstance(c, CodeType)]
        constants = [
            sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c)
            for c in code.co_consts
            if not isinstance(c, CodeType)
        ]
        return [code.co_code.hex(), constants[1:] if function.__doc__ else constants, inner]

    code = code_of(function.__code__)
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    found = {
        name: function.__globals__[name] for name in sorted(names) if name in function.__globals__
    }
    refers = [function.__defaults__, function.__kwdefaults__, cells, found]
    return [function.__qualname__, code, sorted(names), described(refers, inside)]


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # of a name that is bound later
        return False
    return True


def generation_settings(model: PreTrainedModel) -> dict[str, object]:
    """Return every setting that `generate` would take from the model's generation config."""
    settings = language_model(model).generation_config.to_dict()
    # `_from_model_config` and the like are notes, and tensors are made of other settings.
    return {
        name: described(value)
        for name, value in settings.items()
        if not name.startswith("_") and name != "transformers_version"
    }


def model_digest(model: nn.Module, inside: tuple[int, ...] = ()) -> str:
    """Return a SHA-256 over a model as it acts, wherever it came from and whatever it is called.

    In it are the configuration, every weight and buffer to the last bit, quantised ones too, of
    adapters those that are active, hooks of the caller's and replaced forward methods. Not in it
    are the name, the device, and adapters that are disabled: those change nothing. `inside` is as
    in `described`.

    Raises
    ------
    ValueError
        A weight that is not in memory.
    """
    model = language_model(model)
    digest = hashlib.sha256(f"{type(model).__qualname__} {model.training}".encode())
    config = getattr(model, "config", None)
    if config is not None:
        acting = {k: v for k, v in config.to_dict().items() if k not in NOT_ACTING}
        digest.update(to_json(acting).encode())
        digest.update(str(getattr(config, "_attn_implementation", None)).encode())
    silent = set()
    for place, module in model.named_modules():
        facts = [*_adapters(place, module, silent), *_hooks(module, inside)]
        if facts:
            digest.update(f"{_plain_name(place)} {facts}".encode())
    for name, tensor in _tensors(model):
        if not any(name == part or name.startswith(f"{part}.") for part in silent):
            digest.update(f"{_plain_name(name)} {tensor_digest(tensor)}".encode())
    return digest.hexdigest()


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return a digest of a tensor's type, shape and bits, computed where the tensor is.

    A SHA-256 of sums modulo 2^64 of its bytes, eight at a time, by fixed random multipliers: any
    change shows but for one in 2^64, at the speed of memory.
    """
    if tensor.is_quantized:
        scales = (
            (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
            if tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
            else (tensor.q_scale(), tensor.q_zero_point())
        )
        return key([str(tensor.dtype), *map(described, (tensor.int_repr(), *scales))])
    if hasattr(tensor, "__tensor_flatten__") and type(tensor) not in (torch.Tensor, nn.Parameter):
        names, context = tensor.__tensor_flatten__()  # such as torchao's
        return key([str(context), *(tensor_digest(getattr(tensor, name)) for name in names)])
    if tensor.device.type == "meta":
        raise ValueError("a weight is not in memory (offloaded, or on the meta device)")
    facts = f"{tensor.dtype} {tuple(tensor.shape)}"
    raw = tensor.detach().contiguous().view(-1)
    if not raw.numel():
        return facts
    raw = raw.view(torch.uint8)
    if raw.numel() % 8 or raw.storage_offset() % 8:
        raw = nn.functional.pad(raw, (0, -raw.numel() % 8))
        raw = raw.clone() if raw.storage_offset() % 8 else raw
    words = raw.view(torch.int64)
    multipliers = _multipliers(words.device)
    # An integer's product wraps, so the order of summing does not matter.
    if words.device.type == "cpu":
        sums = [int(torch.dot(part, multipliers[: len(part)])) for part in words.split(CHUNK)]
    else:
        sums = [int((part * multipliers[: len(part)]).sum()) for part in words.split(CHUNK << 8)]
    return hashlib.sha256(f"{facts} {sums}".encode()).hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 over all that turns text into tokens and back."""
    facts = [
        type(tokenizer).__qualname__,
        tokenizer.special_tokens_map,
        getattr(tokenizer, "clean_up_tokenization_spaces", None),
        getattr(tokenizer, "split_special_tokens", None),
    ]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        facts += [tokenizer.get_vocab(), getattr(tokenizer, "init_kwargs", {})]
        return key(facts, 64)
    # Before that stand truncation and padding, which the latest call has left there.
    _, _, acting = backend.to_str().partition('"added_tokens"')
    return key([facts, hashlib.sha256(acting.encode()).hexdigest()], 64)


@lru_cache(maxsize=8)
def _multipliers(device: torch.device) -> torch.Tensor:
    length = CHUNK if device.type == "cpu" else CHUNK << 8
    raw = np.random.Philox(key=7).random_raw(length) | 1  # odd: none loses a bit
    return torch.from_numpy(raw.view(np.int64)).to(device)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that acts: weights, buffers, and what quantised modules keep beside them."""
    changing = _recomputed(model)
    kept = dict(model.state_dict())
    buffers = model.named_buffers(remove_duplicate=False)
    kept |= {name: buffer for name, buffer in buffers if name not in changing}
    for name, value in kept.items():
        values = value if isinstance(value, tuple | list) else [value]
        for i, item in enumerate(values):
            if isinstance(item, torch.Tensor):
                yield f"{name} {i}" if len(values) > 1 else name, item


def _recomputed(model: nn.Module) -> set[str]:
    """Buffers that a forward pass sets anew from the text's length, so that they say nothing."""
    names = set()
    for place, module in model.named_modules():
        kinds = getattr(module, "rope_type", None)
        kinds = kinds.values() if isinstance(kinds, Mapping) else [kinds]
        if any(kind and ("dynamic" in kind or kind == "longrope") for kind in kinds):
            for name, _ in module.named_buffers(recurse=False):
                if name.endswith("inv_freq") and not name.endswith("original_inv_freq"):
                    names.add(f"{place}.{name}" if place else name)
    return names


def _adapters(place: str, module: nn.Module, silent: set[str]) -> list[object]:
    """What a module's adapters do; `silent` takes the names of weights that do nothing."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        return []
    acting = [] if module.disable_adapters else list(module.active_adapters)
    acting = [name for name in acting if name not in module.merged_adapters]
    facts: dict[str, object] = {}
    for attribute in (*module.adapter_layer_names, *module.other_param_names):
        held = getattr(module, attribute, None)
        if isinstance(held, nn.Module):
            silent.update(f"{place}.{attribute}.{name}" for name in held if name not in acting)
        elif isinstance(held, Mapping):
            facts[attribute] = {name: str(held[name]) for name in acting if name in held}
    # Merged and disabled, it is taken out again by the next forward pass.
    undone = ["undone"] if module.disable_adapters and module.merged_adapters else []
    return [acting, to_json(facts)] if acting else undone


def _hooks(module: nn.Module, inside: tuple[int, ...]) -> list[str]:
    """Digests of the hooks that a caller has set on a module, and of a forward put in its place."""
    hooks = [(name, hook) for name in HOOKS for hook in getattr(module, name).values()]
    if "forward" in vars(module):
        hooks.append(("forward", vars(module)["forward"]))
    own = [(name, hook) for name, hook in hooks if not _home(hook).startswith(LIBRARIES)]
    return [f"{name} {described(hook, inside)}" for name, hook in own]


def _home(function: object) -> str:
    """Module that a function's code stands in; `functools.wraps` writes another's name on it."""
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    names = getattr(function, "__globals__", None)
    return names["__name__"] if names else type(function).__module__


def _plain_name(name: str) -> str:
    """Name that a weight has without adapters around it."""
    return name.replace(".base_layer", "").replace(".original_module", "")
