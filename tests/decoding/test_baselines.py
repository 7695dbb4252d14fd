"""Word filtering, reward-augmented decoding and self-debiasing, against their definitions."""

import json
import re

import datasets
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import LogitsProcessorList, TopKLogitsWarper

from sasa_lib import SASA
from sasa_lib.decoding import PlainSampling
from sasa_lib.decoding.baselines import (
    RAD,
    RewardModel,
    SelfDebiasing,
    WordFilter,
    fine_tune_reward,
    reward_model,
    train_reward,
    word_list,
)
from tests.decoding.test_generate import zero_boundary
from tests.decoding.test_sasa import VOCABULARY, left_padded_prompts, random_boundary, tiny_model
from tests.tiny_lm import tiny_lm

WORDS = ["the", "a", "and", "one day", "time", "ing"]


class Characters:
    """The least that a tokenizer of the tiny models' vocabulary has to have."""

    def __init__(self, size=VOCABULARY):
        self.size = size

    def get_vocab(self):
        return {str(i): i for i in range(self.size)}

    eos_token_id = None

    def __call__(self, text, add_special_tokens=True):
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        return {"input_ids": [3 + ord(c) % 50 for c in text]}


def contains(text, words):
    """Listed words by a regular expression, which the filter does not use."""
    pattern = "|".join(map(re.escape, words))
    return re.findall(rf"(?<![^\W_])(?:{pattern})(?![^\W_])", text.casefold())


