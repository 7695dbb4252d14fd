"""Likelihood of texts under a model of one's choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from sasa_lib.checks import as_list, check_count
from sasa_lib.checks import set_aside as warn_of
from sasa_lib.decoding.repeated import obstacle
from sasa_lib.engine.models import body, head, is_own_head, language_model, reading, text_config
from sasa_lib.engine.tokens import first_fault, readable

POSITIONS = 128  # whose logits are computed at once
Pair = tuple[tuple[int, ...], Sequence[int]]  # token ids of a prompt and of a text behind it


@torch.inference_mode()
def negative_log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    texts: Sequence[str],
    *,
    batch_size: int = 16,
    set_aside: bool = False,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of texts given their prompts, under a model of one's choice.

    Parameters
    ----------
    model, tokenizer
        As returned by `sasa_lib.load_lm`; for evaluation another model than the generating one.
    prompts, texts : sequences of str, length n
        A text's likelihood is conditional on its prompt; the prompt's own is not counted.
    batch_size : int
    set_aside : bool
        Give texts that cannot be read NaN, with a warning. False: refuse them.
    progress : bool

    Returns
    -------
    nll : numpy.ndarray of float64, shape [n], nats
    tokens : numpy.ndarray of int, shape [n]
        Tokens of each text under this tokenizer; 0 for an empty text.
    """
    model, batch_size = language_model(model), check_count("batch_size", batch_size)
    texts, prompts = as_list(texts, "texts"), as_list(prompts, "prompts")
    ids, faults = readable(model, tokenizer, prompts, texts, empty=True)
    if faults and not set_aside:
        raise first_fault(faults)
    if faults:
        warn_of("texts", faults, len(texts))
    before, after = ([ids.get(row, ([], []))[i] for row in range(len(texts))] for i in (0, 1))
    nll = np.zeros(len(texts))
    nll[list(faults)] = np.nan
    tokens = np.array([len(of_text) for of_text in after], dtype=int)
    # Without anything before it, the first token of a text has no likelihood.
    tokens -= np.array([not b and bool(a) for b, a in zip(before, after, strict=True)], dtype=int)
    good = [row for row in range(len(texts)) if row not in faults]
    # A text without anything before it follows its first token.
    pairs = {
        row: (tuple(before[row] or after[row][:1]), after[row][not before[row] :])
        for row in np.flatnonzero(tokens > 0)
        if row not in faults
    }
    order = sorted(pairs, key=lambda row: (-len(pairs[row][0]), pairs[row][0], -tokens[row]))
    read = _reader(model, [pairs[row] for row in order[:batch_size]])
    with tqdm(total=len(order), desc="perplexity", unit="text", disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            # Apple's GPUs have no float64.
            nll[rows] = read([pairs[row] for row in rows]).cpu().double().numpy()
            bar.update(len(rows))
    if not np.isfinite(nll[good]).all():
        raise ValueError(
            f"the logits of {model.name_or_path} are not finite for some text: load it with "
            "dtype='float32' or 'bfloat16'; float16 overflows easily"
        )
    return nll, tokens


def _reader(model: PreTrainedModel, pairs: Sequence[Pair]) -> Callable:
    """Return the fastest way to read pairs that gives what reading each as a whole does."""
    whole = partial(_of_wholes, model, own_head=bool(pairs) and _has_own_head(model, pairs[0]))
    if not pairs or not whole.keywords["own_head"] or obstacle(model) is not None:
        return whole
    behind = partial(_behind_prompts, model)
    some = sorted(pairs, key=lambda pair: len(pair[0]))
    some = [some[0], *some[-2:]]  # prompts of several lengths, and texts behind the same one
    allowed = 1e-4 if model.dtype == torch.float32 else 3e-2
    try:
        same = torch.allclose(behind(some), whole(some), rtol=allowed, atol=allowed)
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        same = False  # whatever a model's code may raise at a cache
    return behind if same else whole


def _behind_prompts(model: PreTrainedModel, pairs: Sequence[Pair]) -> torch.Tensor:
    """Negative log-likelihoods [batch] of texts, each prompt read once for all texts behind it."""
    prompts = list(dict.fromkeys(before for before, _ in pairs))
    device = model.device
    row_of = torch.tensor([prompts.index(before) for before, _ in pairs], device=device)
    ids, mask = _padded(prompts, "left", device)  # [prompts, length]
    below, cache = body(model), DynamicCache(config=text_config(model))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = below(
        input_ids=ids, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True
    )
    hidden = output.last_hidden_state[row_of, -1:]  # [batch, 1, hidden_size]
    ids, seen = _padded([after for _, after in pairs], "right", device)  # [batch, tokens]
    if ids.shape[1] > 1:
        cache.batch_select_indices(row_of)
        start = mask.sum(-1)[row_of, None]
        output = below(
            input_ids=ids[:, :-1],
            attention_mask=torch.cat([mask[row_of], seen[:, :-1]], dim=1),
            position_ids=start + torch.arange(ids.shape[1] - 1, device=device),
            cache=cache,
            use_cache=True,
        )
        hidden = torch.cat([hidden, output.last_hidden_state], dim=1)
    return _summed(model, hidden[seen.bool()], ids[seen.bool()], seen)


def _of_wholes(model: PreTrainedModel, pairs: Sequence[Pair], *, own_head: bool) -> torch.Tensor:
    """Negative log-likelihoods [batch] of texts, each read with its prompt."""
    ids, mask = _padded([(*before, *after) for before, after in pairs], "right", model.device)
    counted = mask.bool()
    for row, (before, _) in enumerate(pairs):
        counted[row, : len(before)] = False
    if own_head:
        hidden = body(model)(**reading(body(model), ids, mask)).last_hidden_state
        found = hidden[:, :-1][counted[:, 1:].to(hidden.device)]
        return _summed(model, found, ids[counted], counted)
    logits = model(**reading(model, ids, mask)).logits[:, :-1][counted[:, 1:]]
    return _per_row(_losses(logits, ids[counted]), counted)


def _summed(
    model: PreTrainedModel, hidden: torch.Tensor, ids: torch.Tensor, counted: torch.Tensor
) -> torch.Tensor:
    """Sum the losses of tokens [n] after hidden states [n, hidden_size] over each row."""
    # The head is the widest matrix of a small model; its logits never lie there all at once.
    parts = zip(hidden.split(POSITIONS), ids.split(POSITIONS), strict=True)
    losses = [_losses(head(model, of_part), tokens) for of_part, tokens in parts]
    return _per_row(torch.cat(losses), counted)


def _losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    logits = logits.float().to(ids.device)  # a spread model's are on its last device
    return logits.logsumexp(-1) - logits.gather(-1, ids[:, None])[:, 0]


def _per_row(losses: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    row_of = counted.nonzero(as_tuple=True)[0]
    return torch.zeros(len(counted), device=losses.device).index_add_(0, row_of, losses)


def _padded(
    sequences: Sequence[Sequence[int]], side: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and their mask, each [batch, length]."""
    rows = [torch.tensor(sequence) for sequence in sequences]
    pad = partial(pad_sequence, batch_first=True, padding_side=side)
    return pad(rows).to(device), pad([torch.ones_like(row) for row in rows]).to(device)


def _has_own_head(model: PreTrainedModel, pair: Pair) -> bool:
    ids, mask = _padded([(*pair[0], *pair[1])], "right", model.device)
    hidden = body(model)(**reading(body(model), ids, mask)).last_hidden_state
    return is_own_head(model, hidden, model(**reading(model, ids, mask)).logits)
