"""Continue prompts by one model: everything that a run's texts depend on, but for the method."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.checks import as_list, check_count, check_number, first_line, text_fault
from sasa_lib.engine.models import context_length, language_model
from sasa_lib.engine.tokens import continuation_texts, left_padded, prompt_ids, too_long

SCHEMA = pa.schema(  # of a run's rows
    {
        "prompt": pa.string(),
        "generation": pa.int64(),
        "text": pa.string(),
        "n_tokens": pa.int64(),
        "draws": pa.int64(),
        "seconds": pa.float64(),
    }
)


@dataclass(frozen=True)
class Sampling:
    """How every method of a comparison samples.

    Attributes
    ----------
    generations : int
        Continuations of each prompt, at least 1.
    max_new_tokens : int
        Length of a continuation, at most; at least 1.
    top_k, top_p, temperature
        As in `transformers.GenerationConfig`; top_k = 0 is no top-k.
    seed : int
        The randomness of a prompt's generations comes from this seed and the prompt, and so does
        not depend on which other prompts are in the run.
    """

    generations: int = 25
    max_new_tokens: int = 20
    top_k: int = 10
    top_p: float = 0.9
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checked = {
            "generations": check_count("generations", self.generations),
            "max_new_tokens": check_count("max_new_tokens", self.max_new_tokens),
            "top_k": check_count("top_k", self.top_k, 0),
            "top_p": check_number("top_p", self.top_p, above=0, most=1),
            "temperature": check_number("temperature", self.temperature, above=0),
            "seed": check_count("seed", self.seed, -(2**63)),
        }
        for name, value in checked.items():  # numpy's numbers as Python's, in keys and JSON
            object.__setattr__(self, name, value)


def prompt_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
) -> tuple[dict[str, list[int]], dict[int, str]]:
    """Return the token ids of every prompt that can be continued, and why others cannot.

    Returns
    -------
    tokens : dict from a prompt to its token ids
    faults : dict from the row of a prompt to a sentence
        It is no text, is empty, or leaves no room to generate.
    """
    prompts = as_list(prompts, "prompts")
    if not prompts:
        raise ValueError("expected a list of at least one prompt")
    faults = {
        row: f"prompt {row} {fault}"
        for row, prompt in enumerate(prompts)
        if (fault := text_fault(prompt, empty=True))
    }
    texts = list(dict.fromkeys(p for row, p in enumerate(prompts) if row not in faults))
    found = dict(zip(texts, prompt_ids(tokenizer, texts), strict=True))
    limit = context_length(language_model(model))
    for row, prompt in enumerate(prompts):
        if row in faults:
            continue
        fault = "is empty"
        if found[prompt]:
            length = len(found[prompt])
            fault = too_long(model, length, max_new_tokens, "prompt", limit)
        if fault:
            faults[row] = f"prompt {row} {fault}"
    bad = {prompts[row] for row in faults if isinstance(prompts[row], str)}
    good = {prompt: ids for prompt, ids in found.items() if prompt not in bad}
    return good, dict(sorted(faults.items()))


class Continuer:
    """Continues prompts with one model, as many at once as its memory takes.

    Attributes
    ----------
    size : int
        Prompts in a batch. Whenever memory runs out, it is halved for good.

    Parameters
    ----------
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    sampling : Sampling
    custom_generate : callable or None
        The method; None is plain sampling.
    size : int
    set_aside : bool
        Report a prompt that cannot be continued, and go on without it; else raise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        custom_generate: Callable | None,
        *,
        size: int,
        set_aside: bool,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.sampling, self.custom_generate = sampling, custom_generate
        self.size, self.set_aside = size, set_aside

    def __call__(
        self, prompts: dict[str, list[int]]
    ) -> Iterator[tuple[pd.DataFrame, dict[str, str]]]:
        """Yield the rows of a batch at a time, and of prompts without rows the reason.

        Parameters
        ----------
        prompts : dict from a prompt to its token ids

        Raises
        ------
        RuntimeError
            Memory does not take a single prompt's generations, and prompts are not set aside.
        torch.AcceleratorError
            The device is broken, which is no prompt's fault.
        Exception
            What the method raises, if prompts are not set aside.
        """
        waiting = list(prompts.items())
        while waiting:
            batch, waiting = dict(waiting[: self.size]), waiting[self.size :]
            yield from self._tried(batch)

    def _tried(self, batch: dict[str, list[int]]) -> list[tuple[pd.DataFrame, dict[str, str]]]:
        """Continue a batch; in halves where memory runs out, prompt by prompt where one fails."""
        try:
            rows = _continuations(
                self.model, self.tokenizer, batch, self.sampling, self.custom_generate
            )
            return [(rows, {})]
        except torch.AcceleratorError:
            raise  # whatever was asked of this device now would fail
        except Exception as error:
            failure = error
        full = isinstance(failure, torch.OutOfMemoryError) or should_reduce_batch_size(failure)
        if full:
            traceback.clear_frames(failure.__traceback__)  # whose tensors fill the memory
            clear_device_cache(garbage_collection=True)
            if len(batch) == 1:
                failure = RuntimeError(
                    f"memory does not take a prompt's {self.sampling.generations} generations: ask "
                    "for fewer generations or tokens, or load the model with dtype='bfloat16'"
                )
        if not self.set_aside and not (full and len(batch) > 1):
            raise failure
        if len(batch) == 1:
            (prompt,) = batch
            reason = f"{type(failure).__name__}: {first_line(failure)}"
            return [(SCHEMA.empty_table().to_pandas(), {prompt: reason})]
        if full:
            self.size = (len(batch) + 1) // 2
        waiting, made = list(batch.items()), []
        while waiting:
            size = self.size if full else 1  # which may have become less
            part, waiting = dict(waiting[:size]), waiting[size:]
            made += self._tried(part)
        return made


