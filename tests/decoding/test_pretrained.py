"""SASA in a folder, from the library, and fitted by the command line."""

import json
from pathlib import Path

import pytest
import torch
from tiny_lm import tiny_boundary, tiny_lm

import sasa_lib as sl
from sasa_lib import __main__ as command
from sasa_lib.decoding import pretrained
from sasa_lib.engine.models import EMBEDDED
from sasa_lib.texts.assets import DATA_DIR


def test_a_folder_gives_the_same_sasa_back(tmp_path):
    sasa = sl.SASA(
        tiny_boundary(), 1.5, form="posterior", phrase="response", decay=0.5, max_kl=0.2,
        max_candidates=7, seed=3,
    )  # fmt: skip
    sasa.save_pretrained(tmp_path / "kept", license="apache-2.0")
    files = {path.name for path in (tmp_path / "kept").iterdir()}
    assert files == {"README.md", "boundary.safetensors", "sasa.json"}
    loaded = sl.SASA.from_pretrained(tmp_path / "kept", seed=3)
    assert loaded.describe() == sasa.describe()
    other = sl.SASA.from_pretrained(tmp_path / "kept", beta=0.5, form="margin")
    assert (other.beta, other.form, other.seed, other.max_kl) == (0.5, "margin", None, 0.2)


def test_a_boundary_without_settings_needs_a_beta(tmp_path):
    tiny_boundary().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the folder .* has no sasa.json"):
        sl.SASA.from_pretrained(tmp_path)
    assert sl.SASA.from_pretrained(tmp_path, beta=2.0).form == "margin"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not hold the settings of a SASA"),
        ("[1]", "does not hold the settings of a SASA|a setting that this version"),
        ('{"beta": 1, "better": 2}', "a setting that this version does not know: 'better'"),
        ('{"beta": -1}', "beta must be"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path, content, message):
    tiny_boundary().save_pretrained(tmp_path)
    (tmp_path / pretrained.FILE).write_text(content)
    with pytest.raises(ValueError, match=message):
        sl.SASA.from_pretrained(tmp_path)


def test_several_values_do_not_fit_into_a_folder(tmp_path):
    sasa = sl.SASA([(tiny_boundary(), 1.0), (tiny_boundary(), 2.0)])
    with pytest.raises(ValueError, match="a folder holds one boundary"):
        sasa.save_pretrained(tmp_path / "both")
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_ready_boundary_suits_its_model_and_says_how_good_it_is(name):
    model, tokenizer = sl.load_lm(name)
    sasa = sl.SASA.from_pretrained(name, seed=0)
    boundary = sasa.pairs[0][0]
    texts = sl.load_corpus("contrast-pairs").shuffle(seed=0).select(range(60))
    margins = boundary.score_texts(model, tokenizer, texts)
    toxic = torch.tensor(texts["toxicity"]) > 0.5
    assert margins[~toxic.numpy()].mean() > margins[toxic.numpy()].mean()
    assert boundary.metadata["held_out_auc"] > 0.85 and boundary.metadata["calibration"]
    card = (DATA_DIR / "boundaries" / name / "README.md").read_text()
    assert "AUC on held-out texts" in card
    inputs = tokenizer("She called him a", return_tensors="pt")
    options = dict(do_sample=True, max_new_tokens=5, custom_generate=sasa)
    first, again = (model.generate(**inputs, **options) for _ in range(2))
    assert first.tolist() == again.tolist()


def test_the_command_line_fits_and_writes_what_from_pretrained_reads(tmp_path, capsys):
    arguments = ["fit", "gemma3-270m", "--out", str(tmp_path / "mine"), "--max-examples", "150"]
    command.main([*arguments, "--beta", "0.5"])
    said = capsys.readouterr().out
    sasa = sl.SASA.from_pretrained(tmp_path / "mine")
    auc = sasa.pairs[0][0].metadata["held_out_auc"]
    assert (
        f"held-out texts: {auc:.3f}" in said
        and f"from_pretrained({str(tmp_path / 'mine')!r}" in said
    )
    assert (sasa.beta, sasa.form) == (0.5, "posterior")
    assert json.loads(Path(tmp_path, "mine", "sasa.json").read_text())["beta"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-model"], "cannot load model 'no-such-model'"),
        (["gemma3-270m", "--corpus", "rpt"], "unknown corpus 'rpt'"),
        (["gemma3-270m", "--layer", "99", "--max-examples", "60"], "has no layer 99"),
    ],
)
def test_the_command_line_says_in_a_sentence_what_is_wrong(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it waits for it
    with pytest.raises(SystemExit, match=message):
        command.main(["fit", *arguments, "--out", str(tmp_path / "mine")])
    assert not (tmp_path / "mine").exists()


def test_the_command_line_looks_first_where_it_is_to_write(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"nothing can be written to .*mine: choose another"):
        command.main(["fit", "no-such-model", "--out", str(tmp_path / "file" / "mine")])


def test_a_tiny_model_of_ones_own_is_steered_by_its_folder(tmp_path):
    model, tokenizer = tiny_lm()
    boundary = tiny_boundary().of(model)
    sl.SASA(boundary, 3.0).save_pretrained(tmp_path)
    sasa = sl.SASA.from_pretrained(tmp_path, seed=1)
    inputs = tokenizer("the cat", return_tensors="pt")
    options = dict(do_sample=True, max_new_tokens=4)
    kept = model.generate(**inputs, custom_generate=sl.SASA(boundary, 3.0, seed=1), **options)
    assert model.generate(**inputs, custom_generate=sasa, **options).tolist() == kept.tolist()