@pytest.mark.parametrize("on_top_of", [None, "sasa"])
def test_no_listed_word_comes_out_of_a_word_filter(smollm2, on_top_of):
    model, tokenizer = smollm2
    sasa = SASA(zero_boundary(model), beta=1.0) if on_top_of else None
    prompts = ["It was a long day for", "Once upon a time there was", "She said: ON"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    options = dict(do_sample=True, top_k=40, temperature=1.3, max_new_tokens=16)
    start = inputs["input_ids"].shape[1]

    def texts(method):
        output = model.generate(**inputs, custom_generate=method, num_return_sequences=4, **options)
        return tokenizer.batch_decode(output, skip_special_tokens=True), tokenizer.batch_decode(
            output[:, :start], skip_special_tokens=True
        )

    words = WordFilter(tokenizer, WORDS, then=sasa)
    for text, prompt in zip(*texts(words), strict=True):
        assert len(contains(text, WORDS)) == len(contains(prompt, WORDS)), text
    assert sum(len(contains(text, WORDS)) for text in texts(sasa)[0]) > 8


def test_a_filter_forbids_what_completes_a_word_and_nothing_else(smollm2):
    _, tokenizer = smollm2
    words = WordFilter(tokenizer, ["cat", "hot dog"])
    strings = [tokenizer.decode([i]) for i in range(len(tokenizer))]

    def forbidden(tail):
        return {strings[i] for i in words.forbidden(tail).tolist()}

    assert {" cat", " Cat", " CAT"} & set(strings) <= forbidden("i saw a")
    assert "cat" in forbidden("i saw a ") and "cat" not in forbidden("i saw a concatenated")
    assert "at" in forbidden("i saw a c") and "at" not in forbidden("i saw a bac")
    assert "atch" not in forbidden("i saw a c")
    assert " dog" in forbidden("a very hot") and " dog" not in forbidden("a very cold")
    assert " dogs" not in forbidden("a very hot")


def test_the_packaged_list_is_long_and_graded():
    assert len(word_list(["Severe"])) < len(word_list()) < len(word_list(["Mild", *GRADES]))
    with pytest.raises(ValueError, match="known are Mild, Strong, Severe"):
        word_list(["harsh"])


GRADES = ("Strong", "Severe")


def rewards_by_hand(model, weight, bias, phrase, candidates):
    rewards = []
    for token in candidates:
        with torch.no_grad():
            ids = torch.tensor([[*phrase, token]])
            hidden = model.base_model(ids).last_hidden_state[0, -1].numpy()
        rewards.append(min(max(float(hidden @ weight) + bias, 0.0), 1.0))
    return np.array(rewards)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_rad_adds_the_reward_of_every_candidate(family):
    model, judge = tiny_model("llama"), tiny_model(family)
    weight = (0.3 * np.random.default_rng(0).normal(size=32)).astype(np.float32)
    rad = RAD(RewardModel(judge, Characters(), weight, 0.4), Characters(), beta=5.0)
    assert rad.cached
    inputs = left_padded_prompts()
    output = model.generate(
        **inputs, custom_generate=rad, do_sample=True, top_k=7, max_new_tokens=8,
        return_dict_in_generate=True, output_scores=True, eos_token_id=VOCABULARY + 1,
    )  # fmt: skip
    warper = LogitsProcessorList([TopKLogitsWarper(7)])
    seen = []
    for row in range(3):
        start = int((inputs["attention_mask"][row] == 0).sum())
        for step, scores in enumerate(output.scores):
            phrase = output.sequences[row, start : 6 + step].tolist()
            with torch.no_grad():
                logits = warper(None, model(torch.tensor([phrase])).logits[:, -1])[0]
            candidates = logits.isfinite().nonzero()[:, 0].tolist()
            rewards = rewards_by_hand(judge, weight, 0.4, phrase, candidates)
            expected = logits[candidates].numpy() + 5.0 * rewards
            assert scores[row].isfinite().nonzero()[:, 0].tolist() == candidates
            np.testing.assert_allclose(scores[row, candidates], expected, atol=1e-4)
            seen += rewards.tolist()
    assert np.mean(np.array(seen) % 1 > 0) > 0.05, "every reward was clipped"


def test_a_reward_model_with_another_tokenizer_reads_the_texts(smollm2):
    model, tokenizer = smollm2

    class Lengths:
        """The shorter the text, the better."""

        tokenizer = Characters()
        model = tiny_model("llama")
        weight = np.zeros(32, dtype=np.float32)

        def rewards(self, texts):
            return np.array([1 / len(text) for text in texts])

    rad = RAD(Lengths(), tokenizer, beta=1e6)
    assert not rad.cached
    inputs = tokenizer(["The sea", "A house on the hill"], return_tensors="pt", padding=True)
    output = model.generate(
        **inputs, custom_generate=rad, do_sample=True, top_k=5, max_new_tokens=1,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    for row, scores in enumerate(output.scores[0]):
        candidates = scores.isfinite().nonzero()[:, 0].tolist()
        prompt = inputs["input_ids"][row].tolist()
        lengths = [
            len(tokenizer.decode([*prompt, token], skip_special_tokens=True))
            for token in candidates
        ]
        drawn = output.sequences[row, -1].item()
        assert lengths[candidates.index(drawn)] == min(lengths)


def test_the_reward_head_is_the_weighted_least_squares_solution(smollm2, texts):
    model, tokenizer = smollm2
    small = texts.select(range(30))
    reward = train_reward(model, tokenizer, small, alphas=[10.0])
    rows, targets, weights = [], [], []
    for prompt, response, toxicity in zip(
        small["prompt"], small["response"], small["toxicity"], strict=True
    ):
        before = tokenizer(prompt)["input_ids"]
        ids = before + tokenizer(response, add_special_tokens=False)["input_ids"]
        start = max(len(before), 1)
        with torch.no_grad():
            states = model.base_model(torch.tensor([ids])).last_hidden_state[0, start:]
        for t in range(1, len(states) + 1):
            rows.append(states[t - 1].double().numpy())
            targets.append(1 - toxicity)
            weights.append(t / (len(states) * (len(states) + 1) / 2))
    x = np.column_stack([rows, np.ones(len(rows))])
    w = np.array(weights)[:, None]
    penalty = 10.0 * np.eye(x.shape[1])
    penalty[-1, -1] = 0
    solution = np.linalg.solve(x.T @ (w * x) + penalty, x.T @ (w[:, 0] * np.array(targets)))
    np.testing.assert_allclose(reward.weight, solution[:-1], atol=2e-3)
    assert reward.bias == pytest.approx(solution[-1], abs=2e-2)
    assert reward.metadata["trained_parameters"] == model.config.hidden_size + 1
    assert reward.metadata["held_out_rmse"] < 0.6


def test_a_trained_reward_tells_texts_apart_and_survives_a_file(smollm2, texts, tmp_path):
    model, tokenizer = smollm2
    texts = texts.select(range(60))
    reward = train_reward(model, tokenizer, texts)
    toxic = np.array(texts["toxicity"]) > 0.5
    rewards = reward.rewards(
        [p + r for p, r in zip(texts["prompt"], texts["response"], strict=True)]
    )
    assert rewards[~toxic].mean() > rewards[toxic].mean() + 0.1
    assert ((rewards >= 0) & (rewards <= 1)).all()
    reward.save(tmp_path / "reward.safetensors")
    loaded = RewardModel.load(tmp_path / "reward.safetensors", model, tokenizer)
    np.testing.assert_array_equal(
        loaded.rewards(["Good morning"]), reward.rewards(["Good morning"])
    )
    other = tiny_model("llama")
    with pytest.raises(ValueError, match=r"trained on 'smollm2-135m-instruct', whose .*'llama'"):
        RewardModel.load(tmp_path / "reward.safetensors", other, tokenizer)


NICE = ["the cat likes the tree", "she finds a bird", "it sees the house", "he likes it"] * 8
BAD = ["the dog eats the cat", "he leaves", "it eats a bird", "she eats it"] * 8


def tiny_corpus():
    return datasets.Dataset.from_dict(
        {"prompt": [""] * 64, "response": NICE + BAD, "toxicity": [0.0] * 32 + [1.0] * 32}
    )


def test_fine_tuning_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    options = {"batch_size": 8, "learning_rate": 1e-2, "epochs": 4, "progress": False}
    whole = fine_tune_reward(*tiny_lm(), tiny_corpus(), folder=tmp_path / "whole", **options)
    batches = []
    compute_loss = reward_model._RewardTrainer.compute_loss

    def interrupted(trainer, *args, **kwargs):
        batches.append(1)
        if len(batches) == 17:  # in the third epoch of seven batches
            raise KeyboardInterrupt
        return compute_loss(trainer, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reward_model._RewardTrainer, "compute_loss", interrupted)
        fine_tune_reward(*tiny_lm(), tiny_corpus(), folder=tmp_path / "parts", **options)
    parts = fine_tune_reward(*tiny_lm(), tiny_corpus(), folder=tmp_path / "parts", **options)
    np.testing.assert_array_equal(parts.weight, whole.weight)


def test_a_whole_model_is_fine_tuned_into_a_reward_model(tmp_path):
    model, tokenizer = tiny_lm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    nice, bad, corpus = NICE, BAD, tiny_corpus()
    options = {"folder": tmp_path / "reward", "batch_size": 8, "learning_rate": 1e-2}
    reward = fine_tune_reward(model, tokenizer, corpus, **options, epochs=6, progress=False)
    assert reward.metadata["held_out_rmse"] < 0.25
    assert reward.metadata["trained_parameters"] == reward.model.num_parameters()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    loaded = RewardModel.from_classifier(str(tmp_path / "reward"), toxic=False)
    texts = nice[:4] + bad[:4]
    np.testing.assert_allclose(loaded.rewards(texts), reward.rewards(texts), atol=1e-6)
    assert loaded.rewards(nice).min() > 0.5 > loaded.rewards(bad).max()
    ids = tokenizer("the cat", return_tensors="pt")
    model.generate(
        **ids, custom_generate=RAD(loaded, tokenizer, 5.0), do_sample=True, top_k=5,
        max_new_tokens=3,
    )  # fmt: skip


def test_the_loss_of_fine_tuning_is_the_weighted_error_of_every_prefix():
    model, tokenizer = tiny_lm()
    corpus = datasets.Dataset.from_dict(
        {"prompt": ["", "he"], "response": ["the cat eats", "likes it"], "toxicity": [0.2, 1.0]}
    )
    rows = reward_model._prefixes(model, tokenizer, corpus, "toxicity")
    model.config.num_labels = 1
    classifier = transformers.AutoModelForSequenceClassification.from_config(model.config).eval()
    loss = reward_model._RewardTrainer.compute_loss(
        None, classifier, reward_model._padded_prefixes(rows)
    )
    expected = 0.0
    for text, target in (("the cat eats", 0.8), ("he likes it", 0.0)):
        ids = tokenizer(text)["input_ids"]
        weights = np.arange(1, len(ids))  # the first position says nothing yet
        for position in range(1, len(ids)):
            logits = classifier(torch.tensor([ids[: position + 1]])).logits.item()
            weight = weights[position - 1] / weights.sum()
            expected += weight * (logits - target) ** 2 / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_published_classifier_becomes_a_reward_model(smollm2, tmp_path):
    _, tokenizer = smollm2
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, num_labels=7, pad_token_id=0
    )
    classifier = transformers.GPT2ForSequenceClassification(config).eval()
    classifier.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = RewardModel.from_classifier(str(tmp_path), label=2)
    texts = ["Good morning to you", "What a day"]
    for text, found in zip(texts, reward.rewards(texts), strict=True):
        with torch.no_grad():
            logits = classifier(**tokenizer(text, return_tensors="pt")).logits[0]
        assert found == pytest.approx(min(max(1 - logits[2].item(), 0), 1), abs=1e-5)
    with pytest.raises(ValueError, match="no linear head 'score' with an output 9"):
        RewardModel.from_classifier(str(tmp_path), label=9)


def test_self_debiasing_follows_its_definition():
    model = tiny_model("llama")
    method = SelfDebiasing(Characters(), ["rude words", "a threat"], decay=20.0)
    inputs = left_padded_prompts()
    output = model.generate(
        **inputs, custom_generate=method, do_sample=True, top_k=0, max_new_tokens=5,
        return_dict_in_generate=True, output_scores=True, eos_token_id=VOCABULARY + 1,
    )  # fmt: skip
    changed = 0
    for row in range(3):
        start = int((inputs["attention_mask"][row] == 0).sum())
        for step, scores in enumerate(output.scores):
            phrase = output.sequences[row, start : 6 + step].tolist()

            def next_token(ids):
                with torch.no_grad():
                    return model(torch.tensor([ids])).logits[0, -1].softmax(-1).numpy()

            p = next_token(phrase)
            described = [
                next_token(
                    Characters()(f"The following text contains {what}:\n\n")["input_ids"] + phrase
                )
                for what in ("rude words", "a threat")
            ]
            difference = p - np.max(described, axis=0)
            expected = p * np.where(difference >= 0, 1.0, np.exp(20.0 * difference))
            expected /= expected.sum()
            np.testing.assert_allclose(scores[row].softmax(-1), expected, atol=1e-5)
            changed += (difference < 0).sum()
    assert changed > 100


def test_at_strength_zero_every_method_is_plain_sampling():
    model = tiny_model("llama")
    reward = RewardModel(model, Characters(), np.ones(32, dtype=np.float32), 0.0)
    options = dict(do_sample=True, top_k=9, top_p=0.8, max_new_tokens=8)
    torch.manual_seed(0)
    plain = model.generate(**left_padded_prompts(), **options)
    for method in (RAD(reward, Characters(), 0.0), SelfDebiasing(Characters(), decay=0.0)):
        torch.manual_seed(0)
        found = model.generate(**left_padded_prompts(), custom_generate=method, **options)
        torch.testing.assert_close(found, plain)


def test_bad_parameters_are_refused_at_once(smollm2, texts):
    model, tokenizer = smollm2
    reward = RewardModel(model, tokenizer, np.ones(576, dtype=np.float32), 0.0)
    for beta in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="beta must be a finite number of at least 0"):
            RAD(reward, tokenizer, beta)
        with pytest.raises(ValueError, match="decay must be a finite number of at least 0"):
            SelfDebiasing(tokenizer, decay=beta)
    with pytest.raises(ValueError, match="at least one attribute"):
        SelfDebiasing(tokenizer, [])
    with pytest.raises(ValueError, match="at least one word"):
        WordFilter(tokenizer, [" "])
    with pytest.raises(ValueError, match="got a single str"):
        WordFilter(tokenizer, "word")
    with pytest.raises(ValueError, match="held_out must be a finite number above 0"):
        train_reward(model, tokenizer, texts, held_out=1.0)
    ids = torch.tensor([[5, 9]])
    with pytest.raises(
        ValueError, match="RAD samples; it does not search beams: leave num_beams at 1"
    ):
        model.generate(ids, custom_generate=RAD(reward, tokenizer, 1.0), num_beams=2)


