"""Public bug reports of other projects, as small inputs, each of which once failed here.

One test a case, named by project and number. Reports about files are in `test_formats` and
`test_corpora`, RoBERTa's positions in `test_scorers`, numbers of the command line in
`test_notebooks`.
"""

import warnings
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_lm import tiny_boundary, tiny_lm

import sasa_lib as sl
from sasa_lib.decoding import PlainSampling
from sasa_lib.decoding.baselines import RAD, RewardModel, SelfDebiasing, WordFilter, train_reward
from sasa_lib.evaluation.judging import judged
from sasa_lib.evaluation.likelihood import negative_log_likelihoods
from sasa_lib.evaluation.runs import generate
from sasa_lib.evaluation.sampling import Sampling
from sasa_lib.evaluation.scorers import Scorer
from sasa_lib.subspace.embeddings import extract

SAMPLING = Sampling(generations=2, max_new_tokens=8)
LONG = "a dog " * 40  # 80 tokens; the tiny model takes 64
HALF = "a \ud83d dog"  # half of an emoji
SIZES = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=48, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
DRAWN = dict(do_sample=True, top_k=8, return_dict_in_generate=True, output_logits=True)


@pytest.fixture
def tiny():
    return tiny_lm()


def run(model, tokenizer, prompts, folder, **options):
    options = {"method": "plain", "progress": False} | options
    return generate(model, tokenizer, prompts, SAMPLING, folder=folder, **options)


def texts_of(model, tokenizer, folder):
    return run(model, tokenizer, ["the cat", "a dog"], folder)["text"].tolist()


def built(config, model_class=transformers.AutoModelForCausalLM, std=0.3):
    """A random model whose logits are far enough apart."""
    torch.manual_seed(0)
    make = getattr(model_class, "from_config", None) or model_class._from_config
    model = make(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=std) if weight.dim() > 1 else None
    model.name_or_path = "built"
    return model


def boundary_at(model, layer, pooling="mean"):
    normal = np.eye(32, dtype=np.float32)[0]
    return sl.Boundary(normal, np.zeros(32, np.float32), 1.0, 1.0, layer, pooling, "built")


def off(model, output, length):
    """How far a call's logits are from those of the whole phrase, read without a cache."""
    with torch.no_grad():
        read = [
            model(output.sequences[:, : length + step], use_cache=False).logits[:, -1]
            for step in range(len(output.logits))
        ]
    return max(float((a - b).abs().max()) for a, b in zip(read, output.logits, strict=True))


def test_01_a_filtered_series_is_a_list(tiny, tmp_path):
    """sentence-transformers #3371: items are counted from 0, whatever their labels."""
    table = pd.DataFrame({"prompt": ["it", "the cat", LONG], "toxicity": [0.1, 0.9, 0.9]})
    prompts = table["prompt"][table["toxicity"] > 0.5]
    with pytest.warns(UserWarning, match="1 of 2 prompts set aside, such as 1: prompt 1 has 80"):
        made = run(*tiny, prompts, tmp_path, set_aside=True)
    assert made["prompt"].tolist() == ["the cat"] * 2 and made["prompt_id"].tolist() == [0, 0]
    aside = pd.read_parquet(f"{made.attrs['run']}/set-aside.parquet")
    assert aside["row"].tolist() == [1] and aside["prompt"].tolist() == [LONG]
    short = table["prompt"][[1, 0]]
    np.testing.assert_array_equal(
        tiny_boundary().score_texts(*tiny, short), tiny_boundary().score_texts(*tiny, list(short))
    )
    found, expected = (
        negative_log_likelihoods(*tiny, of, of, progress=False)[0] for of in (short, list(short))
    )
    np.testing.assert_array_equal(found, expected)


