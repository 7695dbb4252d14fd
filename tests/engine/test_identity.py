"""What a kept result depends on: whatever changes the result changes the key, nothing else does."""

import copy
import functools
import inspect
import itertools
import sys
import types
import warnings

import numpy as np
import peft
import pytest
import torch
from accelerate import dispatch_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lm import WORDS, tiny_boundary, tiny_lm
from tokenizers import normalizers
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)

import sasa_lib as sl
from sasa_lib.decoding import PlainSampling
from sasa_lib.decoding.baselines import (
    RAD,
    DExperts,
    MeanDifference,
    PromptOnly,
    RewardModel,
    SelfDebiasing,
    StaticBias,
    WordFilter,
)
from sasa_lib.engine.identity import described, key, model_digest, tokenizer_digest
from sasa_lib.evaluation import runs, sampling

MODEL, TOKENIZER = tiny_lm()
SAMPLING = sampling.Sampling(generations=2, max_new_tokens=4, seed=3)
IDS = torch.tensor([[3, 7, 5, 9, 4, 12]])
ATTENTION, ALL_LINEAR = ["q_proj", "v_proj"], ["q_proj", "v_proj", "down_proj"]


@pytest.fixture
def model():
    return copy.deepcopy(MODEL)


def folder(model=MODEL, tokenizer=TOKENIZER, sampling=SAMPLING, method=None):
    """Name that `runs.generate` gives a run, without the run."""
    facts = runs.what_it_depends_on(
        model, tokenizer, sampling, method="own", custom_generate=method or PlainSampling(),
        device=torch.device("cpu"),
    )  # fmt: skip
    return f"own-{key(facts, 12)}"


@torch.inference_mode()
def logits(model):
    return model(input_ids=IDS).logits


# --- Settings ------------------------------------------------------------------------------------

# None is the default of every setting; 3 does for those that are not here.
FITTING = {
    "early_stopping": True, "max_time": 9.5, "stop_strings": ["cat"], "do_sample": True,
    "use_mtp": True, "use_cache": False, "cache_implementation": "static",
    "cache_config": {"nbits": 4}, "temperature": 0.7, "top_p": 0.8, "min_p": 0.1, "top_h": 0.4,
    "typical_p": 0.9, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3, "repetition_penalty": 1.3,
    "encoder_repetition_penalty": 1.3, "length_penalty": 0.5, "bad_words_ids": [[4, 5]],
    "renormalize_logits": True, "remove_invalid_values": True,
    "exponential_decay_length_penalty": (5, 1.5), "suppress_tokens": [4],
    "begin_suppress_tokens": [4], "sequence_bias": [[[4], -1.0]], "token_healing": True,
    "guidance_scale": 1.5, "watermarking_config": {"bias": 2.0, "context_width": 1},
    "output_attentions": True, "output_hidden_states": True, "output_scores": True,
    "output_logits": True, "return_dict_in_generate": True, "eos_token_id": [2, 5],
    "is_assistant": True, "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.2, "assistant_ensemble_weight": 0.5,
    "speculation_type": "dynamic", "compile_config": {"dynamic": True}, "disable_compile": True,
    "continuous_batching_config": {"num_blocks": 4}, "low_memory": True, "penalty_alpha": 0.5,
    "dola_layers": "high", "diversity_penalty": 0.5, "constraints": [[4]],
    "force_words_ids": [[4]],
}  # fmt: skip
NO_SETTINGS = {
    "transformers_version": "the library's version, which the key holds of its own",
    "_from_model_config": "a note of where the settings came from",
}


@pytest.mark.parametrize("name", sorted(set(GenerationConfig().to_dict()) - set(NO_SETTINGS)))
def test_every_generation_setting_is_another_run(model, name):
    before = folder(model)
    assert getattr(model.generation_config, name) != FITTING.get(name, 3)
    setattr(model.generation_config, name, FITTING.get(name, 3))
    assert folder(model) != before


