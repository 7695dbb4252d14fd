"""A boundary as a folder and as a repository of the hub, without a network."""

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HTTPError, RemoteEntryNotFoundError
from tiny_lm import tiny_boundary, tiny_lm

import sasa_lib as sl
from sasa_lib.subspace import sharing


@pytest.fixture
def boundary():
    toxic = np.arange(40) % 2 == 0
    embeddings = np.random.default_rng(0).normal(size=(40, 8)) + np.where(toxic[:, None], 1.0, 0.0)
    tried = {"layer": 3, "pooling": "mean", "covariance": "oas", "auc": 0.9, "chosen": True}
    return sl.Boundary.from_embeddings(
        embeddings, toxic, layer=3, pooling="mean", model="smollm2-135m-instruct",
        covariance="oas",
        metadata={
            "attribute": "toxicity", "threshold": 0.5, "held_out_auc": 0.8768,
            "tried": [tried | {"standard_error": 0.01}],
        },
    )  # fmt: skip


def test_a_folder_gives_the_same_boundary_back(boundary, tmp_path):
    boundary.save_pretrained(tmp_path / "new" / "shared")
    loaded = sl.Boundary.from_pretrained(tmp_path / "new" / "shared")
    assert loaded.fingerprint() == boundary.fingerprint() and loaded.metadata == boundary.metadata
    names = sorted(path.name for path in (tmp_path / "new" / "shared").iterdir())
    assert names == ["README.md", "boundary.safetensors"]
    path = tmp_path / "new" / "shared" / "boundary.safetensors"
    assert sl.Boundary.load(path).fingerprint() == boundary.fingerprint()


def test_the_card_says_what_the_metadata_say(boundary, tmp_path):
    boundary.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.library_name == "sasa_lib" and "sasa" in card.data.tags
    assert card.data.license is None and "None is given here" in card.text
    for said in (
        "| base model | smollm2-135m-instruct |", "| layer | 3 ", "| pooling | mean |",
        "| covariance | oas |", "| value | toxicity above 0.5 |",
        "| training texts | 20 nontoxic, 20 toxic |", "| AUC on held-out texts | 0.877 |",
        "among 1 combinations", f'from_pretrained("{tmp_path}", beta=1.0)',
    ):  # fmt: skip
        assert said in card.text
    assert 'custom_generate="' not in card.text
    code = card.text.partition("```python\n")[2].partition("```")[0]
    assert len(compile(code, "card", "exec").co_code) and len(code.strip().splitlines()) == 7

    boundary.save_pretrained(tmp_path, license="apache-2.0")
    assert ModelCard.load(tmp_path / "README.md").data.license == "apache-2.0"


def test_a_boundary_without_metadata_on_a_model_in_a_folder_has_a_card_too(tmp_path):
    boundary = sl.Boundary(
        np.ones(8, np.float32), np.zeros(8, np.float32), 1, 1, 3, "last", "/models/mine"
    )
    boundary.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model is None and 'load_lm("/models/mine")' in card.text
    assert "None |" not in card.text


class Hub:
    """Stands for HfApi and records what it is asked."""

    calls: list

    def __init__(self, token):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        files = {
            str(path.relative_to(folder_path)): path.read_bytes()
            for path in Path(folder_path).rglob("*")
            if path.is_file()
        }
        self.calls.append(("upload", repo_id, files, commit_message))
        return type("Commit", (), {"commit_url": "where-it-is"})


def test_what_is_pushed_is_what_is_saved(boundary, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "calls", [], raising=False)
    monkeypatch.setattr(sharing, "HfApi", Hub)
    where = boundary.push_to_hub("me/it", private=True, token="secret", decoder=True)
    token, create, (_, repo_id, files, message) = Hub.calls
    assert where == "where-it-is" and repo_id == "me/it" and message == "Upload boundary"
    assert token == ("token", "secret")
    assert create == ("create", "me/it", {"private": True, "exist_ok": True})
    assert sorted(files) == ["README.md", "boundary.safetensors", "custom_generate/generate.py"]
    assert b'from_pretrained("me/it", beta=1.0)' in files["README.md"]
    assert b'custom_generate="me/it"' in files["README.md"]
    (tmp_path / "boundary.safetensors").write_bytes(files["boundary.safetensors"])
    assert sl.Boundary.from_pretrained(tmp_path).fingerprint() == boundary.fingerprint()


