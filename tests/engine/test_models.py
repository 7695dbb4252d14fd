"""Loading models by name."""

import pytest
import torch
import transformers

import sasa_lib as sl
from sasa_lib.engine.identity import model_digest
from sasa_lib.engine.models import context_length


def test_an_embedded_model_speaks_english(smollm2):
    model, tokenizer = smollm2
    assert model.name_or_path == "smollm2-135m-instruct"
    assert model.dtype == torch.float32 and not model.training
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id is not None
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])


@pytest.fixture
def tiny_folder(tmp_path, smollm2):
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    smollm2[1].save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_local_folder_loads_under_its_name(tiny_folder):
    model, _ = sl.load_lm(tiny_folder, device="cpu", dtype="bfloat16")
    assert model.name_or_path == tiny_folder and model.dtype == torch.bfloat16


def test_unknown_names_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot load model 'no/such-model'.*gemma3-270m"):
        sl.load_lm("no/such-model")
    with pytest.raises(ValueError, match="unknown dtype 'float31'"):
        sl.load_lm("smollm2-135m-instruct", dtype="float31")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        sl.load_lm("smollm2-135m-instruct", device="gpu")


def test_a_digest_tells_weights_apart():
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    torch.manual_seed(0)
    first = transformers.LlamaForCausalLM(config)
    torch.manual_seed(0)
    again = transformers.LlamaForCausalLM(config)
    assert model_digest(first) == model_digest(again)
    with torch.no_grad():
        again.model.layers[0].mlp.up_proj.weight.add_(0.01)
    assert model_digest(first) != model_digest(again)


@pytest.mark.parametrize("fits", [True, False])
def test_a_model_is_spread_over_gpus_and_nothing_else(monkeypatch, tiny_folder, fits):
    load = transformers.AutoModelForCausalLM.from_pretrained

    def spread(source, *, dtype, device_map):
        model = load(source, dtype=dtype)
        model.to = None  # not to be moved
        asked.append(device_map)
        if fits:  # no weight beside the GPUs
            model.parameters = lambda: []
        return model

    asked = []
    monkeypatch.setattr(sl.models.AutoModelForCausalLM, "from_pretrained", spread)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if fits:
        model, _ = sl.load_lm(tiny_folder, device="balanced")
        assert model.lm_head.weight.dtype == torch.bfloat16
    else:
        with pytest.raises(ValueError, match=r"does not fit into the memory of 2 GPUs: give it"):
            sl.load_lm(tiny_folder, device="balanced")
    assert asked == ["balanced"]


def test_without_a_gpu_nothing_is_spread(tiny_folder):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    model, _ = sl.load_lm(tiny_folder, device="balanced")
    assert model.device.type in ("cpu", "mps") and not hasattr(model, "hf_device_map")


SMALL = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)


@pytest.mark.parametrize(
    ("name", "options", "length"),
    [
        ("Bert", dict(max_position_embeddings=12), 12),
        ("Roberta", dict(max_position_embeddings=14, pad_token_id=1), 12),
        ("XLMRoberta", dict(max_position_embeddings=14, pad_token_id=1), 12),
        ("GPT2", dict(n_positions=12), 12),
        ("OPT", dict(max_position_embeddings=12, ffn_dim=8, word_embed_proj_dim=8), 12),
        ("Mpt", dict(max_seq_len=12), 12),
        ("Mamba", {}, float("inf")),
        ("XLNet", dict(d_inner=8, d_head=4), float("inf")),
    ],
)
def test_a_model_takes_as_many_tokens_as_it_says_and_no_more(name, options, length):
    config = getattr(transformers, f"{name}Config")(**SMALL | options)
    model = getattr(transformers, f"{name}Model")(config).eval()
    assert context_length(model) == length
    if name in ("Bert", "Roberta", "XLMRoberta", "GPT2", "OPT"):  # what it says is what it takes
        model(input_ids=torch.full((1, length), 3))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, length + 1), 3))


def test_what_has_no_configuration_takes_any_number_of_tokens():
    assert context_length(torch.nn.Linear(2, 2)) == float("inf")
