"""A tiny random language model with a tokenizer of whole words, made in a moment."""

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sasa_lib as sl

WORDS = [
    "he", "she", "it", "the", "a", "cat", "dog", "bird", "tree", "house",
    "sees", "eats", "likes", "leaves", "finds", "and", "or", "not",
]  # fmt: skip


def tiny_lm():
    special = ["<unk>", "<pad>", "</s>"]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        # Logits far enough apart for what is drawn not to hang on the last digits.
        torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    model.name_or_path = "tiny"
    return model, tokenizer


def tiny_boundary():
    normal = np.random.default_rng(0).normal(size=32).astype(np.float32)
    normal /= np.linalg.norm(normal)
    boundary = sl.Boundary(normal, np.zeros(32, np.float32), 1.0, 1.0, 1, "mean", "tiny")
    return boundary.of(tiny_lm()[0])  # known by its hidden states, as a fitted one is