def _continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, list[int]],
    sampling: Sampling,
    custom_generate: Callable | None,
) -> pd.DataFrame:
    """Rows of one batch, from its prompts and their token ids."""
    # Texts of the same tokens are one prompt: how often noise saw it must not vary with the batch.
    distinct = list(dict.fromkeys(map(tuple, batch.values())))
    ids, mask = left_padded(tokenizer, distinct)
    _seed(sampling.seed, None if is_keyed(custom_generate) else next(iter(batch)))
    start = time.perf_counter()
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        custom_generate=custom_generate,
        do_sample=True,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        temperature=sampling.temperature,
        max_new_tokens=sampling.max_new_tokens,
        num_return_sequences=sampling.generations,
        return_dict_in_generate=False,
    )
    new = output[:, ids.shape[1] :].tolist()
    seconds = time.perf_counter() - start
    new = [sequence[: _length(sequence, _ends(model))] for sequence in new]
    draws = _draws(custom_generate, len(new))
    number = sampling.generations
    first = {ids: row * number for row, ids in enumerate(distinct)}
    rows = [first[tuple(ids)] + i for ids in batch.values() for i in range(number)]
    texts = [
        text
        for ids, row in first.items()
        for text in continuation_texts(tokenizer, ids, new[row : row + number])
    ]
    return pd.DataFrame(
        {
            "prompt": [prompt for prompt in batch for _ in range(number)],
            "generation": list(range(number)) * len(batch),
            "text": [texts[row] for row in rows],
            "n_tokens": [len(new[row]) for row in rows],
            "draws": [draws[row] for row in rows],
            "seconds": seconds / len(rows),
        }
    )


def _draws(custom_generate: Callable | None, responses: int) -> list[int]:
    """Sequences that a method has just drawn for each response that it returned."""
    each = getattr(custom_generate, "draws", 1)
    taken = getattr(custom_generate, "drawn", None)  # with an `Accept` responses differ
    return [each] * responses if taken is None else [round(each * number) for number in taken]


def is_keyed(custom_generate: Callable | None) -> bool:
    """Whether a method draws with noise of its own, whatever else is in the batch.

    A function says so by an attribute `is_keyed`, as a `Decoder` does.
    """
    return bool(getattr(custom_generate, "is_keyed", False))


def _seed(seed: int, prompt: str | None) -> None:
    """Seed torch's generator, from which keyed noise takes its seed and the rest all it draws."""
    if prompt is not None:
        digest = hashlib.sha256(f"{seed}|{prompt}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big", signed=True)
    torch.manual_seed(seed)


def _ends(model: PreTrainedModel) -> set[int]:
    """Tokens at which `generate` stops."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


def _length(ids: list[int], ends: set[int]) -> int:
    return next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
