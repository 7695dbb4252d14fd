"""Word filtering: no listed word can be completed."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.checks import check_seed, check_texts
from sasa_lib.decoding.baselines.reward_model import TAIL
from sasa_lib.decoding.baselines.reweighting import Reweighting
from sasa_lib.decoding.method import Decoder
from sasa_lib.texts.words import word_list


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
        self.seed = check_seed(seed)
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
