"""Likelihood of texts under a model of one's choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.checks import as_list, check_count
from sasa_lib.checks import set_aside as warn_of
from sasa_lib.engine.models import body, head, is_own_head, language_model, reading
from sasa_lib.engine.tokens import first_fault, readable


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
    order = sorted(
        (i for i in range(len(texts)) if tokens[i] > 0), key=lambda i: -len(before[i]) - tokens[i]
    )
    own_head = not order or _has_own_head(model, before[order[0]] + after[order[0]])
    with tqdm(total=len(order), desc="perplexity", unit="text", disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            pairs = [(before[i], after[i]) for i in rows]
            # Apple's GPUs have no float64.
            nll[rows] = _of_batch(model, pairs, own_head).cpu().double().numpy()
            bar.update(len(rows))
    if not np.isfinite(nll[good]).all():
        raise ValueError(
            f"the logits of {model.name_or_path} are not finite for some text: load it with "
            "dtype='float32' or 'bfloat16'; float16 overflows easily"
        )
    return nll, tokens


def _of_batch(
    model: PreTrainedModel, pairs: Sequence[tuple[list[int], list[int]]], own_head: bool
) -> torch.Tensor:
    """Negative log-likelihoods [batch] of token ids, given those before."""
    sequences = [torch.tensor([*before, *after]) for before, after in pairs]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)  # [batch, length]
    lengths = torch.tensor([len(s) for s in sequences])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    counted = mask.clone()
    for row, (before, _) in enumerate(pairs):
        counted[row, : max(len(before), 1)] = False
    ids, mask, counted = (t.to(model.device) for t in (ids, mask, counted))
    # Only the counted positions meet the LM head, the widest matrix of a small model.
    row_of, column = counted.nonzero(as_tuple=True)
    if own_head:
        hidden = body(model)(**reading(body(model), ids, mask.long())).last_hidden_state
        # A spread model's are on its last device.
        places = row_of.to(hidden.device), (column - 1).to(hidden.device)
        logits = head(model, hidden[places]).float().to(ids.device)
    else:
        logits = model(**reading(model, ids, mask.long())).logits[row_of, column - 1].float()
    losses = torch.nn.functional.cross_entropy(logits, ids[row_of, column], reduction="none")
    return torch.zeros(len(pairs), device=losses.device).index_add_(0, row_of, losses)


def _has_own_head(model: PreTrainedModel, tokens: list[int]) -> bool:
    ids = torch.tensor([tokens], device=model.device)
    mask = torch.ones_like(ids)
    hidden = body(model)(**reading(body(model), ids, mask)).last_hidden_state
    return is_own_head(model, hidden, model(**reading(model, ids, mask)).logits)
