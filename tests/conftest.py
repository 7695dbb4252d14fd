"""What several tests need: the shared data, an embedded model, a folder for the cache."""

import os
from pathlib import Path

import pytest
import torch

import sasa_lib as sl

PROJECT = Path(__file__).resolve().parent.parent
# Processes that tests start, and Ray's, import the same library and the same helpers.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(PROJECT), str(PROJECT / "tests"), os.environ.get("PYTHONPATH", "")]
).rstrip(os.pathsep)
SHARED = Path(os.environ.get("SASA_SHARED_DATA", PROJECT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def rtp_path():
    path = SHARED / "rtp" / "dev.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent; SASA_SHARED_DATA names the folder")
    return path


@pytest.fixture(scope="session")
def smollm2():
    try:
        return sl.load_lm("smollm2-135m-instruct", device="cpu")
    except sl.AssetError as error:
        pytest.skip(f"the model cannot be fetched: {error}")


@pytest.fixture(scope="session")
def texts():
    """Real texts with their values, half of them toxic."""
    try:
        corpus = sl.load_corpus("contrast-pairs")
    except sl.AssetError as error:
        pytest.skip(f"the corpus cannot be fetched: {error}")
    pairs = [f"pair-{i}" for i in range(0, 600, 10)]
    return corpus.filter(lambda row: row["group"] in pairs).shuffle(seed=0)


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture
def as_on_apple(monkeypatch):
    """Let tensors refuse float64, as on Apple's GPUs, unless they came from there by `cpu()`."""

    class OnCpu(torch.Tensor):
        """Whatever is computed from one is one."""

    convert, double = torch.Tensor.to, torch.Tensor.double

    def refuse(tensor):
        if not isinstance(tensor, OnCpu):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def to(tensor, *arguments, **options):
        if torch.float64 in (*arguments, *options.values()):
            refuse(tensor)
        return convert(tensor, *arguments, **options)

    def to_double(tensor):
        refuse(tensor)
        return double(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor.as_subclass(OnCpu))
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "double", to_double)