def test_a_repository_is_downloaded(boundary, tmp_path, monkeypatch):
    boundary.save_pretrained(tmp_path)
    asked = []

    def download(*arguments, **options):
        asked.append((arguments, options))
        return str(tmp_path / "boundary.safetensors")

    monkeypatch.setattr(sharing, "hf_hub_download", download)
    loaded = sl.Boundary.from_pretrained("me/it", revision="v1")
    assert loaded.fingerprint() == boundary.fingerprint()
    assert asked == [(("me/it", "boundary.safetensors"), {"revision": "v1", "token": None})]


def test_what_is_no_shared_boundary_is_refused_in_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"the folder .* has no boundary.safetensors"):
        sl.Boundary.from_pretrained(tmp_path)
    (tmp_path / "boundary.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ValueError, match=r"boundary.safetensors is not a saved boundary"):
        sl.Boundary.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor a repository reachable"):
        sl.Boundary.from_pretrained(tmp_path / "absent" / "folder")

    def absent(*_, **__):
        raise RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)

    monkeypatch.setattr(sharing, "hf_hub_download", absent)
    with pytest.raises(ValueError, match=r"the repository 'me/it' has no boundary.safetensors"):
        sl.Boundary.from_pretrained("me/it")


def test_without_the_hub_the_sentence_says_so(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot load boundary 'me/it': .* reachable on the hub"):
        sl.Boundary.from_pretrained("me/it")
    with pytest.raises(ValueError, match=r"cannot push the boundary to 'me/it' \(.*offline"):
        tiny_boundary().push_to_hub("me/it", token="secret")


def test_a_hub_that_does_not_answer_is_told_in_a_sentence(monkeypatch):
    def unreachable(*_, **__):
        raise HTTPError("connection refused")

    monkeypatch.setattr(sharing.HfApi, "create_repo", unreachable)
    with pytest.raises(ValueError, match=r"cannot push .* 'me/it' \(connection refused\)"):
        tiny_boundary().push_to_hub("me/it")


def test_the_folder_decodes_as_sasa_does(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.syspath_prepend(str(tmp_path / "m"))
    model, tokenizer = tiny_lm()
    boundary = tiny_boundary()
    boundary.save_pretrained(tmp_path / "shared", decoder=True)
    inputs = tokenizer(["the cat sees", "it likes the dog and"], return_tensors="pt", padding=True)
    options = {"do_sample": True, "top_k": 8, "max_new_tokens": 12}
    for chosen in ({"beta": 3.0, "seed": 5}, {"beta": 1.0, "form": "posterior", "seed": 1}):
        found = model.generate(
            **inputs, custom_generate=str(tmp_path / "shared"), trust_remote_code=True,
            **options, **chosen,
        )  # fmt: skip
        wanted = model.generate(**inputs, custom_generate=sl.SASA(boundary, **chosen), **options)
        assert torch.equal(found, wanted)
    torch.manual_seed(3)
    found = model.generate(
        **inputs, custom_generate=str(tmp_path / "shared"), trust_remote_code=True, **options
    )
    torch.manual_seed(3)
    wanted = model.generate(**inputs, custom_generate=sl.SASA(boundary, 1.0), **options)
    assert torch.equal(found, wanted)


def test_a_decoder_in_the_folder_follows_the_boundary(boundary, tmp_path):
    boundary.save_pretrained(tmp_path, decoder=True)
    before = (tmp_path / "custom_generate" / "generate.py").read_text()
    tiny_boundary().save_pretrained(tmp_path)
    after = (tmp_path / "custom_generate" / "generate.py").read_text()
    assert before != after and 'custom_generate="' in (tmp_path / "README.md").read_text()
