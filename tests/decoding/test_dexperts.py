"""DExperts: its logits by hand, and experts that have learnt what they were trained on."""

import copy

import pytest
import torch
from datasets import Dataset
from tiny_lm import tiny_lm

from sasa_lib.decoding import PlainSampling
from sasa_lib.decoding.baselines import DExperts, train_expert
from sasa_lib.evaluation.likelihood import negative_log_likelihoods

PROMPTS = ["the cat sees", "she likes the dog and"]


@pytest.fixture
def tiny():
    return tiny_lm()


def others(model):
    found = []
    for seed in (1, 2):
        other = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for weight in other.parameters():
                weight.data += 0.05 * torch.randn_like(weight)
        other.name_or_path = f"other-{seed}"
        found.append(other)
    return found


@pytest.mark.parametrize("anti_only", [False, True])
def test_logits_are_those_of_the_paper_behind_the_truncation(tiny, anti_only):
    model, tokenizer = tiny
    expert, antiexpert = others(model)
    tokenizer.padding_side = "left"
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    method = DExperts(None if anti_only else expert, antiexpert, 1.5)
    processor = method.processor(model, mask, 20)
    written = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    for _ in range(4):
        expected, truncated = [], []
        for row in written:  # each by itself, as a whole
            with torch.no_grad():
                base, plus, minus = (
                    one(torch.tensor([row])).logits[0, -1] for one in (model, expert, antiexpert)
                )
            gone = base < base.topk(5).values[-1]
            truncated.append(base.masked_fill(gone, -torch.inf))
            added = 1.5 * ((base if anti_only else plus) - minus)
            expected.append((base + added).masked_fill(gone, -torch.inf))
        found = processor(ids, torch.stack(truncated))
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=0)
        tokens = found.argmax(-1)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        written = [[*row, int(token)] for row, token in zip(written, tokens, strict=True)]


def test_without_strength_it_is_plain_sampling(tiny):
    model, tokenizer = tiny
    expert, antiexpert = others(model)
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    options = dict(do_sample=True, top_k=6, max_new_tokens=5)
    plain = model.generate(ids, custom_generate=PlainSampling(seed=4), **options)
    method = DExperts(expert, antiexpert, 0.0, seed=4)
    assert model.generate(ids, custom_generate=method, **options).tolist() == plain.tolist()


def test_another_vocabulary_is_refused(tiny):
    model, tokenizer = tiny
    other = copy.deepcopy(model)
    other.resize_token_embeddings(30)
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    with pytest.raises(ValueError, match="experts need the vocabulary of the steered model"):
        model.generate(ids, custom_generate=DExperts(None, other, 1.0), max_new_tokens=2)


def test_an_expert_has_learnt_its_texts_and_is_read_again(tiny, tmp_path):
    model, tokenizer = tiny
    texts = ["the cat sees the dog", "the cat sees a bird", "she likes the house"] * 8
    corpus = Dataset.from_dict({"prompt": [""] * 24, "response": texts})
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    options = dict(folder=tmp_path, epochs=20, batch_size=8, learning_rate=1e-2, progress=False)
    expert = train_expert(model, tokenizer, corpus, **options)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert expert.config.expert_training["texts"] == 24

    def loss(one):
        options = {"progress": False}
        nll, tokens = negative_log_likelihoods(one, tokenizer, [""] * 3, texts[:3], **options)
        return nll.sum() / tokens.sum()

    assert loss(expert) < 0.7 * loss(model)
    again = train_expert(model, tokenizer, corpus, **options)
    assert again.config.expert_training["seconds"] < expert.config.expert_training["seconds"]
    assert loss(again) == pytest.approx(loss(expert), abs=1e-4)
    # Other texts are another expert, whatever the folder.
    others = Dataset.from_dict({"prompt": [""] * 24, "response": ["a bird finds it"] * 24})
    other = train_expert(model, tokenizer, others, **options)
    assert other.name_or_path != expert.name_or_path and loss(other) > loss(expert)