def test_02_another_generation_setting_is_another_run(tiny, tmp_path):
    """lm-evaluation-harness #3881: the old run's texts came back."""
    model, _ = tiny
    before = texts_of(*tiny, tmp_path / "a")
    for name, value in (
        ("repetition_penalty", 50.0), ("min_p", 0.3), ("suppress_tokens", list(range(5, 20)))
    ):  # fmt: skip
        setattr(model.generation_config, name, value)
        assert texts_of(*tiny, tmp_path / "a") == texts_of(*tiny, tmp_path / name) != before
        setattr(model.generation_config, name, None)
    assert texts_of(*tiny, tmp_path / "a") == before
    assert len(list((tmp_path / "a").iterdir())) == 4


def adapters(model):
    torch.manual_seed(1)
    lora = LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, lora, adapter_name="first")
    model.add_adapter("second", lora)
    return model.eval()


def test_03_another_adapter_is_another_model(tiny, tmp_path):
    """lm-evaluation-harness #4063, peft #1802: adapter b was given what adapter a had made."""
    base, tokenizer = tiny
    generations = pd.DataFrame({"prompt_id": [0], "prompt": ["he"], "text": ["sees the cat"]})

    def results(model, folder):
        return {
            "texts": texts_of(model, tokenizer, folder),
            "embeddings": extract(
                model, tokenizer, ["the cat"], folder=folder, progress=False
            ).tolist(),
            "judgements": judged(
                generations, [], model, tokenizer, folder=folder, progress=False
            )["nll"].tolist(),
        }  # fmt: skip

    kept = tmp_path / "kept"
    expected = {"base": results(base, kept)}
    files = len(list(kept.rglob("*.*")))
    model = adapters(base)
    for name in ("first", "second"):
        model.set_adapter(name)
        expected[name] = results(model, kept)
        assert expected[name] == results(model, tmp_path / name)
    assert len(list(kept.rglob("*.*"))) > files
    for what in expected["base"]:
        assert len({str(of_model[what]) for of_model in expected.values()}) == 3, what
    made = sorted(kept.rglob("*.*"))
    for name in ("first", "second"):
        model.set_adapter(name)
        assert results(model, kept) == expected[name]
        with model.disable_adapter():  # is the base model, whose results are there
            assert results(model, kept) == expected["base"]
    assert sorted(kept.rglob("*.*")) == made


def overflowing():
    model, tokenizer = tiny_lm()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(3e6)
    return model.half(), tokenizer


@pytest.mark.parametrize(
    "method",
    [
        lambda reward, tokenizer: None,
        lambda reward, tokenizer: sl.SASA(boundary_at(reward, 1), 1.0),
        lambda reward, tokenizer: sl.SASA(boundary_at(reward, 2), 1.0, form="posterior"),
        lambda reward, tokenizer: sl.BestOf(boundary_at(reward, 1), 2),
        lambda reward, tokenizer: sl.Accept(boundary_at(reward, 1), 0.0),
        lambda reward, tokenizer: WordFilter(tokenizer, ["cat"], seed=0),
        lambda reward, tokenizer: SelfDebiasing(tokenizer, seed=0),
        lambda reward, tokenizer: RAD(
            RewardModel(reward, tokenizer, np.ones(32, np.float32), 0.0), tokenizer, 1.0, seed=0
        ),
    ],
    ids=["plain", "sasa", "posterior", "best-of", "accept", "words", "self-debiasing", "rad"],
)
def test_04_logits_that_are_not_finite_are_refused(tmp_path, method):
    """inspect_ai #77, text-generation-webui #6213: float16 overflowed, one word was repeated."""
    model, tokenizer = overflowing()
    reward, _ = tiny_lm()
    model.name_or_path = reward.name_or_path = "built"
    assert model(**tokenizer("the cat", return_tensors="pt")).logits.isnan().all()
    message = "not finite.*load (it|the model) with dtype='float32'"
    with pytest.raises(ValueError, match=message):
        run(model, tokenizer, ["the cat"], tmp_path, custom_generate=method(reward, tokenizer))
    assert not list(tmp_path.rglob("shard-*"))