def test_the_folder_of_a_run_is_named_after_its_key(model, tmp_path):
    options = {"folder": tmp_path, "method": "own", "custom_generate": PlainSampling(5)}
    made = runs.generate(model, TOKENIZER, ["the cat"], SAMPLING, **options, progress=False)
    assert made.attrs["run"] == str(tmp_path / folder(model, method=PlainSampling(5)))


def test_every_sampling_parameter_is_another_run():
    changed = {
        "generations": 3, "max_new_tokens": 5, "top_k": 4, "top_p": 0.5, "temperature": 0.5,
        "seed": 4,
    }  # fmt: skip
    assert changed.keys() == inspect.signature(sampling.Sampling).parameters.keys()
    names = {folder(sampling=sampling.Sampling(**{name: value})) for name, value in changed.items()}
    assert len(names | {folder(sampling=sampling.Sampling())}) == len(changed) + 1
    same = sampling.Sampling(top_k=np.int64(10), temperature=np.float32(1), seed=np.int8(0))
    assert folder(sampling=same) == folder(sampling=sampling.Sampling())


# --- Weights -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_a_single_bit_of_any_weight_or_buffer_is_another_model(data, dtype):
    model = copy.deepcopy(MODEL).to(dtype)
    tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    tensor = tensors[data.draw(st.sampled_from(sorted(tensors)))].detach()
    raw = tensor.view(-1).view(torch.uint8)
    at, bit = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 7))
    before = model_digest(model)
    raw[at] ^= 1 << bit
    assert model_digest(model) != before
    raw[at] ^= 1 << bit
    assert model_digest(model) == before


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=2, unique=True))
def test_two_rows_in_each_others_place_are_another_model(rows):
    model = copy.deepcopy(MODEL)
    with torch.no_grad():
        weight = model.lm_head.weight
        weight[rows] = weight[rows[::-1]]
    assert model_digest(model) != model_digest(MODEL)


def test_two_tensors_in_each_others_place_are_another_model(model):
    attention = model.model.layers[0].self_attn
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj
    assert model_digest(model) != model_digest(MODEL)


def test_a_dtype_is_another_model():
    copies = [copy.deepcopy(MODEL).to(d) for d in (torch.float16, torch.bfloat16)]
    assert len({model_digest(m) for m in [MODEL, *copies]}) == 3
    assert model_digest(copies[0]) == model_digest(copy.deepcopy(MODEL).half())


def test_a_models_name_and_place_are_not_in_its_digest(model, tmp_path):
    model.save_pretrained(tmp_path / "one")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one").eval()
    loaded.save_pretrained(tmp_path / "two")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "two").eval()
    model.name_or_path = "other"
    assert model_digest(model) == model_digest(loaded) == model_digest(again) == model_digest(MODEL)
    assert folder(loaded) == folder(MODEL)


@pytest.mark.parametrize("rope", ["default", "dynamic", "longrope", "yarn", "linear"])
def test_reading_and_generating_leave_a_model_as_it_was(rope):
    ropes = {
        "default": {"rope_type": "default", "rope_theta": 1e4},
        "longrope": {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4, "original_max_position_embeddings": 16, "factor": 4.0,
        },
    }  # fmt: skip
    scaled = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0}
    config = LlamaConfig(
        vocab_size=21, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=8, max_position_embeddings=64 if rope == "longrope" else 16,
        rope_parameters=ropes.get(rope, scaled), pad_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    before = model_digest(model)
    for length in (4, 40, 8):
        ids = torch.full((1, length), 3)
        with torch.inference_mode():
            model(ids, output_hidden_states=True)
            assert model_digest(model) == before
    model.generate(ids, max_new_tokens=12, do_sample=True)
    assert model_digest(model) == before


def test_quantised_weights_are_in_the_digest(model):
    def quantised(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})

    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 3] += 0.02  # more than a step of int8
    one, two = quantised(model), quantised(other)
    assert not torch.equal(logits(one), logits(two))
    assert model_digest(one) == model_digest(quantised(model))
    assert len({model_digest(m) for m in (model, other, one, two)}) == 4