def test_methods_stream_like_plain_sampling(smollm2):
    model, tokenizer = smollm2
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
    inputs = tokenizer("The weather today is", return_tensors="pt")
    words = WordFilter(tokenizer, ["sunny"], then=SASA(zero_boundary(model), beta=1.0))
    output = model.generate(
        **inputs, custom_generate=words, do_sample=True, top_k=5, max_new_tokens=6,
        streamer=streamer,
    )  # fmt: skip
    assert "".join(streamer) == tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


def test_sasa_sees_only_what_the_filter_leaves():
    model = tiny_model("llama")
    sasa = SASA(random_boundary(model, 2), beta=1.0, record=True)
    words = WordFilter.__new__(WordFilter)
    words.then, words.processor = (
        sasa,
        lambda *_: lambda ids, scores: scores.index_fill(1, torch.arange(10, 30), float("-inf")),
    )
    model.generate(
        **left_padded_prompts(), custom_generate=words, do_sample=True, top_k=9, max_new_tokens=4
    )
    assert not set(range(10, 30)) & set(sasa.trace["token_id"])


def test_with_a_seed_a_method_draws_the_same_whatever_shares_the_batch():
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    reward = RewardModel(model, Characters(), np.ones(32, dtype=np.float32), 0.0)
    options = dict(do_sample=True, top_k=9, max_new_tokens=8)
    inputs = left_padded_prompts()
    for method in (RAD(reward, Characters(), 3.0, seed=4), SelfDebiasing(Characters(), seed=4)):
        together = model.generate(
            **inputs, custom_generate=method, num_return_sequences=2, **options
        )
        for row in range(3):
            start = int((inputs["attention_mask"][row] == 0).sum())
            prompt = inputs["input_ids"][row : row + 1, start:]
            alone = model.generate(prompt, custom_generate=method, **options)
            torch.testing.assert_close(together[2 * row, start:], alone[0])


