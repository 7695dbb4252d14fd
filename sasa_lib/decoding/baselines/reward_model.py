"""Reward models for RAD: trained on prefixes of annotated texts."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from sasa_lib.checks import as_list, check_count, check_number, to_json
from sasa_lib.engine.identity import depends_on, key
from sasa_lib.engine.models import language_model
from sasa_lib.engine.storage import atomic_file
from sasa_lib.subspace.embeddings import token_states, tokenised
from sasa_lib.subspace.probes import check_states, probe_states
from sasa_lib.texts.corpora import fingerprint, labelled

TAIL = 32  # tokens of a text in which a listed word may have begun


@dataclass
class RewardModel:
    """A unidirectional reward model: a causal LM and a linear head on its last hidden state.

    reward(text) = clip(weight . h + bias, 0, 1), the predicted 1 - toxicity of a text, or of what
    a text will become. Make one with `train_reward`, `from_classifier` or `load`.

    Attributes
    ----------
    model, tokenizer
        The language model that reads the text.
    weight : numpy.ndarray of float32, shape [hidden_size]
    bias : float
    metadata : dict
        How it was trained: parameters, seconds, error on held-out texts.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weight: np.ndarray
    bias: float
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_classifier(cls, name: str, *, label: int = 0, toxic: bool = True) -> RewardModel:
        """Load a published reward model: a causal sequence classifier with a linear head.

        Parameters
        ----------
        name : str
            Hub id or folder, such as a copy of the GPT-2 reward model of Deng and Raffel.
        label : int
            Which of its outputs to use; theirs has toxicity first.
        toxic : bool
            The output is a toxicity (the reward is 1 - output) rather than a reward.
        """
        try:
            model = AutoModelForSequenceClassification.from_pretrained(name).eval()
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot load reward model {name!r}: {error}") from error
        head = getattr(model, "score", None)
        if not isinstance(head, torch.nn.Linear) or not 0 <= label < head.out_features:
            raise ValueError(
                f"{name!r} has no linear head 'score' with an output {label}: it is not a causal "
                "sequence classifier such as GPT2ForSequenceClassification"
            )
        weight = head.weight[label].detach().float().numpy()
        bias = 0.0 if head.bias is None else float(head.bias[label])
        sign = -1.0 if toxic else 1.0
        facts = {"from": name} | getattr(model.config, "reward_training", {})
        return cls(model, tokenizer, sign * weight, sign * bias + float(toxic), facts)

    def describe(self) -> dict[str, object]:
        """Everything that a reward depends on, and nothing of how it was trained."""
        return {
            "model": self.model,
            "tokenizer": self.tokenizer,
            "weight": self.weight,
            "bias": self.bias,
        }

    def rewards(self, texts: Sequence[str]) -> np.ndarray:
        """Reward of whole texts, float64 [n] in [0, 1]."""
        states = token_states(self.model, self.tokenizer, texts)
        last = {row: hidden[-1] for row, hidden in states}
        return self.of(torch.stack([last[row] for row in range(len(texts))])).double().numpy()

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        """Reward of final hidden states [..., hidden_size]."""
        weight = torch.from_numpy(self.weight).to(hidden.device)
        return (hidden.float() @ weight + self.bias).clamp(0, 1)

    def save(self, path: str | Path) -> None:
        """Write the head as safetensors; the language model is not part of it."""
        facts = {"bias": self.bias, "metadata": self.metadata, "dtype": str(self.model.dtype)}
        tensors = {"weight": self.weight, "states": probe_states(self.model, -1)}
        with atomic_file(Path(path)) as temporary:
            save_file(tensors, temporary, metadata={"reward": to_json(facts)})

    @classmethod
    def load(
        cls, path: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> RewardModel:
        """Read a head that `save` wrote, on to the language model that it was trained on."""
        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["reward"])
                weight, states = file.get_tensor("weight"), file.get_tensor("states")
            bias, metadata, dtype = (facts[name] for name in ("bias", "metadata", "dtype"))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a saved reward head ({error})") from error
        if unknown := sorted(set(facts) - {"bias", "metadata", "dtype"}):
            raise ValueError(
                f"{path} was saved by a later version of sasa_lib, with {unknown[0]!r}: install it"
            )
        trained_on = metadata.get("model", "another model")
        check_states(model, -1, states, dtype, f"this reward head was trained on {trained_on!r}")
        return cls(model, tokenizer, weight, bias, metadata)


