"""SASA inside `generate`: what plain sampling honours, it honours too."""

import numpy as np
import pytest
import torch
import transformers
from accelerate import dispatch_model
from peft import LoraConfig, get_peft_model
from transformers import LogitsProcessor, LogitsProcessorList, TopKLogitsWarper

from sasa_lib import SASA, Boundary, SASALogitsProcessor
from sasa_lib.decoding import FORMS, PlainSampling
from tests.decoding.test_sasa import (
    VOCABULARY,
    left_padded_prompts,
    naive_step,
    random_boundary,
    tiny_model,
)
from tests.tiny_lm import tiny_boundary, tiny_lm


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=0.6),
        dict(top_k=5),
        dict(top_k=20, top_p=0.7),
        dict(top_k=0, top_p=0.7),
        dict(top_k=12, min_p=0.2),
        dict(top_k=0, typical_p=0.6),
        dict(top_k=15, typical_p=0.6, top_p=0.9, temperature=1.3),
        dict(top_k=15, epsilon_cutoff=0.03),
        dict(top_k=15, eta_cutoff=0.03),
        dict(top_k=9, repetition_penalty=1.8),
        dict(top_k=9, no_repeat_ngram_size=1),
        dict(top_k=9, bad_words_ids=[[11], [12], [9, 13]]),
        dict(top_k=9, suppress_tokens=[5, 6, 7]),
        dict(top_k=9, top_p=0.8, renormalize_logits=True),
        dict(do_sample=False),
        dict(do_sample=False, repetition_penalty=1.8),
    ],
    ids=str,
)
def test_candidates_are_those_of_plain_generate(settings):
    """Each step's candidates and reference are what plain `generate` would draw from there."""
    model = tiny_model("llama")
    boundary = random_boundary(model, 2)
    sasa = SASA(boundary, beta=1.0, max_candidates=VOCABULARY, record=True)
    options = dict(do_sample=True) | settings
    inputs = left_padded_prompts()
    output = model.generate(**inputs, custom_generate=sasa, max_new_tokens=5, **options)
    for step in range(output.shape[1] - 6):
        so_far = {
            "input_ids": output[:, : 6 + step],
            "attention_mask": torch.cat(
                [inputs["attention_mask"], torch.ones(3, step, dtype=torch.long)], dim=1
            ),
        }
        plain = model.generate(
            **so_far, max_new_tokens=1, return_dict_in_generate=True, output_scores=True, **options
        )
        for sequence, rows in sasa.trace.query("step == @step").groupby("sequence"):
            scores = plain.scores[0][sequence]
            kept = scores.isfinite().nonzero()[:, 0]
            rows = rows.sort_values("token_id")
            assert rows["token_id"].tolist() == kept.tolist()
            np.testing.assert_allclose(
                rows["reference_logprob"], scores[kept].log_softmax(-1), atol=2e-5
            )


