"""The plan: counts against independent ones, what it refuses, and the paper's profile offline."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "scripts"))
import plan  # noqa: E402
import roofline  # noqa: E402

import notebooks  # noqa: E402

LLAMA_3 = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network, and the plan is written to a folder of the test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(notebooks, "PROJECT", tmp_path)
    return tmp_path


@pytest.fixture
def llama():
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=96, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.name_or_path = "tiny"
    return model


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        plan.main(list(arguments))
    return stopped.value.code


def parameters(**changed):
    return plan.settle("paper", []) | changed


def hours(size, values, prompts=1200):
    table = roofline.estimate(size, size, values, (prompts, 14), (1000, 68))
    return table.set_index("method")["H100 SXM h"]


@pytest.mark.parametrize(("cached", "tokens", "heads"), [(0, 7, 7), (5, 1, 1), (5, 3, 1)])
def test_flops_are_those_of_a_forward_pass(llama, cached, tokens, heads):
    ids = torch.randint(100, (2, cached + tokens))
    past = llama(ids[:, :cached], use_cache=True).past_key_values if cached else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        llama(ids[:, cached:], cache=past, logits_to_keep=heads)
    expected = roofline.Pass(roofline.size_of(llama, 0.5), 1, 2, tokens, cached, 4, heads).flops
    assert counter.get_total_flops() == expected


def test_flops_of_sasa_are_those_of_its_decoder(llama):
    boundary = plan.sl.Boundary(
        torch.ones(64).numpy() / 8, torch.zeros(64).numpy(), 1.0, 1.0, 2, "mean", "tiny"
    )
    values = {
        "n_generations": 5, "max_new_tokens": 6, "top_k": 8, "debiased": ["toxicity"],
        "beta": [1.0], "beta_posterior": [1.0], "beta_published": [], "beta_rad": [], "decay": [],
    }  # fmt: skip
    passes = roofline.method_passes(roofline.size_of(llama, 2), values, 1, 7, batch=5)
    for method, decoder in (
        ("plain", plan.sl.decoding.PlainSampling(seed=0)),
        ("sasa", plan.sl.SASA(boundary, beta=1.0, seed=0)),
    ):
        # Once a model SASA looks which way of decoding is right for it.
        llama.generate(torch.arange(10, 12)[None], custom_generate=decoder, max_new_tokens=1)
        with FlopCounterMode(display=False) as counter:
            llama.generate(
                torch.arange(10, 17)[None], attention_mask=torch.ones(1, 7).long(),
                custom_generate=decoder, do_sample=True, top_k=8, max_new_tokens=6,
                min_new_tokens=6, num_return_sequences=5, pad_token_id=0,
            )  # fmt: skip
        expected = sum(p.times * p.flops for p in passes[method][1])
        # Once a call SASA compares the head with the model's own logits, and all 8 candidates of
        # 5 sequences have a margin at each of 6 steps; the plan leaves out both.
        expected += 2 * 64 * (100 + 8 * 5 * 6) if method == "sasa" else 0
        assert expected == pytest.approx(counter.get_total_flops(), rel=1e-6), method


@pytest.mark.parametrize(
    ("name", "count", "layer", "stop"),
    [
        ("gpt2-large", 774_030_080, 14, 36),
        ("gpt2-xl", 1_557_611_200, 19, 48),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616, 13, 13),
        (LLAMA_3, 8_030_261_248, 13, 13),
    ],
)
def test_the_papers_models_have_their_published_sizes(name, count, layer, stop):
    model, source = plan.resolve(name, torch.bfloat16)
    assert model.num_parameters() == count
    assert source == "published architecture; hub not reachable"
    size = roofline.size_of(model, 0.4)
    assert (size.layer, size.stop, size.item, size.obstacle) == (layer, stop, 2, None)


@pytest.mark.parametrize("name", plan.models.EMBEDDED)
def test_the_embedded_models_have_the_sizes_written_down(name, monkeypatch, tmp_path):
    folder = plan.cache_dir() / "models" / name
    if not folder.is_dir():
        pytest.skip(f"{name} was not fetched")
    model, source = plan.resolve(name, torch.bfloat16)
    monkeypatch.setattr(plan, "cache_dir", lambda: tmp_path)
    written, other = plan.resolve(name, torch.bfloat16)
    assert (source, other) == ("local files", "published architecture; not fetched yet")
    assert roofline.size_of(model, 0.4) == roofline.size_of(written, 0.4)
    assert model.num_parameters() == written.num_parameters()


@pytest.mark.parametrize(
    "overrides",
    [[], ["MODEL=meta-llama/Llama-2-7b-hf"], [f"MODEL={LLAMA_3}"],
     ["SUBSET=nontoxic", "N_PROMPTS=10000"]],
)  # fmt: skip
def test_the_papers_profile_passes_offline(offline, capsys, overrides):
    assert run("--profile", "paper", "PROFILE=paper", *overrides) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in notebooks.names())
    assert "WRONG" not in out
    assert "NOT CHECKED  google/civil_comments: hub not reachable" in out
    assert "NOT CHECKED  allenai/real-toxicity-prompts: hub not reachable" in out
    table = pd.read_csv(offline / "runs" / "paper" / "plan.csv").set_index("method")
    assert len(table) == 12
    assert (table["PFLOP"] > 0).all() and (table["A100 80GB h"] > table["H100 SXM h"]).all()
    # Nothing was settled for `make run`, which would start anew.
    assert [path.name for path in (offline / "runs" / "paper").iterdir()] == ["plan.csv"]


def test_what_is_wrong_is_said_in_a_sentence(capsys, tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("text\nHello there\n")
    for override, sentence in (
        ("MODEL=gpt2-lrage", r"cannot resolve model 'gpt2-lrage': no folder, hub not reachable"),
        ("LAYER=40", r"gpt2-large has no layer 40"),
        ("CORPUS=jigsaw", r"unknown corpus 'jigsaw'; known are"),
        ("ATTRIBUTE=rudeness", r"the corpus has no attribute 'rudeness'; it has toxicity"),
        ("PROMPTS=jokes", r"unknown prompt set 'jokes'; known are"),
        ("SUBSET=easy", r"rtp has no subset 'easy'; known are toxic"),
        ("SCORERS=minilmm", r"unknown scorer 'minilmm'"),
        ("TOP_P=2", r"top_p must be a finite number above 0 and at most 1"),
        ("N_PROMPTS=0", r"n_prompts must be at least 1"),
        ("DTYPE=float64", r"no GPU's speed is known for dtype 'float64'"),
        (f"PROMPTS_PATH={file}", r"this is not RealToxicityPrompts .*: it has no column 'prompt'"),
    ):
        assert run("--profile", "paper", override) == 1
        out = capsys.readouterr().out
        assert len(re.findall(rf"^WRONG  .*{sentence}", out, re.MULTILINE)) >= 1, override
        assert "Traceback" not in out
    message = "unknown parameter 'BETTA'; did you mean BETA? known are AT_MOST"
    assert str(run("--profile", "paper", "BETTA=1")).startswith(message)


def test_a_column_that_the_hub_lacks_is_named(monkeypatch):
    monkeypatch.setattr(plan.HfApi, "dataset_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(plan, "load_dataset", lambda *args, **kwargs: iter([{"input": "x"}]))
    with pytest.raises(ValueError, match="ibm/AttaQ has no column 'label'; it has input"):
        plan.find_prompts("attaq", None, None)


def test_a_local_copy_is_read(rtp_path):
    number, tokens, why = plan.find_prompts("rtp", str(rtp_path), "challenging")
    assert number > 0 and 5 < tokens < 30 and why is None
    values = parameters(corpus="rtp", corpus_path=str(rtp_path), max_examples=100)
    assert plan.find_corpus(values, "corpus")[0] == 100


def test_twice_the_prompts_take_twice_the_hours():
    size = roofline.size_of(plan.resolve(LLAMA_3, torch.bfloat16)[0], 0.4)
    values = parameters()
    once, twice = hours(size, values), hours(size, values, 2400)
    split = [method for method in once.index if method not in ("embeddings", "reward head")]
    assert (twice[split] / once[split]).tolist() == pytest.approx([2.0] * len(split))
    assert twice["embeddings"] == once["embeddings"]


def test_what_computes_more_costs_more():
    values = parameters(beta=[1.0], beta_posterior=[1.0], beta_published=[1.0], beta_rad=[1.0])
    model, _ = plan.resolve(LLAMA_3, torch.bfloat16)
    early, late = (hours(roofline.size_of(model, layer), values) for layer in (0.4, -1))
    assert early["plain"] < early["sasa-posterior"] < early["sasa"] < early["sasa-published"]
    assert late["sasa"] == pytest.approx(early["sasa-published"])
    assert early["rad"] > early["sasa-published"]
    few = hours(roofline.size_of(model, 0.4), values | {"top_k": 2})
    assert few["sasa"] < early["sasa"] and few["plain"] == early["plain"]