def test_a_weight_that_is_not_in_memory_is_refused(model):
    with pytest.raises(ValueError, match="not in memory"):
        model_digest(model.to("meta"))


def test_training_mode_is_another_model(model):
    assert model_digest(model.train()) != model_digest(MODEL)


# --- Adapters ------------------------------------------------------------------------------------

TUNERS = {
    "lora": peft.LoraConfig(r=4, target_modules=ALL_LINEAR, init_lora_weights=False),
    "rslora": peft.LoraConfig(
        r=4, target_modules=ATTENTION, init_lora_weights=False, use_rslora=True
    ),
    "dora": peft.LoraConfig(
        r=4, target_modules=ATTENTION, init_lora_weights=False, use_dora=True
    ),
    "embedding": peft.LoraConfig(r=4, target_modules=["embed_tokens"], init_lora_weights=False),
    "tokens": peft.LoraConfig(
        r=4, target_modules=ATTENTION, init_lora_weights=False, trainable_token_indices=[4, 7]
    ),
    "head": peft.LoraConfig(
        r=4, target_modules=ATTENTION, init_lora_weights=False, modules_to_save=["lm_head"]
    ),
    "ia3": peft.IA3Config(
        target_modules=ALL_LINEAR, feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
    "loha": peft.LoHaConfig(r=4, target_modules=ATTENTION, init_weights=False),
    "lokr": peft.LoKrConfig(r=4, target_modules=ATTENTION, init_weights=False),
    "oft": peft.OFTConfig(oft_block_size=8, target_modules=ATTENTION, init_weights=False),
    "layernorm": peft.LNTuningConfig(target_modules=["norm", "input_layernorm"]),
}  # fmt: skip


def adapted(name, *adapters):
    torch.manual_seed(1)
    model = peft.get_peft_model(copy.deepcopy(MODEL), TUNERS[name], adapter_name=adapters[0])
    for adapter in adapters[1:]:
        model.add_adapter(adapter, TUNERS[name])
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if any(f".{adapter}" in weight_name for adapter in adapters):
                weight.add_(torch.randn_like(weight) * 0.3)
    return model.eval()


def weights_of(model, adapter):
    return [
        weight
        for name, weight in model.named_parameters()
        if f".{adapter}." in f"{name}." and "original_module" not in name
    ]


@pytest.mark.parametrize("name", TUNERS)
def test_every_weight_of_an_adapter_that_acts_is_in_the_digest(name):
    model = adapted(name, "one")
    before = model_digest(model)
    assert not torch.allclose(logits(model), logits(MODEL), atol=1e-3)
    assert before != model_digest(MODEL)
    weights = weights_of(model, "one")
    assert weights
    for weight in weights:
        raw = weight.detach().view(-1).view(torch.uint8)
        raw[2] ^= 1
        assert model_digest(model) != before
        raw[2] ^= 1
    assert model_digest(model) == before


@pytest.mark.parametrize("name", sorted(set(TUNERS) - {"layernorm"}))
def test_adapters_that_are_told_apart_by_their_logits_are_by_their_digests(name):
    model = adapted(name, "one", "two")
    seen = {}

    def look(state):
        seen[state] = model_digest(model), logits(model)

    look("one")
    model.set_adapter("two")
    look("two")
    with model.disable_adapter():
        look("none")
    look("two again")
    model.set_adapter("one")
    look("one again")
    model.merge_adapter()
    look("one, merged")
    with model.disable_adapter():
        look("merged, disabled")
    model.set_adapter("one")
    for state in ("one", "two"):
        assert seen[state][0] == seen[f"{state} again"][0]
    for (a, (one, of_one)), (b, (two, of_two)) in itertools.combinations(seen.items(), 2):
        if one == two:
            assert torch.allclose(of_one, of_two, atol=1e-4), f"{a} and {b} are one"


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "loha", "head", "tokens"])
def test_a_silent_adapters_weights_are_not_in_the_digest(name):
    model = adapted(name, "one", "two")
    model.set_adapter("one")
    before, of_one = model_digest(model), logits(model)
    with torch.no_grad():
        for weight in weights_of(model, "two"):
            weight.add_(1.0)
    assert torch.equal(logits(model), of_one)
    assert model_digest(model) == before
    model.delete_adapter("two")
    assert model_digest(model) == before
    if name != "tokens":  # whose wrapper holds the embedding twice
        with model.disable_adapter():
            assert model_digest(model) == model_digest(MODEL)