def train_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset,
    *,
    attribute: str = "toxicity",
    alphas: Sequence[float] = (1.0, 10.0, 100.0, 1000.0, 10000.0),
    held_out: float = 0.2,
    seed: int = 0,
    folder: str | Path | None = None,
) -> RewardModel:
    """Train a reward head on a frozen language model, on what a boundary is fitted on.

    Minimised is the cumulative squared error of Deng and Raffel 2023, section 2: every prefix of
    a text predicts the reward of the whole, prefix t of l with weight t / (1 + ... + l). For a
    linear head the minimum is that of a weighted ridge regression. The penalty is the one with
    the smallest error on held-out texts; then all texts are used.

    Parameters
    ----------
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    corpus : datasets.Dataset
        In the schema of `sasa_lib.texts.corpora`; rows without the attribute are left out.
    attribute : str
        The reward is 1 - attribute.
    alphas : sequence of float
        Penalties to choose from.
    held_out : float
        Share of the texts that chooses, in (0, 1).
    seed : int
    folder : str or Path, optional
        Keep the head here: the next training of the same model on the same texts reads it.

    Returns
    -------
    RewardModel
        Its metadata holds parameters, seconds, alpha and the held-out root mean squared error.
    """
    model = language_model(model)
    corpus, _ = labelled(corpus, attribute)
    held_out = check_number("held_out", held_out, above=0, most=0.99)
    seed = check_count("seed", seed, 0)
    if folder is not None:
        facts = depends_on(
            "reward", model=model, tokenizer=tokenizer, held_out=held_out, seed=seed,
            texts=fingerprint(corpus, attribute), alphas=as_list(alphas, "penalties"),
        )  # fmt: skip
        kept = Path(folder) / f"reward-{key(facts)}.safetensors"
        if kept.exists():
            return RewardModel.load(kept, model, tokenizer)
    start = time.perf_counter()
    rewards = 1 - np.array(corpus[attribute], dtype=np.float64)
    order = np.random.default_rng(seed).permutation(len(corpus))
    held = set(order[: int(held_out * len(corpus))].tolist())
    # Sums alone are kept, not states: the paper's two million comments would be 25 GB.
    moments = {True: 0.0, False: 0.0}
    for row, states in token_states(model, tokenizer, corpus):
        x = states.double().numpy()
        prefix = np.arange(1, len(x) + 1)
        table = np.column_stack([x, np.ones(len(x)), np.full(len(x), rewards[row])])
        moments[row in held] += (table * (prefix / prefix.sum())[:, None]).T @ table
    errors = {}
    for alpha in alphas:
        head = np.append(_ridge(moments[False], alpha), -1.0)
        squared = head @ moments[True] @ head / moments[True][-2, -2]
        errors[alpha] = float(np.sqrt(max(squared, 0.0)))
    best = min(errors, key=errors.get)
    *weights, intercept = _ridge(moments[True] + moments[False], best)
    facts = {
        "model": model.name_or_path,
        "trained_parameters": len(weights) + 1,
        "texts": len(corpus),
        "alpha": best,
        "held_out_rmse": errors[best],
        "seconds": time.perf_counter() - start,
    }
    reward = RewardModel(
        model, tokenizer, np.array(weights, dtype=np.float32), float(intercept), facts
    )
    if folder is not None:
        reward.save(kept)
    return reward


def _ridge(moments: np.ndarray, alpha: float) -> np.ndarray:
    """Weights and intercept of a weighted ridge regression, [hidden_size + 1].

    `moments` are sums of w z z' over examples z = (x, 1, y) with weights w.
    """
    total, means = moments[-2, -2], moments[-2] / moments[-2, -2]
    centred = moments - total * np.outer(means, means)
    penalty = alpha * np.eye(len(moments) - 2)
    weights = np.linalg.solve(centred[:-2, :-2] + penalty, centred[:-2, -1])
    return np.append(weights, means[-1] - means[:-2] @ weights)