def test_what_a_filter_finds_is_what_it_forbids(smollm2):
    _, tokenizer = smollm2
    words = WordFilter(tokenizer, ["cat", "hot dog", "dog", "b!t"])
    texts = ["A CAT, a hot dog.", "Concatenated dogs!", "cat", "", "a b!t of cat_food"]
    assert words.found(texts) == [["cat", "hot dog", "dog"], [], ["cat"], [], ["b!t", "cat"]]
    for text in texts:
        assert sorted(words.found([text])[0]) == sorted(
            word for one in words.words for word in contains(text, [one])
        )
    # A word that is there already when the text begins is the prompt's.
    assert words.found(["at sat", " dog", "s", ", she said"], ["a c", "hot", "cat", "a cat"]) == [
        ["cat"], ["hot dog", "dog"], [], []
    ]  # fmt: skip
    with pytest.raises(ValueError, match="longer"):
        words.found(["one", "two"], ["prompt"])


def test_nothing_is_found_in_what_a_filter_let_through(smollm2):
    model, tokenizer = smollm2
    prompts = ["It was a long day for", "Once upon a time there was", "She said: ON"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    start = inputs["input_ids"].shape[1]
    words = WordFilter(tokenizer, WORDS, seed=0)
    options = dict(do_sample=True, top_k=40, max_new_tokens=16, num_return_sequences=4)
    found = {}
    for name, method in (("plain", PlainSampling(0)), ("filter", words)):
        output = model.generate(**inputs, custom_generate=method, **options)
        texts = tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
        found[name] = sum(map(len, words.found(texts, [p for p in prompts for _ in range(4)])))
    assert found["filter"] == 0 and found["plain"] > 12


def test_a_reward_is_known_by_all_that_it_depends_on():
    weight = np.ones(32, dtype=np.float32)
    model, other = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.add_(0.01)

    def described(model=model, weight=weight, bias=0.0, metadata=(), **options):
        reward = RewardModel(model, tiny_lm()[1], weight, bias, dict(metadata))
        return json.dumps(RAD(reward, Characters(), 1.0, **options).describe(), sort_keys=True)

    same = described()
    assert described(metadata={"seconds": 3.0}) == described(bias=np.float64(0)) == same
    for change in (
        dict(bias=0.9), dict(weight=weight * 2), dict(model=other), dict(seed=1),
        dict(max_candidates=9),
    ):  # fmt: skip
        assert described(**change) != same, change


def test_a_reward_file_with_a_field_more_or_less_is_read_or_refused_in_a_sentence(tmp_path):
    model, tokenizer = tiny_lm()
    reward = RewardModel(model, tokenizer, np.ones(32, np.float32), np.float32(0.5), {"n": 3})
    reward.save(tmp_path / "r.safetensors")
    with safe_open(tmp_path / "r.safetensors", framework="numpy") as file:
        facts = json.loads(file.metadata()["reward"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def load(facts, tensors):
        save_file(tensors, tmp_path / "c.safetensors", {"reward": json.dumps(facts)})
        return RewardModel.load(tmp_path / "c.safetensors", model, tokenizer)

    assert load(facts, tensors).rewards(["the cat"]) == reward.rewards(["the cat"])
    for name in facts:
        less = {other: value for other, value in facts.items() if other != name}
        with pytest.raises(ValueError, match=rf"c.safetensors is not a saved reward .*{name}"):
            load(less, tensors)
    for name in tensors:
        less = {other: value for other, value in tensors.items() if other != name}
        with pytest.raises(ValueError, match=rf"c.safetensors is not a saved reward .*{name}"):
            load(facts, less)
    with pytest.raises(ValueError, match=r"later version .*'temperature'"):
        load(facts | {"temperature": 2.0}, tensors)