def test_adapters_together_or_scaled_are_others():
    model = adapted("lora", "one", "two")
    digests = [model_digest(model)]
    model.base_model.set_adapter(["one", "two"])
    digests.append(model_digest(model))
    for layer in model.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.scale_layer(0.5)
    digests.append(model_digest(model))
    assert len(set(digests)) == 3


def test_an_unloaded_adapter_leaves_the_model_that_was_and_a_merged_one_does_not():
    model = adapted("lora", "one")
    merged = copy.deepcopy(model).merge_and_unload()
    assert model_digest(model.unload()) == model_digest(MODEL)
    assert model_digest(merged) not in (model_digest(MODEL), model_digest(adapted("lora", "one")))


def test_adapters_that_transformers_adds_are_told_apart(model, tmp_path, monkeypatch):
    # It wants a later peft than there need be for this.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.18.0")
    adapted("lora", "one", "two").save_pretrained(tmp_path)
    for name in ("one", "two"):
        model.load_adapter(str(tmp_path / name), adapter_name=name)
    model.eval()
    digests = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        digests[name] = model_digest(model)
    model.set_adapter("one")
    assert model_digest(model) == digests["one"] != digests["two"]
    model.disable_adapters()
    assert torch.equal(logits(model), logits(MODEL))
    assert model_digest(model) == model_digest(MODEL)
    model.enable_adapters()
    assert model_digest(model) == digests["one"] != model_digest(MODEL)


# --- Hooks and replaced code ---------------------------------------------------------------------


class Steer:
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, module, args, output):
        return output * self.strength

    def method(self, module, args, output):
        return output * self.strength


def closure(tensor):
    return lambda module, args, output: output + tensor


def scaled_by(module, args, output, strength=1.0):
    return output * strength


HOOKS = {
    "lambda": [lambda m, a, o: o * 2, lambda m, a, o: o * 3],
    "closure over a tensor": [closure(torch.ones(32)), closure(torch.arange(32.0))],
    "partial": [
        functools.partial(scaled_by, strength=2.0),
        functools.partial(scaled_by, strength=3.0),
    ],
    "bound method": [Steer(2.0).method, Steer(3.0).method],
    "object": [Steer(2.0), Steer(3.0)],
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("place", ["model.layers.1.mlp", "model.norm"])
def test_a_hook_is_another_run_until_it_is_removed(model, kind, place):
    names = [folder(model)]
    for hook in HOOKS[kind]:
        handle = model.get_submodule(place).register_forward_hook(hook)
        names.append(folder(model))
        assert folder(model) == names[-1]
        handle.remove()
        assert folder(model) == names[0]
    assert len(set(names)) == 3


def test_a_hook_elsewhere_or_before_is_another_run(model):
    names = [folder(model)]
    for place in ("model.layers.0.mlp", "model.layers.1.mlp"):
        for register in ("register_forward_hook", "register_forward_pre_hook"):
            handle = getattr(model.get_submodule(place), register)(HOOKS["object"][0])
            names.append(folder(model))
            handle.remove()
    assert len(set(names)) == 5


def test_hooks_in_another_order_are_another_run(model):
    names = []
    for order in ([0, 1], [1, 0]):
        handles = [model.model.norm.register_forward_hook(HOOKS["lambda"][i]) for i in order]
        names.append(folder(model))
        for handle in handles:
            handle.remove()
    assert names[0] != names[1]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_forward_put_in_anothers_place_is_another_run(model, wrapped):
    module = model.model.layers[0].mlp
    forward = module.forward

    def replaced(strength):
        def instead(hidden):
            return forward(hidden) * strength

        return functools.wraps(forward)(instead) if wrapped else instead

    names = [folder(model)]
    for strength in (2.0, 3.0):
        module.forward = replaced(strength)
        names.append(folder(model))
    del module.forward
    assert len(set(names)) == 3
    assert folder(model) == names[0]


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, weight):
        return weight * self.factor