def test_04_nothing_that_is_not_finite_is_kept_or_compared(tmp_path):
    """The same model as a judge or to fit a boundary on, and a method without likelihoods."""
    model, tokenizer = overflowing()
    for call in (
        lambda: extract(model, tokenizer, ["the cat"], folder=tmp_path, progress=False),
        lambda: negative_log_likelihoods(model, tokenizer, ["he"], ["sees"], progress=False),
        lambda: model.generate(
            **tokenizer("he", return_tensors="pt"),
            custom_generate=PlainSampling(0),
            max_new_tokens=1,
        ),
    ):
        with pytest.raises(ValueError, match="not finite"):
            call()
    assert not list(tmp_path.iterdir())
    good = pd.DataFrame({"prompt_id": [0, 1], "prompt": ["a", "b"], "score": 0.5, "nll": 3.0})
    good = good.assign(nll_tokens=2)
    bad = good.assign(nll=[3.0, np.nan])
    for tables in ({"plain": [good], "sasa": [bad]}, {"plain": [bad], "sasa": [good]}):
        with pytest.raises(ValueError, match="column 'nll': 1 of 2 values are not finite"):
            sl.matched.at_matched_perplexity(tables, "score", ratio=1.5)


def test_05_the_first_space_of_a_text_is_kept(tmp_path):
    """transformers #28776, #27385, lm-evaluation-harness #531: SentencePiece dropped it."""
    pieces = ["<unk>", "<s>", "</s>", "\u2581", *"abcdefgh"]
    tokenizer = transformers.LlamaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], pad_token="<unk>"
    )
    model = built(transformers.LlamaConfig(**SIZES | {"vocab_size": 12}))
    model.generation_config.begin_suppress_tokens = [i for i in range(12) if i != 3]
    options = dict(do_sample=True, top_k=10, top_p=0.9, max_new_tokens=8, num_return_sequences=2)
    for prompt in ("ab ba", "ab"):
        made = run(model, tokenizer, [prompt], tmp_path)["text"].tolist()
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        output = model.generate(ids, custom_generate=PlainSampling(0), **options)
        wholes = tokenizer.batch_decode(output, skip_special_tokens=True)
        assert [prompt + text for text in made] == wholes
        assert all(text.startswith(" ") for text in made)


def gemma3_with_eyes():
    image = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=4,
    )  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=SIZES | {"num_key_value_heads": 1, "head_dim": 8}, vision_config=image,
        mm_tokens_per_image=4, image_token_index=60,
    )  # fmt: skip
    return built(config, transformers.Gemma3ForConditionalGeneration)


def test_06_an_image_is_seen_or_refused_by_name():
    """kvpress #129, exllamav2 #733: the text was that without the image."""
    model = gemma3_with_eyes()
    ids = torch.tensor([[1, 60, 60, 60, 60, 10, 11]])
    torch.manual_seed(0)
    seen = dict(pixel_values=3 * torch.randn(1, 3, 16, 16), token_type_ids=(ids == 60).long())
    options = dict(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=10,
        max_new_tokens=6, eos_token_id=None,
    )  # fmt: skip

    def drawn(method, **more):
        return model.generate(**options, **more, custom_generate=method)[0, 7:].tolist()

    plain, blind = drawn(PlainSampling(0), **seen), drawn(PlainSampling(0))
    assert plain != blind, "this image changes nothing"
    for layer in (0, 1, 3):
        for form in sl.decoding.FORMS:
            for phrase in ("candidate", "response"):
                sasa = sl.SASA(boundary_at(model, layer), 0.0, form=form, phrase=phrase, seed=0)
                with pytest.warns(UserWarning, match=r"pixel_values cannot be shared"):
                    assert drawn(sasa, **seen) == plain
    tokenizer = tiny_lm()[1]
    reward = RewardModel(tiny_lm()[0], tokenizer, np.ones(32, np.float32), 0.0)
    for method in (
        sl.BestOf(boundary_at(model, 2), 2, seed=0),
        sl.Accept(boundary_at(model, 2), seed=0),
        RAD(reward, tokenizer, 0.0, seed=0),
        SelfDebiasing(tokenizer, decay=0.0, seed=0),
        sl.SASA(boundary_at(model, 2), 0.0, phrase="text", seed=0),
    ):
        name = type(method).__name__
        for what, value in seen.items():
            with pytest.raises(ValueError, match=f"{name} does not understand '{what}': leave"):
                drawn(method, **{what: value})
    # Without an image it is a language model like others.
    for method in (
        sl.BestOf(boundary_at(model, 2), 1, seed=0),
        SelfDebiasing(tokenizer, decay=0.0, seed=0),
        sl.SASA(boundary_at(model, 2), 0.0, phrase="text", seed=0),
    ):
        with warnings.catch_warnings(action="error"):
            assert drawn(method) == blind


