"""DExperts: two further models say what is wanted and what is not (Liu et al. 2021)."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from sasa_lib.checks import check_count, check_number, check_seed
from sasa_lib.decoding.baselines.reader import Reader
from sasa_lib.decoding.baselines.reweighting import Reweighting
from sasa_lib.engine.identity import depends_on, key
from sasa_lib.engine.models import language_model, text_config
from sasa_lib.engine.tokens import too_long
from sasa_lib.subspace.embeddings import tokenised
from sasa_lib.texts.assets import made_once

IGNORED = -100  # label of a token that is no part of the loss


class DExperts(Reweighting):
    """New logit(x) = logit(x) + alpha * (expert's logit(x) - anti-expert's logit(x)).

    Over the candidates that survive top-k, top-p and every other processor (Liu et al. 2021,
    arXiv 2105.03023, equation 2; the truncation comes first there, too). Either is a language
    model with the vocabulary of the steered one, such as `train_expert` makes, and reads one
    token a step.

    Parameters
    ----------
    expert : PreTrainedModel, optional
        Trained on nontoxic texts. None: the steered model itself, "anti-only" in the paper.
    antiexpert : PreTrainedModel
        Trained on toxic texts.
    alpha : float
        Strength, at least 0; 2.0 in the paper.
    seed : int, optional
        As in `SASA`.
    """

    first = False
    sees = False

    def __init__(
        self,
        expert: PreTrainedModel | None,
        antiexpert: PreTrainedModel,
        alpha: float,
        *,
        seed: int | None = None,
    ) -> None:
        self.expert = expert
        self.antiexpert = antiexpert
        self.alpha = check_number("alpha", alpha, least=0)
        self.seed = check_seed(seed)

    def processor(
        self, model: PreTrainedModel, mask: torch.Tensor, max_length: int
    ) -> LogitsProcessor:
        """Make the processor of one call."""
        size = text_config(model).vocab_size
        for other in filter(None, (self.expert, self.antiexpert)):
            if text_config(other).vocab_size != size:
                raise ValueError(
                    f"{other.name_or_path} has {text_config(other).vocab_size} tokens, "
                    f"{model.name_or_path} {size}: experts need the vocabulary of the steered model"
                )
            if fault := too_long(other, max_length, what="prompts"):
                raise ValueError(f"the longest text that an expert would read {fault}")
        return _Experts(self, mask)


class _Experts(LogitsProcessor):
    def __init__(self, method: DExperts, mask: torch.Tensor) -> None:
        self.alpha = method.alpha
        self.anti = Reader(language_model(method.antiexpert), mask)
        expert = method.expert
        self.expert = None if expert is None else Reader(language_model(expert), mask)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        def said(by: Reader) -> torch.Tensor:
            return by.next(input_ids[:, by.known :]).to(scores.device, torch.float32)

        wanted = scores if self.expert is None else said(self.expert)
        added = self.alpha * (wanted - said(self.anti))
        return torch.where(scores == float("-inf"), scores, scores + added)


def train_expert(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset,
    *,
    folder: str | Path,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 2e-4,
    rank: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> PreTrainedModel:
    """Train a copy of a language model further on texts of one kind, by LoRA adapters.

    The loss is that of the response's tokens, behind its prompt. Liu et al. 2021 fine-tune all
    weights, three epochs; adapters need a hundredth of the memory. They are merged into the copy.

    Parameters
    ----------
    model, tokenizer
        The model to start from, with which `DExperts` shares its vocabulary; it stays as it is.
    corpus : datasets.Dataset
        Texts of one kind only, in the schema of `sasa_lib.texts.corpora`.
    folder : str or Path
        The adapter is kept here: the next training of the same model on the same texts reads it.
    epochs, batch_size, learning_rate
        Of the training, by AdamW.
    rank : int
        Of the adapters, on all linear layers of the blocks.
    seed : int
    progress : bool

    Returns
    -------
    PreTrainedModel
        Its `config.expert_training` holds texts, trained parameters and seconds.

    Raises
    ------
    ImportError
        peft is not installed.
    """
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError as error:
        raise ImportError(
            "training an expert needs peft: python -m pip install 'sasa-lib[baselines]'"
        ) from error

    base = language_model(model)
    options = {
        "num_train_epochs": check_count("epochs", epochs),
        "per_device_train_batch_size": check_count("batch_size", batch_size),
        "learning_rate": check_number("learning_rate", learning_rate, above=0),
        "seed": check_count("seed", seed, 0),
    }
    rank = check_count("rank", rank)
    rows = _examples(base, tokenizer, corpus)
    facts = depends_on(
        "expert", model=base, rank=rank, options=options,
        rows=key([[row[name].tolist() for name in ("input_ids", "labels")] for row in rows], 64),
    )  # fmt: skip
    kept = Path(folder) / f"expert-{key(facts)}"
    start = time.perf_counter()
    with made_once(kept) as new:
        if new:
            torch.manual_seed(options["seed"])
            adapted = get_peft_model(
                copy.deepcopy(base).float(),
                LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"),
            )
            Trainer(
                adapted,
                TrainingArguments(
                    output_dir=str(new),
                    use_cpu=model.device.type == "cpu",
                    bf16=model.device.type == "cuda",
                    save_strategy="no",
                    report_to=[],
                    disable_tqdm=not progress,
                    **options,
                ),
                train_dataset=rows,
                data_collator=_padded,
            ).train()
            adapted.save_pretrained(new)
    trained = PeftModel.from_pretrained(copy.deepcopy(base).float(), kept)
    facts = {
        "texts": len(corpus),
        "trained_parameters": sum(
            p.numel() for name, p in trained.named_parameters() if "lora_" in name
        ),
        "seconds": time.perf_counter() - start,
    }
    expert = trained.merge_and_unload().to(model.device, model.dtype).eval()
    expert.config.expert_training = facts
    expert.name_or_path = str(kept)
    return expert


def _examples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Dataset
) -> list[dict[str, torch.Tensor]]:
    rows = []
    for text in tokenised(model, tokenizer, corpus):
        ids = torch.tensor(text.tokens)
        labels = ids.clone()
        labels[: text.start] = IGNORED
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def _padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    def pad(name: str, value: int) -> torch.Tensor:
        return pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

    ids = pad("input_ids", 0)
    mask = pad_sequence([torch.ones_like(row["input_ids"]) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": pad("labels", IGNORED)}