class Counting(LogitsProcessor):
    """Forbids a token, and counts how often it is asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, input_ids, scores):
        self.calls.append(input_ids.shape[1])
        scores[:, 9] = float("-inf")
        return scores


def test_a_users_processor_acts_once_a_step_before_the_candidates_are_chosen():
    model = tiny_model("llama")
    counting = Counting()
    sasa = SASA(random_boundary(model, 2), beta=1.0, record=True)
    output = model.generate(
        **left_padded_prompts(), custom_generate=sasa, logits_processor=[counting],
        do_sample=True, top_k=10, max_new_tokens=6, return_dict_in_generate=True,
        output_logits=True,
    )  # fmt: skip
    assert counting.calls == list(range(6, output.sequences.shape[1]))
    assert 9 not in set(sasa.trace["token_id"])
    assert torch.stack(output.logits).isfinite().all(), "the model's own logits were overwritten"


def test_hidden_states_are_those_of_the_plain_model():
    model = tiny_model("gemma3_text")
    for layer in (1, 3):
        sasa = SASA(random_boundary(model, layer), beta=1.0, form="posterior")
        output = model.generate(
            torch.tensor([[5, 9, 11], [5, 9, 4]]), custom_generate=sasa, do_sample=True, top_k=6,
            max_new_tokens=5, min_new_tokens=5, return_dict_in_generate=True,
            output_hidden_states=True,
        )  # fmt: skip
        with torch.no_grad():
            plain = model(output.sequences[:, :-1], output_hidden_states=True).hidden_states
        assert len(output.hidden_states) == 5
        for depth, expected in enumerate(plain):
            found = torch.cat([step[depth] for step in output.hidden_states], dim=1)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_any_of_several_end_tokens_and_stop_strings_end_a_sequence(smollm2):
    model, tokenizer = smollm2
    sasa = SASA(zero_boundary(model), beta=1.0, seed=1)
    inputs = tokenizer("It was a long day and I", return_tensors="pt")
    options = dict(custom_generate=sasa, do_sample=True, top_k=5, max_new_tokens=12)
    free = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(free) == 12
    ended = model.generate(**inputs, eos_token_id=[free[4], free[7]], **options)
    first = min(free.index(free[4]), free.index(free[7]))
    assert ended[0, inputs["input_ids"].shape[1] :].tolist() == free[: first + 1]
    word = tokenizer.decode(free[3]).strip()
    stopped = model.generate(**inputs, stop_strings=[word], tokenizer=tokenizer, **options)
    text = tokenizer.decode(stopped[0, inputs["input_ids"].shape[1] :])
    assert word in text and len(text) < len(tokenizer.decode(free))


def test_a_streamer_gets_the_text_as_it_grows(smollm2):
    model, tokenizer = smollm2
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
    inputs = tokenizer("The weather today is", return_tensors="pt")
    output = model.generate(
        **inputs, custom_generate=SASA(zero_boundary(model), beta=1.0), do_sample=True, top_k=5,
        max_new_tokens=8, streamer=streamer,
    )  # fmt: skip
    assert "".join(streamer) == tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


def test_a_pipeline_takes_it(smollm2):
    model, tokenizer = smollm2
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    sasa = SASA(zero_boundary(model), beta=1.0, seed=0)
    # The pipeline has a temperature of its own.
    options = dict(custom_generate=sasa, do_sample=True, top_k=5, temperature=1.0, max_new_tokens=6)
    texts = pipe(
        ["The sea", "A long way home"], num_return_sequences=2, return_full_text=False, **options
    )
    inputs = tokenizer("The sea", return_tensors="pt")
    direct = model.generate(**inputs, num_return_sequences=2, **options)
    expected = tokenizer.batch_decode(direct[:, 2:], skip_special_tokens=True)
    assert [row["generated_text"] for row in texts[0]] == expected
    assert len(texts[1]) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", [3, 1])
def test_half_precision_follows_the_plain_model_in_half_precision(dtype, layer):
    model = tiny_model("llama").to(dtype)
    boundary = random_boundary(model, layer)
    sasa = SASA(boundary, beta=1.0, record=True, seed=0)
    output = model.generate(
        **left_padded_prompts(), custom_generate=sasa, do_sample=True, top_k=5, max_new_tokens=8
    )
    start = int((left_padded_prompts()["attention_mask"][0] == 0).sum())
    for step, rows in sasa.trace.query("sequence == 0").groupby("step"):
        phrase = output[0, start : 6 + step]
        extended = torch.cat(
            [phrase.expand(len(rows), -1), torch.tensor(rows["token_id"].to_numpy())[:, None]], 1
        )
        with torch.no_grad():
            hidden = model(extended, output_hidden_states=True).hidden_states[layer][:, -1]
        margins = boundary.margins(hidden.float().numpy(), scaled=True)
        np.testing.assert_allclose(rows["margin"], margins, atol=0.1)


def test_a_model_wrapped_by_peft_is_steered_by_its_adapted_states():
    model = tiny_model("llama")
    boundary = random_boundary(model, 2)
    adapted = get_peft_model(
        model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    ).eval()
    sasa = SASA(boundary, beta=1.5, record=True)
    output = adapted.generate(
        input_ids=torch.tensor([[5, 9, 11]]), custom_generate=sasa, do_sample=True, top_k=5,
        max_new_tokens=3,
    )  # fmt: skip
    warpers = LogitsProcessorList([TopKLogitsWarper(5)])
    for step, rows in sasa.trace.groupby("step"):
        phrase = output[0, : 3 + step].tolist()
        _, reference, margins, _ = naive_step(adapted, phrase, boundary, warpers, 1.5)
        rows = rows.sort_values("token_id")
        np.testing.assert_allclose(rows["reference_logprob"], reference, atol=1e-5)
        np.testing.assert_allclose(rows["margin"], margins, atol=1e-5)


def test_a_rank_that_is_through_goes_on_passing_forward_for_the_others(monkeypatch):
    model = tiny_model("llama")
    sasa = SASA(random_boundary(model, 1), beta=1.0, form="posterior", seed=0)
    options = dict(custom_generate=sasa, do_sample=True, top_k=9, max_new_tokens=4)
    alone = model.generate(torch.tensor([[5, 9, 11]]), **options)
    others = iter([True] * 7 + [False])
    monkeypatch.setattr(
        model, "_has_unfinished_sequences", lambda finished, synced, device: next(others)
    )
    passes = []
    hook = model.model.register_forward_hook(lambda *_: passes.append(1))
    synced = model.generate(torch.tensor([[5, 9, 11]]), synced_gpus=True, **options)
    hook.remove()
    torch.testing.assert_close(synced, alone)
    assert len(passes) == 1 + 7  # the prompt, and one a step


@pytest.mark.parametrize("form", ["margin", "softmax", "posterior"])
def test_the_logits_processor_gives_the_same_distribution(form):
    model = tiny_model("llama")
    model.generation_config.pad_token_id = 0
    boundary = random_boundary(model, 2)
    sasa = SASA(boundary, beta=1.5, form=form)
    processor = SASALogitsProcessor(model, boundary, beta=1.5, form=form, max_candidates=7)
    options = dict(do_sample=True, max_new_tokens=1, return_dict_in_generate=True)
    inputs = left_padded_prompts()
    expected = model.generate(
        **inputs, custom_generate=sasa, top_k=7, output_scores=True, **options
    )
    found = model.generate(
        **inputs, logits_processor=[processor], top_k=0, output_scores=True, **options
    )
    torch.testing.assert_close(
        found.scores[0].softmax(-1), expected.scores[0].softmax(-1), atol=1e-5, rtol=0
    )
    beams = model.generate(
        **inputs, logits_processor=[processor], num_beams=3, max_new_tokens=4, do_sample=False
    )
    assert beams.shape[0] == 3


def zero_boundary(model):
    """A boundary for a real model, where only the mechanics matter."""
    size = model.config.hidden_size
    normal = np.zeros(size, dtype=np.float32)
    normal[0] = 1
    return Boundary(normal, np.zeros_like(normal), 1.0, 1.0, 3, "mean", model.name_or_path)


def test_a_model_dispatched_by_a_device_map_is_steered_alike(tmp_path):
    boundary = random_boundary(tiny_model("llama"), 2)
    tiny_model("llama").save_pretrained(tmp_path)
    dispatched = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    dispatch_model(dispatched, {"model": "cpu", "lm_head": "cpu"}, force_hooks=True)
    assert hasattr(dispatched.model, "_hf_hook")
    options = dict(do_sample=True, top_k=6, max_new_tokens=8)
    texts = []
    for model in (tiny_model("llama"), dispatched):
        model.name_or_path = "llama"
        sasa = SASA(boundary, beta=1.0, form="posterior", seed=0)
        texts.append(model.generate(**left_padded_prompts(), custom_generate=sasa, **options))
    torch.testing.assert_close(*texts)


def test_a_users_own_top_k_is_the_number_of_candidates():
    model = tiny_model("llama")
    sasa = SASA(random_boundary(model, 2), 0.0, record=True, max_candidates=15)
    options = dict(custom_generate=sasa, do_sample=True, max_new_tokens=4, eos_token_id=None)
    for own, top_k, expected in ((3, 0, 3), (3, 10, 3), (10, 3, 3), (20, 0, 15)):
        model.generate(
            torch.tensor([[5, 9, 11]]), logits_processor=[TopKLogitsWarper(own)], top_k=top_k,
            **options,
        )  # fmt: skip
        assert sasa.trace.groupby("step").size().tolist() == [expected] * 4


@pytest.mark.parametrize("form", FORMS)
def test_more_candidates_than_the_vocabulary_has_are_the_vocabulary(form):
    model, _ = tiny_lm()
    ids, options = torch.tensor([[5, 9, 11]]), dict(do_sample=True, max_new_tokens=4)
    options["eos_token_id"] = None
    for top_k, max_candidates in ((0, 50), (50, 50), (100, 5)):
        sasa = SASA(
            tiny_boundary(), 0.0, form=form, seed=0, max_candidates=max_candidates, record=True
        )
        found = model.generate(ids, custom_generate=sasa, top_k=top_k, **options)
        assert sasa.trace.groupby("step").size().tolist() == [21] * 4
        plain = model.generate(ids, custom_generate=PlainSampling(0), top_k=top_k, **options)
        assert torch.equal(found, plain)


@pytest.mark.parametrize("form", FORMS)
def test_the_logits_processor_gives_beams_log_probabilities(form):
    model = tiny_model("llama")
    processor = SASALogitsProcessor(model, random_boundary(model, 2), beta=2.0, form=form)
    ids = left_padded_prompts()["input_ids"]
    model.generation_config.pad_token_id = 0
    scores = processor(ids, model(**left_padded_prompts()).logits[:, -1])
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(3))
    assert (scores > float("-inf")).sum(-1).tolist() == [10] * 3