def phi3():
    rope = dict(
        rope_type="longrope", rope_theta=100.0, short_factor=[1.0] * 4,
        long_factor=[4.0, 5.0, 6.0, 7.0], original_max_position_embeddings=12,
        partial_rotary_factor=1.0,
    )  # fmt: skip
    return built(
        transformers.Phi3Config(
            **SIZES, max_position_embeddings=64, original_max_position_embeddings=12,
            rope_parameters=rope,
        )
    )  # fmt: skip


@pytest.mark.parametrize("form", ["margin", "posterior"])
@pytest.mark.parametrize("layer", [1, 3])
def test_07_past_its_original_context_phi3_reads_all_anew(layer, form):
    """transformers #33129, unsloth #1199: logits were off by 6.5."""
    model, ids = phi3(), torch.arange(3, 11)[None]
    options = dict(
        attention_mask=torch.ones_like(ids), max_new_tokens=12, eos_token_id=None, **DRAWN
    )
    sasa = sl.SASA(boundary_at(model, layer), 0.0, form=form, seed=0)
    steered, plain = (
        model.generate(ids, custom_generate=method, **options)
        for method in (sasa, PlainSampling(0))
    )
    assert off(model, steered, 8) < 1e-3
    assert steered.sequences.tolist() == plain.sequences.tolist()


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("recurrent_gemma", dict(num_key_value_heads=1, head_dim=8)),
        ("rwkv", dict(attention_hidden_size=32)),
        ("mamba", dict(state_size=4)),
    ],
)
@pytest.mark.filterwarnings("ignore:candidates of:UserWarning")
def test_08_every_candidate_has_a_state_of_its_own(family, more):
    """transformers #46612: beams kept each other's states; RWKV was off by 4.9."""
    config = transformers.AutoConfig.for_model(family, **SIZES | more)
    model, ids = built(config, std=0.2), torch.tensor([[5, 6, 7, 8]])
    for layer in (1, 3):
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, eos_token_id=None,
            custom_generate=sl.SASA(boundary_at(model, layer), 0.0, seed=0), **DRAWN,
        )  # fmt: skip
        assert off(model, output, 4) < 1e-3


def test_13_half_a_surrogate_pair_is_set_aside_or_refused(tiny, tmp_path):
    """transformers #8886, tiktoken #82: one bad prompt of two stopped the run by a TypeError."""
    with pytest.warns(UserWarning, match="1 of 2 prompts set aside, such as 1: .*half a surrogate"):
        made = run(*tiny, ["the cat", HALF], tmp_path, set_aside=True)
    assert made["prompt"].tolist() == ["the cat"] * 2
    assert made["text"].tolist() == run(*tiny, ["the cat"], tmp_path / "b")["text"].tolist()
    aside = pd.read_parquet(f"{made.attrs['run']}/set-aside.parquet")
    assert aside["prompt"].tolist() == ["a \\ud83d dog"]
    with pytest.warns(UserWarning, match="1 of 2 texts set aside, such as 1: holds half"):
        embedded = extract(*tiny, ["the cat", HALF], set_aside=True, progress=False)
    assert np.isfinite(embedded[0]).all() and np.isnan(embedded[1]).all()
    for call in (
        lambda: run(*tiny, ["the cat", HALF], tmp_path),
        lambda: extract(*tiny, ["the cat", HALF], progress=False),
        lambda: negative_log_likelihoods(*tiny, ["it"] * 2, ["sees", HALF], progress=False),
        lambda: WordFilter(tiny[1], ["cat", HALF]),
    ):
        with pytest.raises(ValueError, match=" 1 holds half a surrogate pair at character 2"):
            call()


