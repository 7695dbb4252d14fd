"""From texts to tokens and back, where a text continues another: each trap in one place.

SentencePiece writes a space before every text that it encodes and drops the first one of every
text that it decodes, as if nothing stood before; some tokenizers end every text; a model has only
so many positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.checks import as_list, text_fault
from sasa_lib.engine.models import context_length, language_model

WRITTEN_SPACE = "\u2581"  # SentencePiece's
ANCHORS = ("\n", "|", ".", "a", "e")  # characters that few tokens hold beside others


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts, with the special tokens that begin a text, not those that end it.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    prompts : sequence of str
        An empty one may still have special tokens.
    """
    if not len(prompts):
        return []
    ids = tokenizer(list(prompts))["input_ids"]
    # A tokenizer that ends every text would have the model begin another one.
    end = tokenizer.eos_token_id
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    if end is None or tokenizer("a")["input_ids"][-1:] != [end] or bare[-1:] == [end]:
        return ids
    return [of_prompt[:-1] if of_prompt[-1:] == [end] else of_prompt for of_prompt in ids]


def continuation_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that continue others: no special tokens, no space that is not theirs."""
    if not len(texts):
        return []
    texts = list(texts)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])
    if not str(first[:1]).strip("['").startswith(WRITTEN_SPACE):
        return ids
    # Behind another character of the same text no space is written.
    waiting = list(range(len(texts)))
    for anchor in ANCHORS:
        before = tokenizer(anchor, add_special_tokens=False)["input_ids"]
        if not waiting or tokenizer.unk_token_id in before:
            continue
        joined = tokenizer([anchor + texts[row] for row in waiting], add_special_tokens=False)
        found = dict(zip(waiting, joined["input_ids"], strict=True))
        waiting = []
        for row, whole in found.items():
            if whole[: len(before)] == before:
                ids[row] = whole[len(before) :]
            else:  # a token reaches over both
                waiting.append(row)
    return ids


def pair_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], texts: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompts and of the texts that continue them, as generation would have them.

    A text without a prompt stands at the beginning, and is read as such.
    """
    first = [i for i, prompt in enumerate(prompts) if not prompt]
    after = continuation_ids(tokenizer, texts)
    if first:
        alone = tokenizer([texts[i] for i in first], add_special_tokens=False)["input_ids"]
        for i, ids in zip(first, alone, strict=True):
            after[i] = ids
    return prompt_ids(tokenizer, prompts), after


def continuation_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    continuations: Iterable[Sequence[int]],
) -> list[str]:
    """Texts of token ids that continue a prompt, so that prompt + text is what was written.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    prompt : sequence of int
        Token ids of the prompt.
    continuations : iterable of sequences of int
        Token ids of what follows, special tokens among them or not; they are left out.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(list(prompt), **options)
    follows = [list(ids) for ids in continuations]
    wholes = tokenizer.batch_decode([[*prompt, *ids] for ids in follows], **options)
    alone = tokenizer.batch_decode(follows, **options)
    return [
        whole[len(before) :] if whole.startswith(before) else text
        for whole, text in zip(wholes, alone, strict=True)
    ]


def continuations(
    tokenizer: PreTrainedTokenizerBase, prompts: torch.Tensor, sequences: torch.Tensor
) -> list[str]:
    """Texts that `generate` has written behind its prompts.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    prompts : torch.Tensor, shape [batch, length]
        Token ids, padded on the left.
    sequences : torch.Tensor, shape [batch * n, length + new]
        What `generate` returned: n sequences of every prompt, one after the other.

    Returns
    -------
    list of str, length batch * n
    """
    n, length = len(sequences) // len(prompts), prompts.shape[1]
    return [
        text
        for row, prompt in enumerate(prompts.tolist())
        for text in continuation_texts(
            tokenizer, prompt, sequences[row * n : (row + 1) * n, length:].tolist()
        )
    ]


def left_padded(
    tokenizer: PreTrainedTokenizerBase, sequences: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [n, length] of sequences that end together, and which of them are no padding."""
    rows = [torch.tensor(ids) for ids in sequences]
    padding = {"batch_first": True, "padding_side": "left"}
    ids = pad_sequence(rows, padding_value=tokenizer.pad_token_id or 0, **padding)
    return ids, pad_sequence([torch.ones_like(row) for row in rows], **padding)


def too_long(
    model: PreTrainedModel,
    length: int,
    further: int = 0,
    what: str = "text",
    limit: float | None = None,
) -> str | None:
    """Say that so many tokens and so many further ones exceed a model's context, if they do.

    The context is looked up, unless `limit` says it.
    """
    limit = context_length(language_model(model)) if limit is None else limit
    if length + further <= limit:
        return None
    more = f" and {further} new ones exceed" if further else ", which exceed"
    return (
        f"has {length} tokens{more} the context of {model.name_or_path} ({limit:g}): shorten the "
        f"{what}, or take a model with a longer context"
    )


def readable(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[str],
    texts: Iterable[str],
    *,
    empty: bool = False,
) -> tuple[dict[int, tuple[list[int], list[int]]], dict[int, str]]:
    """Token ids of every pair of prompt and text that a model can read, and why it cannot others.

    Parameters
    ----------
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    prompts, texts : iterables of str, length n
    empty : bool
        A text may have no tokens.

    Returns
    -------
    ids : dict from the row to the token ids of prompt and text
    faults : dict from the row to what is wrong with it
    """
    prompts, texts = as_list(prompts, "prompts"), as_list(texts, "texts")
    if len(prompts) != len(texts):
        raise ValueError(f"expected as many texts as prompts, got {len(texts)} and {len(prompts)}")
    faults: dict[int, str] = {}
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        if fault := text_fault(prompt, empty=True):
            faults[row] = f"prompt {fault}"
        elif fault := text_fault(text, empty=empty):
            faults[row] = fault
    limit = context_length(language_model(model))
    good = [row for row in range(len(texts)) if row not in faults]
    pairs = pair_ids(tokenizer, [prompts[row] for row in good], [texts[row] for row in good])
    ids: dict[int, tuple[list[int], list[int]]] = {}
    for row, before, after in zip(good, *pairs, strict=True):
        fault = too_long(model, len(before) + len(after), limit=limit)
        if not after and not empty:
            fault = "is empty"
        if fault:
            faults[row] = fault
        else:
            ids[row] = before, after
    return ids, dict(sorted(faults.items()))


def first_fault(faults: Mapping[int, str], what: str = "text") -> ValueError:
    """Make the error of the first thing that cannot be read."""
    row = min(faults)
    return ValueError(f"{what} {row} {faults[row]}")
