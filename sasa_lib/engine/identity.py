"""What a kept result depends on, in one place for runs, embeddings, judgements and boundaries.

Everything that is kept is found again by a key of all that shaped it: the weights as they act, the
tokenizer, every setting of `generate`, the method, the libraries, and for our own code a format
number, which is raised when results change, not whenever a comment does.
"""

from __future__ import annotations

import dis
import hashlib
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from uuid import uuid4

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.checks import first_line, to_json
from sasa_lib.engine.models import language_model

# Raise a number when what is kept under it would come out otherwise.
FORMATS = {"run": 3, "embedding": 2, "judgement": 3, "reward": 3, "expert": 1}
CHUNK = 1 << 16  # numbers of 8 bytes; fits a core's cache
# Of a configuration: where it came from, and what only callers read.
NOT_ACTING = {
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures",
    "dtype", "torch_dtype", "use_cache", "output_attentions", "output_hidden_states",
    "return_dict", "task_specific_params", "_attn_implementation_internal",
    "_attn_implementation_autoset", "quantization_config", "auto_map",
}  # fmt: skip
# Of a module: what is told in other ways, where it came from, and what a forward pass leaves there.
NO_ATTRIBUTES = {
    *vars(nn.Module()), "forward", "config", "generation_config", "name_or_path", "hf_device_map",
    "gradient_checkpointing", "warnings_issued", "max_seq_len_cached", "long_inv_freq",
    "rope_deltas", "recurrent_states", "conv1d_state", "layers_are_rescaled",
}  # fmt: skip
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Hooks and forwards of these only move tensors between devices or look at them.
LOOKING = ("transformers.", "accelerate.", "peft.", "torch.", "sasa_lib.")
_PROCESS = uuid4().hex
_UNKNOWN: list[object] = []  # functions and objects that nothing tells from others
# From the id of a value to the value, so that it stays, and its description.
Seen = dict[int, tuple[object, object]]


def depends_on(kind: str, **facts: object) -> dict[str, object]:
    """Return everything that a kept result depends on, ready for `key`.

    Parameters
    ----------
    kind : {"run", "embedding", "judgement", "reward", "expert"}
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


def described(value: object, seen: Seen | None = None) -> object:
    """Describe a value by all that it does to a result, in what JSON can hold.

    Models and tokenizers by their digests, what has a `describe` method by the name of its class
    and that, other objects by their class and attributes. Functions and classes of libraries by
    their names, those of the caller by a digest of their code and everything that it refers to.
    Where nothing tells a value from others, with a warning, by what no other process has. `seen`
    holds what is described already, or holds this value.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.dtype | torch.device | Path | bytes):
        return str(value)
    seen = {} if seen is None else seen
    if id(value) not in seen:
        seen[id(value)] = value, "itself"
        seen[id(value)] = value, _described(value, seen)
    return seen[id(value)][1]