def gpt2_judge(tokenizer):
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=2,
        eos_token_id=2,
    )  # fmt: skip
    return built(config)


@pytest.mark.parametrize("judge", [gpt2_judge, lambda _: tiny_lm()[0]], ids=["gpt2", "rope"])
def test_14_a_text_beyond_the_judges_context_is_refused_first_or_left_out(tiny, judge):
    """evaluate #532: an IndexError after all the generating, and silent with rotary positions."""
    _, tokenizer = tiny
    model, asked = judge(tokenizer), []
    scorer = Scorer("half", "1", lambda texts: asked.append(texts) or np.full(len(texts), 0.5))
    generations = pd.DataFrame(
        {
            "prompt_id": [0, 1],
            "prompt": ["the cat", "the cat sees a dog " * 10],
            "text": ["sees it", "and the bird eats " * 4],
        }
    )
    message = r"text 1 has 66 tokens, which exceed the context of .* \((32|64)\)"
    with pytest.raises(ValueError, match=message):
        judged(generations, [scorer], model, tokenizer, progress=False)
    assert asked == []
    with pytest.warns(UserWarning, match="1 of 2 texts set aside, such as 1: has 66 tokens"):
        found = judged(generations, [scorer], model, tokenizer, set_aside=True, progress=False)
    alone = judged(generations[:1], [scorer], model, tokenizer, progress=False)
    pd.testing.assert_frame_equal(found, alone)


def test_17_numbers_of_numpy_are_numbers(tiny, tmp_path):
    """DomainBed #115, reservoirpy #25: betas of np.arange were no JSON."""
    for beta in (1, 0.5):
        runs = {
            str(run(*tiny, ["it"], tmp_path, custom_generate=method).attrs["run"])
            for number in (beta, np.float64(beta), np.float32(beta), np.array([beta])[0])
            for method in [sl.SASA(tiny_boundary(), number, max_kl=number, seed=np.int64(3))]
        }
        assert len(runs) == 1  # the same number is the same run
    numbers = np.array([25, 20, 10, 3])
    same = Sampling(*numbers[:3], np.float32(0.5), np.float64(1), numbers[3])
    assert same == Sampling(25, 20, 10, 0.5, 1.0, 3)
    metadata = {"auc": np.float32(0.5), "n": np.int64(2), "layers": np.arange(2)}
    boundary = sl.Boundary(
        np.ones(32, np.float32), np.zeros(32, np.float32), np.float32(0.5), np.float64(1),
        np.int64(1), "mean", "tiny", metadata=metadata,
    )  # fmt: skip
    boundary.save(tmp_path / "b.safetensors")
    loaded = sl.Boundary.load(tmp_path / "b.safetensors")
    assert (loaded.scale, loaded.layer) == (0.5, 1)
    assert loaded.metadata == {"auc": 0.5, "n": 2, "layers": [0, 1]}


def test_18_the_processor_needs_no_pad_token(tiny):
    """transformers #22312: GPT-2 and Llama have none; `None.long()` was an AttributeError."""
    model, tokenizer = tiny
    ids = tokenizer("the cat", return_tensors="pt")["input_ids"]
    processor = sl.SASALogitsProcessor(model, tiny_boundary(), beta=1.0)
    scores = model(ids).logits[:, -1]
    expected = processor(ids, scores)
    assert expected.isfinite().sum() == 10
    model.generation_config.pad_token_id = model.config.pad_token_id = None
    torch.testing.assert_close(processor(ids, scores), expected)
    beams = model.generate(
        ids, attention_mask=torch.ones_like(ids), logits_processor=[processor], num_beams=2,
        max_new_tokens=4,
    )  # fmt: skip
    assert beams.shape[1] > 2


