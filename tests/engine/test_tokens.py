"""Texts and token ids where a text continues another, against tokenising and decoding the whole."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_lm import tiny_lm
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from sasa_lib.engine.tokens import continuation_ids, continuation_texts, pair_ids, prompt_ids

PIECES = {
    piece: i
    for i, piece in enumerate(
        [
            "<unk>",
            "<s>",
            "</s>",
            "\u2581",
            *"abcdefgh\n",
            "\u2581\u2581",
            "\u2581a",
            "cd",
            "\u2581ab",
        ]
    )
}
MERGES = [("\u2581", "\u2581"), ("\u2581", "a"), ("c", "d"), ("\u2581a", "b")]
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def as_on_the_hub() -> PreTrainedTokenizerFast:
    """The tokenizer.json of Llama 2, Mistral 0.1 and TinyLlama, with fewer pieces."""
    tokenizer = Tokenizer(BPE(PIECES, MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


SENTENCEPIECE = {
    "always": LlamaTokenizer(vocab=PIECES, merges=MERGES, legacy=True),
    "first": LlamaTokenizer(vocab=PIECES, merges=MERGES, legacy=False),
    "prepended": as_on_the_hub(),
}
repeatable = settings(max_examples=100, derandomize=True, deadline=None)
few_letters = st.text("abcd \n", max_size=6)
any_text = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.sampled_from(
        [" the cat", "the", "  two", "\n\n", " \u00e9t\u00e9", "\U0001f600", " '", "s"]
    ),
)


def check(tokenizer, prompt, text):
    before, whole = prompt_ids(tokenizer, [prompt, prompt + text])
    (after,) = continuation_ids(tokenizer, [text])
    assume(tokenizer.decode(tokenizer("a" + text)["input_ids"]) == "a" + text)  # it knows all bytes
    assert continuation_texts(tokenizer, before, [after]) == [text]
    assume(whole[: len(before)] == before)  # or a token reaches over where the prompt ends
    assert after == whole[len(before) :]


@pytest.mark.parametrize("name", SENTENCEPIECE)
@repeatable
@given(prompt=few_letters.filter(bool), text=few_letters)
def test_sentencepiece_texts_and_ids_are_those_behind_a_prompt(name, prompt, text):
    """After transformers #28776 and #27385: spaces that no one wrote, or that were lost."""
    check(SENTENCEPIECE[name], prompt, text)


@pytest.mark.parametrize("name", SENTENCEPIECE)
@pytest.mark.parametrize("text", ["ab", " ab", "  ab", " ", "b", "\nab", ""])
def test_a_sentencepiece_text_has_its_own_spaces_and_no_more(name, text):
    tokenizer = SENTENCEPIECE[name]
    (ids,) = continuation_ids(tokenizer, [text])
    pieces = "".join(tokenizer.convert_ids_to_tokens(ids))
    assert pieces == text.replace(" ", "\u2581")


@pytest.fixture(scope="module")
def byte_level(smollm2):
    return smollm2[1]


@repeatable
@given(prompt=any_text.filter(bool), text=any_text)
def test_byte_level_texts_and_ids_are_those_behind_a_prompt(byte_level, prompt, text):
    check(byte_level, prompt, text)


@pytest.mark.parametrize("name", [*SENTENCEPIECE, "byte-level"])
def test_a_text_may_be_cut_anywhere_between_tokens(name, byte_level):
    tokenizer = SENTENCEPIECE.get(name, byte_level)
    written = "ab cd  a\nb dc abcd"
    (ids,) = prompt_ids(tokenizer, [written])
    for cut in range(1, len(ids)):
        before = tokenizer.decode(ids[:cut])
        texts = continuation_texts(tokenizer, ids[:cut], [ids[cut:], ids[cut:], []])
        assert [before + text for text in texts] == [written, written, before]


def test_special_tokens_and_what_follows_them_are_no_text():
    for tokenizer in SENTENCEPIECE.values():
        before, (after,) = prompt_ids(tokenizer, ["ab"])[0], continuation_ids(tokenizer, [" cd"])
        end = tokenizer.eos_token_id
        assert continuation_texts(tokenizer, before, [[*after, end], [end], []]) == [" cd", "", ""]


def test_a_text_without_a_prompt_stands_at_the_beginning():
    for tokenizer in SENTENCEPIECE.values():
        (_, after) = pair_ids(tokenizer, ["", "c"], ["ab", "ab"])
        assert after[0] == tokenizer("ab", add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(after[0]) == ["\u2581ab"]
        assert tokenizer.convert_ids_to_tokens(after[1]) == ["a", "b"]


def test_an_end_that_the_tokenizer_writes_is_no_part_of_a_prompt():
    _, tokenizer = tiny_lm()
    bare = prompt_ids(tokenizer, ["the cat", "the cat </s>", ""])
    assert bare[1] == [*bare[0], tokenizer.eos_token_id]
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    ended = tokenizer(["the cat", "the cat </s>", ""])["input_ids"]
    assert ended == [[*ids, tokenizer.eos_token_id] for ids in bare]
    assert prompt_ids(tokenizer, ["the cat", "the cat </s>", ""]) == bare
    assert continuation_ids(tokenizer, ["the cat"]) == [bare[0]]
    assert prompt_ids(tokenizer, []) == continuation_ids(tokenizer, []) == []