def fine_tune_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Dataset,
    *,
    folder: str | Path,
    attribute: str = "toxicity",
    epochs: int = 5,
    batch_size: int = 100,
    learning_rate: float = 1e-5,
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool = True,
) -> RewardModel:
    """Fine-tune a copy of a language model, all of it, into a reward model; wants a GPU.

    Minimised is what `train_reward` minimises, by AdamW with the defaults of Deng and Raffel 2023
    (section 4: five epochs, batches of 100, 1e-5, weight decay 0.01). Training goes on from the
    last whole epoch where it was interrupted. `RewardModel.from_classifier(folder, toxic=False)`
    loads the result.

    Parameters
    ----------
    model, tokenizer
        The language model to start from; it stays as it is. RAD is fastest with the tokenizer of
        the model that it steers.
    corpus : datasets.Dataset
        In the schema of `sasa_lib.texts.corpora`; rows without the attribute are left out.
    folder : str or Path
        For the checkpoints, under a key of all that shapes them, and the result.
    attribute : str
        The reward is 1 - attribute.
    epochs, batch_size, learning_rate
        Of the training.
    held_out : float
        Share of the texts that is not trained on, in (0, 1), for `held_out_rmse`.
    seed : int
    progress : bool

    Returns
    -------
    RewardModel
        Its metadata holds parameters, texts, seconds (of this call) and the held-out root mean
        squared error.
    """
    corpus, _ = labelled(corpus, attribute)
    held_out = check_number("held_out", held_out, above=0, most=0.99)
    epochs, batch_size = check_count("epochs", epochs), check_count("batch_size", batch_size)
    order = np.random.default_rng(seed).permutation(len(corpus))
    held, kept = np.split(order, [int(held_out * len(corpus))])
    start = time.perf_counter()
    torch.manual_seed(seed)
    classifier = _untrained(model, str(folder))
    facts = depends_on(
        "reward", trained="whole", model=model, corpus=fingerprint(corpus, attribute),
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, held_out=held_out,
        seed=seed,
    )  # fmt: skip
    checkpoints = Path(folder) / f"checkpoints-{key(facts)}"
    trainer = _RewardTrainer(
        classifier,
        TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=0.01,
            seed=seed,
            use_cpu=model.device.type == "cpu",
            bf16=model.device.type == "cuda",
            save_strategy="epoch",
            save_total_limit=1,
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=not progress,
        ),
        train_dataset=_prefixes(classifier, tokenizer, corpus.select(kept), attribute),
        data_collator=_padded_prefixes,
    )
    trainer.train(resume_from_checkpoint=any(checkpoints.glob("checkpoint-*")))
    classifier.eval()
    classifier.config.reward_training = {
        "model": model.name_or_path,
        "trained_parameters": classifier.num_parameters(),
        "texts": len(kept),
        "seconds": time.perf_counter() - start,
    }
    classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reward = RewardModel.from_classifier(str(folder), toxic=False)
    reward.model.to(model.device)
    reward.metadata["held_out_rmse"] = _prefix_error(reward, corpus.select(held), attribute)
    return reward


def _untrained(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """A language model's body with one new output."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    classifier = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    classifier.base_model.load_state_dict(model.base_model.state_dict())
    classifier.name_or_path = name
    return classifier


def _prefix_error(reward: RewardModel, corpus: Dataset, attribute: str) -> float:
    """Root mean squared error, every text counting once and its prefixes as in training."""
    targets = 1 - np.array(corpus[attribute], dtype=np.float64)
    squared = 0.0
    for row, states in token_states(reward.model, reward.tokenizer, corpus):
        error = reward.of(states).double().numpy() - targets[row]
        squared += np.average(error**2, weights=np.arange(1, len(states) + 1))
    return float(np.sqrt(squared / len(corpus)))


def _prefixes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Dataset, attribute: str
) -> list[dict[str, torch.Tensor]]:
    """Tokens of every text, its reward, and the weight of each of its prefixes."""
    rows = []
    for text, value in zip(tokenised(model, tokenizer, corpus), corpus[attribute], strict=True):
        weight = torch.zeros(len(text.tokens))
        prefix = torch.arange(1.0, len(text.tokens) - text.start + 1)
        weight[text.start :] = prefix / prefix.sum()
        ids = torch.tensor(text.tokens)
        rows.append({"input_ids": ids, "weight": weight, "reward": torch.tensor(1 - value)})
    return rows


def _padded_prefixes(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    batch = {
        name: pad_sequence([row[name] for row in rows], batch_first=True)
        for name in ("input_ids", "weight")
    }
    return batch | {"reward": torch.stack([row["reward"] for row in rows]).float()}


class _RewardTrainer(Trainer):
    def compute_loss(
        self, model: PreTrainedModel, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        # What pads on the right is not attended to by a causal model, and has no weight.
        hidden = model.base_model(inputs["input_ids"]).last_hidden_state
        error = model.score(hidden)[..., 0] - inputs["reward"][:, None]
        return (inputs["weight"] * error**2).sum() / len(error)