def test_20_a_calibration_on_separable_texts_is_finite_and_says_so(tiny):
    """lifelines #640: a slope of 4,914 from six texts that the margins tell apart."""
    boundary = tiny_boundary()
    words = ["the cat", "a dog", "it", "she", "a bird", "the tree"]
    margins = boundary.score_texts(*tiny, words)
    toxic = (margins < np.sort(margins)[3]).astype(float)

    def calibrated(toxic):
        rows = {"prompt": [""] * 6, "response": words, "group": words, "toxicity": toxic}
        return boundary.calibrated(*tiny, Dataset.from_dict(rows))

    with pytest.warns(UserWarning, match="6 texts separate the classes .* calibrate on more"):
        found = calibrated(toxic)
    assert 0 < found.slope * np.ptp(margins) / boundary.scale < 20
    # By Platt's targets of 3 and 3 texts, 4/5 and 1/5, no more is believed than log(4) on average.
    log_odds = found.slope * margins / boundary.scale + found.intercept
    assert np.abs(log_odds).mean() < np.log(4) + 0.5


def test_26_a_model_wrapped_by_peft_is_read_by_its_adapted_states():
    """peft #932: its base model is the whole model with its head."""
    (model, tokenizer), merged = tiny_lm(), tiny_lm()[0]
    lora = LoraConfig(
        r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    wrapped = get_peft_model(model, lora).eval()
    for adapted, plain in zip(
        wrapped.get_base_model().model.layers, merged.model.layers, strict=True
    ):
        with torch.no_grad():
            adapted.self_attn.q_proj.lora_B["default"].weight.mul_(5)
            change = adapted.self_attn.q_proj.get_delta_weight("default")
            plain.self_attn.q_proj.weight.add_(change)
    corpus = Dataset.from_dict(
        {
            "prompt": [""] * 8,
            "response": ["the cat", "a dog", "it sees", "she eats", "he", "a", "bird", "or"],
            "toxicity": [0.0] * 4 + [1.0] * 4,
        }
    )
    pair = ["the cat"], ["sees it"]
    for call in (
        lambda of: sl.Boundary.fit(of, tokenizer, corpus, progress=False).midpoint,
        lambda of: negative_log_likelihoods(of, tokenizer, *pair, progress=False)[0],
        lambda of: train_reward(of, tokenizer, corpus).rewards(["the cat"]),
        lambda of: tiny_boundary().of(of).score_texts(of, tokenizer, ["the cat"]),
    ):
        found, expected, without = call(wrapped), call(merged), call(tiny_lm()[0])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert np.abs(found - without).max() > 1e-4


def test_29_a_boundary_knows_its_model_by_its_states(tmp_path):
    """llama.cpp #8060: other weights of the same name were taken, the same by a path refused."""
    boundary = tiny_boundary()
    boundary.save(tmp_path / "b.safetensors")
    loaded = sl.Boundary.load(tmp_path / "b.safetensors")

    def renamed(model):
        model.name_or_path = "/models/tiny"
        return model

    def other(model):
        torch.manual_seed(5)
        for weight in model.parameters():
            torch.nn.init.normal_(weight)
        return model

    def hooked(model):
        model.model.layers[0].register_forward_hook(lambda *args: args[-1] + 0.1)
        return model

    for change, is_same in (
        (renamed, True), (torch.nn.Module.bfloat16, True), (other, False), (adapters, False),
        (hooked, False), (torch.nn.Module.train, True),
    ):  # fmt: skip
        model = change(tiny_lm()[0])
        for one in (boundary, loaded):
            with nullcontext() if is_same else pytest.raises(ValueError, match="other hidden st"):
                one.check_model(model)
    model = adapters(tiny_lm()[0])
    with model.disable_adapter():
        loaded.check_model(model)
    with pytest.raises(ValueError, match="another adapter, a hook"):
        sl.SASALogitsProcessor(model, loaded, beta=1.0)
