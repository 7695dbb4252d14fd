"""RAD: every candidate is scored by a reward model (Deng and Raffel 2023, arXiv 2310.09520)."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.checks import check_count, check_number, check_seed
from sasa_lib.decoding.baselines.reward_model import RewardModel
from sasa_lib.decoding.baselines.reweighting import Reweighting
from sasa_lib.decoding.prefix_cache import Phrases
from sasa_lib.decoding.repeated import obstacle
from sasa_lib.engine.models import text_config
from sasa_lib.engine.tokens import too_long
from sasa_lib.subspace.embeddings import hidden_states


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
        self.seed = check_seed(seed)
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