def _described(value: object, seen: Seen) -> object:
    def each(items: Iterable[object]) -> list[object]:
        return [described(item, seen) for item in items]

    if isinstance(value, np.ndarray) and value.dtype != object:
        facts = f"{value.dtype} {value.shape} ".encode()
        return hashlib.sha256(facts + value.tobytes()).hexdigest()
    if isinstance(value, torch.Tensor):
        return tensor_digest(value)
    if isinstance(value, nn.Module):
        return model_digest(value, seen)
    if isinstance(value, PreTrainedTokenizerBase):
        return tokenizer_digest(value)
    if isinstance(value, Mapping):
        return {str(name): described(item, seen) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return each(value)
    if isinstance(value, set | frozenset):
        return sorted(map(to_json, each(value)))
    if isinstance(value, type):
        return _class(value, seen)
    owner = getattr(value, "__self__", None)
    if isinstance(value, BuiltinFunctionType) and not isinstance(owner, ModuleType | None):
        return [value.__name__, described(owner, seen)]
    if isinstance(value, ModuleType | BuiltinFunctionType | logging.Logger):
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", value)
        return f"{getattr(value, '__module__', '')} {name}"
    if isinstance(value, MemberDescriptorType | GetSetDescriptorType):
        return value.__qualname__
    if isinstance(value, FunctionType):
        # A library's is known by the library's version, unless it holds another's.
        library = _library(_home(value))
        if library is not None and not value.__closure__:
            return f"{library} {value.__module__} {value.__qualname__}"
        return _function(value, seen)
    if isinstance(value, MethodType):
        return each([value.__func__, value.__self__])
    if isinstance(value, partial):
        return each([value.func, value.args, value.keywords])
    if isinstance(value, staticmethod | classmethod):
        return described(value.__func__, seen)
    if isinstance(value, property):
        return each([value.fget, value.fset])
    if isinstance(value, cached_property):
        return described(value.func, seen)
    return _object(value, seen)


def _object(value: object, seen: Seen) -> object:
    """Describe what is no container and no code: by what it says of itself, or all it holds."""
    kind = type(value)
    if not kind.__module__.startswith("pandas"):
        if hasattr(value, "describe"):
            # Who inherits a library's `describe` may have changed other methods.
            own = _library(kind.__module__) is None and _library(_home(value.describe)) is not None
            code = [_class(kind, seen)] if own else []
            return [kind.__qualname__, described(value.describe(), seen), *code]
        if hasattr(value, "fingerprint"):
            return value.fingerprint()
        if hasattr(value, "__dict__"):
            return key(described([kind, vars(value)], seen))
    try:
        from datasets.fingerprint import Hasher  # a scorer needs no datasets

        return f"{described(kind, seen)} {Hasher.hash(value)}"
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


def _function(function: FunctionType, seen: Seen) -> str:
    """Digest of a function's code, and of what it refers to: defaults, closure, globals."""
    names: set[str] = set()

    def code_of(code: CodeType) -> list[object]:
        names.update(code.co_names)
        arguments = code.co_argcount + code.co_kwonlyargcount
        steps: list[object] = []
        for step in dis.get_instructions(code):
            if step.opcode not in (*dis.hasconst, *dis.hasname):
                steps.append([step.opcode, step.arg])
            elif isinstance(step.argval, CodeType):
                steps.append(code_of(step.argval))
            elif isinstance(step.argval, frozenset):
                steps.append([step.opcode, sorted(map(repr, step.argval))])
            else:
                steps.append([step.opcode, repr(step.argval)])
        head = [code.co_flags, *code.co_varnames[:arguments], code.co_exceptiontable.hex()]
        return [head, steps]

    code = code_of(function.__code__)
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    found = _named(function.__globals__, sorted(names), ())
    refers = [function.__defaults__, function.__kwdefaults__, cells, found, vars(function)]
    return key([function.__qualname__, code, described(refers, seen)])


def _named(
    space: Mapping[str, object], names: list[str], modules: tuple[ModuleType, ...]
) -> dict[str, object]:
    """Values of names in a namespace; of the caller's own modules, what is named there in turn."""
    found = {}
    for name in names:
        value = space.get(name)
        if isinstance(value, ModuleType) and _library(value.__name__) is None:
            if value not in modules:
                found[name] = _named(vars(value), names, (*modules, value))
        elif name in space:
            found[name] = value
    return found


def _class(kind: type, seen: Seen) -> str:
    """Name of a library's class; of the caller's, a digest of its code and of its bases."""
    if kind.__module__.startswith("sasa_lib."):
        return kind.__qualname__
    library = _library(kind.__module__)
    if library is not None:
        return f"{library} {kind.__module__} {kind.__qualname__}"
    members = {
        name: member
        for name, member in sorted(vars(kind).items())
        if name != "__repr__"
        and not name.startswith("_abc_")
        and (not name.startswith("__") or isinstance(member, FunctionType))
    }
    return key([kind.__qualname__, described([kind.__bases__, members], seen)])


@cache
def _library(module: str | None) -> str | None:
    """Name and version of the library that a module is of, None if it is the caller's own code.

    The version of Python's own library, of this one, and of what `depends_on` names is left out.
    """
    top = (module or "builtins").partition(".")[0]
    if top in sys.stdlib_module_names or top in ("sasa_lib", "torch", "transformers"):
        return top
    found = sys.modules.get(top)
    places = [getattr(found, "__file__", None), *getattr(found, "__path__", ())]
    if any({"site-packages", "dist-packages"} & set(Path(p).parts) for p in places if p):
        return f"{top} {getattr(found, '__version__', '')}".strip()
    return None


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


def model_digest(model: nn.Module, seen: Seen | None = None) -> str:
    """Return a SHA-256 over a model as it acts, wherever it came from and whatever it is called.

    In it are the configuration, every weight and buffer to the last bit, quantised ones too, of
    adapters those that are active, the class and the plain attributes of every module, hooks of
    the caller's and replaced forward methods. Not in it are the name, the device, and adapters
    that are disabled: those change nothing. `seen` is as in `described`.
    """
    model = language_model(model)
    seen = {} if seen is None else seen
    seen[id(model)] = model, "itself"
    facts: list[object] = [model.training, _global_hooks(seen)]
    config = getattr(model, "config", None)
    if config is not None:
        attention = getattr(config, "_attn_implementation", None)
        function = AttentionInterface().get(attention) if isinstance(attention, str) else None
        acting = {k: v for k, v in config.to_dict().items() if k not in NOT_ACTING}
        facts += [acting, str(attention), described(function, seen)]
    digest = hashlib.sha256(to_json(facts).encode())
    silent: set[str] = set()
    adapters: set[str] = set()  # places of peft's layers and of what they hold
    for place, module in model.named_modules():
        facts = [*_adapters(place, module, silent, adapters), *_hooks(module, seen)]
        if place not in adapters:
            facts += [_class(type(module), seen), _attributes(module, seen)]
            if module.training != model.training:
                facts.append("training" if module.training else "evaluating")
        if facts:
            digest.update(f"{_plain_name(place)} {to_json(facts)}".encode())
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
    if tensor.layout != torch.strided:
        return key([str(tensor.layout), tensor_digest(tensor.to_dense())])
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


def _adapters(place: str, module: nn.Module, silent: set[str], adapters: set[str]) -> list[object]:
    """What a module's adapters do.

    `silent` takes the names of weights that do nothing, `adapters` the places of modules that are
    no part of the model without them.
    """
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        return []
    own = ("base_layer", "original_module")
    adapters.add(place)
    adapters.update(
        f"{place}.{name}"
        for name, _ in module.named_modules()
        if name and name.partition(".")[0] not in own
    )
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


def _attributes(module: nn.Module, seen: Seen) -> dict[str, object]:
    """What a module holds beside its weights and parts, and its forward pass may read."""
    library = _library(type(module).__module__)
    if library not in (None, "torch", "transformers"):
        return {}  # those that quantise keep notes there
    return {
        name: described(value, seen)
        for name, value in sorted(vars(module).items())
        if name not in NO_ATTRIBUTES and not (library and name.startswith("_")) and _may_act(value)
    }


def _may_act(value: object) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_may_act, value))
    if isinstance(value, Mapping):
        return all(map(_may_act, value.values()))
    if isinstance(value, nn.Module):  # in a list, where torch does not see it
        return True
    plain = bool | int | float | complex | str | np.ndarray | np.generic | torch.Tensor
    code = FunctionType | MethodType | BuiltinFunctionType | partial | type
    if isinstance(value, code) and _home(value).startswith("accelerate."):
        return False
    return isinstance(value, plain | code) or _library(type(value).__module__) is None


def _hooks(module: nn.Module, seen: Seen) -> list[object]:
    """What a caller has set on a module: hooks, and a forward in the place of its own."""
    hooks = [(name, hook) for name in HOOKS for hook in getattr(module, name).values()]
    if "forward" in vars(module):
        hooks.append(("forward", vars(module)["forward"]))
    return _of_caller(hooks, seen)


def _global_hooks(seen: Seen) -> list[object]:
    """Hooks that a caller has set on all modules at once."""
    return _of_caller(
        [(name, hook) for name in HOOKS for hook in vars(torch_modules)[f"_global{name}"].values()],
        seen,
    )


def _of_caller(hooks: list[tuple[str, object]], seen: Seen) -> list[object]:
    own = [(name, hook) for name, hook in hooks if not _home(hook).startswith(LOOKING)]
    return [[name, described(hook, seen)] for name, hook in own]


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