def test_parametrised_and_pruned_weights_are_other_models(model):
    layer = model.model.layers[0].mlp.up_proj
    parametrize.register_parametrization(layer, "weight", Scale(2.0))
    assert model_digest(model) != model_digest(MODEL)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert model_digest(model) == model_digest(MODEL)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    assert model_digest(model) != model_digest(MODEL)


class Doubled(nn.Module):
    """A control vector around a block, as steering libraries put it there."""

    def __init__(self, block, vector):
        super().__init__()
        self.block, self.vector = block, vector

    def forward(self, *args, **kwargs):
        return self.block(*args, **kwargs) + self.vector


def other_class(strength):
    def change(model):
        class Other(type(model.model.norm)):
            def forward(self, hidden):
                return super().forward(hidden) * strength

        model.model.norm.__class__ = Other

    return change


def parametrised(factor):
    return lambda model: parametrize.register_parametrization(
        model.model.layers[0].mlp.up_proj, "weight", Scale(factor)
    )


def block(vector):
    def change(model):
        model.model.layers[1] = Doubled(model.model.layers[1], vector)

    return change


def attribute(place, name, value):
    return lambda model: setattr(model.get_submodule(place), name, value)


CHANGES = {
    "activation": [attribute("model.layers.0.mlp", "act_fn", f) for f in (
        nn.ReLU(), nn.LeakyReLU(0.3), nn.LeakyReLU(0.6),
    )],
    "attribute": [
        attribute("model.layers.1.self_attn", "scaling", 0.1),
        attribute("model.layers.1.self_attn", "scaling", 0.9),
        attribute("model.norm", "variance_epsilon", 1.0),
    ],
    "class": [other_class(2.0), other_class(3.0)],
    "parametrisation": [parametrised(2.0), parametrised(3.0)],
    "wrapper": [block(torch.ones(32)), block(torch.arange(32.0))],
    "part left out": [lambda model: setattr(model.model.layers[0], "mlp", nn.Identity())],
    "dropout": [lambda model: model.model.layers[0].train()],
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_module_is_another_model(kind):
    models = [copy.deepcopy(MODEL) for _ in CHANGES[kind]]
    for model, change in zip(models, CHANGES[kind], strict=True):
        change(model)
    assert len({model_digest(m) for m in [MODEL, *models]}) == len(models) + 1
    assert model_digest(copy.deepcopy(models[0])) == model_digest(models[0])


def test_a_hook_on_all_modules_is_another_model():
    handle = nn.modules.module.register_module_forward_hook(HOOKS["lambda"][0])
    with_hook = model_digest(MODEL)
    handle.remove()
    assert with_hook != model_digest(MODEL)


def test_an_attention_function_of_the_callers_is_known_by_its_code(model):
    digests = []
    for strength in (1.0, 2.0, 1.0):

        def attention(*args, strength=strength, **kwargs):
            raise NotImplementedError(strength)

        AttentionInterface.register("own_attention", attention)
        model.config._attn_implementation_internal = "own_attention"
        digests.append(model_digest(model))
    assert digests[0] == digests[2] != digests[1]


def test_what_moves_a_model_between_devices_is_not_in_its_digest(model):
    placed = dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    assert any(hasattr(module, "_hf_hook") for module in placed.modules())
    assert model_digest(placed) == model_digest(MODEL)


class Unpicklable:
    __slots__ = ("strength",)

    def __init__(self, strength):
        self.strength = strength

    def __call__(self, module, args, output):
        return output * self.strength

    def __reduce_ex__(self, protocol):
        raise TypeError("no pickle")


def test_a_hook_that_nothing_tells_from_others_is_said_and_never_confused(model):
    names = []
    hooks = [Unpicklable(2.0), Unpicklable(3.0)]
    for hook in hooks:
        handle = model.model.norm.register_forward_hook(hook)
        with pytest.warns(UserWarning, match="Unpicklable.*cannot be told from others"):
            names.append(folder(model))
        assert folder(model) == names[-1]
        handle.remove()
    assert len({*names, folder(model)}) == 3


# --- Methods -------------------------------------------------------------------------------------


def boundary(seed):
    normal = np.random.default_rng(seed).normal(size=32).astype(np.float32)
    normal /= np.linalg.norm(normal)
    return sl.Boundary(normal, np.zeros(32, np.float32), 1.0, 1.0, 1, "mean", "tiny").of(MODEL)


def reward(bias=0.5, weight=0.1):
    return RewardModel(MODEL, TOKENIZER, np.full(32, weight, np.float32), bias)


def other_tokenizer():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.add_tokens(["fish"])
    return tokenizer


ONE, OTHER = tiny_boundary(), boundary(1)
SECOND = copy.deepcopy(MODEL)
SECOND.lm_head.weight.data = SECOND.lm_head.weight.data + 0.1
SELF, FILTER = SelfDebiasing(TOKENIZER), WordFilter(TOKENIZER, ["cat"])
# The arguments that make one, and for every parameter another value, with what that needs.
METHODS = {
    sl.SASA: (
        {"boundary": ONE, "beta": 1.0},
        {
            "boundary": [OTHER, [(ONE, 1.0), (OTHER, 1.0)]], "beta": [2.0], "scaled": [False],
            "form": ["softmax", "posterior"], "phrase": ["response", "text"], "max_kl": [0.5],
            "max_candidates": [20], "seed": [0, 1],
        },
    ),
    sl.BestOf: (
        {"boundary": ONE},
        {
            "boundary": [OTHER, [(ONE, 2.0)], [(ONE, 1.0), (OTHER, 1.0)]], "n": [2], "seed": [0, 1],
            "then": [sl.SASA(ONE, 1.0), sl.SASA(ONE, 2.0), SELF, FILTER],
        },
    ),
    sl.Accept: (
        {"boundary": ONE},
        {
            "boundary": [OTHER, [(ONE, 0.5), (OTHER, 0.0)]], "above": [0.5], "at_most": [4],
            "seed": [0, 1], "then": [sl.SASA(ONE, 1.0), SELF, FILTER],
        },
    ),
    WordFilter: (
        {"tokenizer": TOKENIZER, "words": ["cat", "dog"]},
        {
            "tokenizer": [other_tokenizer()], "words": [["cat"], ["cat", "tree"]], "seed": [0, 1],
            "then": [sl.SASA(ONE, 1.0), SELF],
        },
    ),
    RAD: (
        {"reward": reward(), "tokenizer": TOKENIZER, "beta": 10.0},
        {
            "reward": [reward(bias=0.4), reward(weight=0.2)], "tokenizer": [other_tokenizer()],
            "beta": [20.0], "max_candidates": [20], "seed": [0, 1],
        },
    ),
    SelfDebiasing: (
        {"tokenizer": TOKENIZER},
        {
            "tokenizer": [], "attributes": [["toxicity"], ["the cat"]], "decay": [10.0],
            "seed": [0, 1],
        },
    ),
    PlainSampling: ({}, {"seed": [0, 1]}),
    StaticBias: (
        {"boundary": ONE, "beta": 1.0},
        {"boundary": [OTHER], "beta": [2.0], "form": ["posterior"], "seed": [0, 1]},
    ),
    PromptOnly: (
        {"tokenizer": TOKENIZER}, {"tokenizer": [], "sentence": ["the cat"], "seed": [0, 1]}
    ),
    MeanDifference: (
        {"difference": np.ones(32), "layer": 1, "alpha": 1.0},
        {"difference": [np.zeros(32)], "layer": [0], "alpha": [2.0], "seed": [0, 1]},
    ),
    DExperts: (
        {"expert": MODEL, "antiexpert": MODEL, "alpha": 1.0},
        {"expert": [None, SECOND], "antiexpert": [SECOND], "alpha": [2.0], "seed": [0, 1]},
    ),
}  # fmt: skip
# Parameters that change nothing, or only beside others.
APART = {(sl.SASA, "record"): "keeps a trace", (sl.SASA, "decay"): "only with another phrase"}


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_every_parameter_of_a_method_is_another_run(kind):
    given, others = METHODS[kind]
    apart = {name for of, name in APART if of is kind}
    assert others.keys() | apart == inspect.signature(kind).parameters.keys()
    names = [key(described(kind(**given)))]
    for name, values in others.items():
        for value in values:
            options = given | {name: value}
            if not isinstance(options.get("boundary", ONE), sl.Boundary):
                options.pop("beta", None)
                options.pop("above", None)
            names.append(key(described(kind(**options))))
    assert len(set(names)) == len(names)
    assert key(described(kind(**given))) == names[0]


def test_what_a_method_takes_beside_others_is_another_run():
    names = {
        key(described(sl.SASA(ONE, 1.0, phrase="response", decay=decay))) for decay in (0.5, 1.0)
    }
    assert len(names) == 2
    assert key(described(sl.SASA(ONE, 1.0, record=True))) == key(described(sl.SASA(ONE, 1.0)))


def test_a_method_is_another_by_the_class_of_what_samples():
    class Other(PlainSampling):
        pass

    assert key(described(sl.BestOf(ONE, then=Other()))) != key(described(sl.BestOf(ONE)))


def test_a_reward_model_is_another_by_its_weights():
    changed = copy.deepcopy(MODEL)
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1
    other = RewardModel(changed, TOKENIZER, np.full(32, 0.1, np.float32), 0.5)
    one, two = (RAD(r, TOKENIZER, 10.0) for r in (reward(), other))
    assert key(described(one)) != key(described(two))


def test_a_users_function_is_known_by_its_code_and_what_it_refers_to():
    def sampler(strength):
        def method(model, input_ids, logits_processor, stopping_criteria, generation_config, **kw):
            return input_ids * strength

        return method

    names = [folder(method=sampler(strength)) for strength in (1.0, 2.0, 1.0)]
    assert names[0] == names[2] != names[1]
    assert folder(method=functools.partial(sampler(1.0), strength=3)) not in names


CODE = {
    "a helper method": """
class Method:
    def __call__(self, ids): return self.helper(ids)
    def helper(self, ids): return ids * {}
method = Method()""",
    "an inherited method": """
class Base:
    def __call__(self, ids): return ids * {}
class Method(Base): pass
method = Method()""",
    "a class that a function uses": """
class Helper:
    @staticmethod
    def go(ids): return ids * {}
def method(ids): return Helper.go(ids)""",
    "an attribute of a class": """
class Method:
    strength = {}
    def __call__(self, ids): return ids * self.strength
method = Method()""",
    "a property": """
class Method:
    @property
    def strength(self): return {}
    def __call__(self, ids): return ids * self.strength
method = Method()""",
    "slots": """
class Method:
    __slots__ = ("strength",)
    def __call__(self, ids): return ids * self.strength
method = Method()
method.strength = {}""",
    "an attribute of a function": """
def method(ids): return ids * method.strength
method.strength = {}""",
    "a constant like the docstring": """
def method(ids):
    "{0}"
    return "{0}" """,
    "a function that refers to itself": """
def method(ids): return ids * {} if len(ids) < 2 else method(ids[1:])""",
    "the name of an argument": """
def method(ids, strength_{0}=1): return ids""",
    "a method of a decoder": """
from sasa_lib.decoding import PlainSampling
class Method(PlainSampling):
    def draw(self, ids): return ids * {}
method = Method(0)""",
}


def made_of(code, number):
    space = {"__name__": "research"}
    exec(code.format(number), space)
    return space["method"]


@pytest.mark.parametrize("kind", CODE)
def test_code_that_a_method_runs_is_in_its_key(kind):
    keys = [key(described(made_of(CODE[kind], number))) for number in (1, 2, 1)]
    assert keys[0] == keys[2] != keys[1]


def test_comments_docstrings_and_lines_are_not_in_a_key():
    plain = "def method(ids):\n    return ids * {}"
    commented = "\n\ndef method(ids):\n    'Twice.'\n\n    # Why.\n    return ids * {}"
    assert key(described(made_of(plain, 2))) == key(described(made_of(commented, 2)))


def test_code_in_the_callers_own_modules_is_in_the_key_of_what_uses_it(monkeypatch):
    def method_with(number):
        helpers = types.ModuleType("helpers")
        exec(
            f"def scale(ids): return ids * {number}\ndef unused(): return {number + 1}",
            vars(helpers),
        )
        monkeypatch.setitem(sys.modules, "helpers", helpers)
        return made_of("import helpers\ndef method(ids): return helpers.scale(ids)", 0)

    keys = [key(described(method_with(number))) for number in (1, 2, 1)]
    assert keys[0] == keys[2] != keys[1]


def test_much_that_refers_to_much_is_described_in_time():
    lines = ["class C0:\n    def go(self): return {}"]
    for i in range(1, 60):
        users = "; ".join(f"C{j}().go()" for j in range(i))
        lines.append(f"class C{i}:\n    def go(self): {users}")
    code = "\n".join([*lines, "method = C59()"])
    assert key(described(made_of(code, 1))) != key(described(made_of(code, 2)))


# --- Tokenizers ----------------------------------------------------------------------------------


def test_whatever_tokenises_otherwise_is_another_run():
    def changed(change):
        tokenizer = copy.deepcopy(TOKENIZER)
        change(tokenizer)
        return folder(tokenizer=tokenizer)

    changes = [
        lambda t: None,
        lambda t: t.add_tokens(["fish"]),
        lambda t: t.add_special_tokens({"additional_special_tokens": ["<x>"]}),
        lambda t: setattr(t.backend_tokenizer, "normalizer", normalizers.Lowercase()),
        lambda t: setattr(t, "pad_token", "</s>"),
        lambda t: setattr(t, "eos_token", "<pad>"),
        lambda t: setattr(t, "split_special_tokens", True),
    ]
    assert len({changed(change) for change in changes}) == len(changes)


def test_using_and_moving_a_tokenizer_leaves_it_as_it_was(tmp_path):
    tokenizer = copy.deepcopy(TOKENIZER)
    before = tokenizer_digest(tokenizer)
    tokenizer(WORDS[:3], padding="max_length", max_length=9, truncation=True)
    tokenizer(["the cat", "it"], padding=True, pad_to_multiple_of=8)
    tokenizer.padding_side = "left"
    assert tokenizer_digest(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(type(tokenizer).from_pretrained(tmp_path)) == before


def test_what_generate_returns_by_the_models_own_setting_does_not_matter(model, tmp_path):
    options = {"method": "plain", "progress": False}
    expected = runs.generate(MODEL, TOKENIZER, ["it"], SAMPLING, folder=tmp_path, **options)
    model.generation_config.return_dict_in_generate = True
    made = runs.generate(model, TOKENIZER, ["it"], SAMPLING, folder=tmp_path, **options)
    assert made["text"].tolist() == expected["text"].tolist()
    assert made.attrs["run"] != expected.attrs["run"]


def test_a_hook_that_calls_a_librarys_function_is_known_by_the_librarys_version(model, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "sasa_lib.engine.identity._function", lambda f, inside: seen.append(f) or "own"
    )

    def seeded(module, args, output):
        set_seed(3)

    model.model.norm.register_forward_hook(seeded)
    model_digest(model)
    assert seen == [seeded]
    described(set_seed)
    assert seen == [seeded]
