"""Embedded assets: verified, whole or not at all, and errors in one sentence."""

import errno
import hashlib
import sys
import tarfile
import time
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from sasa_lib.texts import assets
from sasa_lib.texts.assets import AssetError, File, fetch


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """An asset of two concatenated members of a wheel made here, and a way to change the wheel."""
    monkeypatch.setenv("SASA_CACHE", str(tmp_path / "cache"))
    members = {"pkg/a": b"first ", "pkg/b": b"second"}
    digest = hashlib.sha256(b"first second").hexdigest()
    file = File("whole.bin", digest, ("pkg==1.0:pkg/a", "pkg==1.0:pkg/b"))
    monkeypatch.setitem(assets.ASSETS, "made-here", (file,))
    downloads = []

    def download(name, requirement, folder):
        downloads.append(requirement)
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "pkg-1.0-py3-none-any.whl", "w") as wheel:
            for path, content in members.items():
                wheel.writestr(path, content)

    monkeypatch.setattr(assets, "_pip_download", download)
    return members, downloads, tmp_path / "cache"


def left(cache):
    """What lies in the cache, but for the lock that keeps processes from each other."""
    return [path for path in (cache / "assets").iterdir() if path.name != ".made-here.lock"]


def test_members_are_joined_and_fetched_once(packaged):
    _, downloads, _ = packaged
    assert (fetch("made-here") / "whole.bin").read_bytes() == b"first second"
    assert fetch("made-here") == fetch("made-here")
    assert downloads == ["pkg==1.0"]


def test_of_two_that_come_at_once_one_makes_it(packaged, monkeypatch):
    _, downloads, _ = packaged
    download = assets._pip_download

    def slowly(*arguments):
        time.sleep(0.5)
        download(*arguments)

    monkeypatch.setattr(assets, "_pip_download", slowly)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(fetch, ["made-here"] * 3))
    assert len(set(folders)) == 1 and (folders[0] / "whole.bin").is_file()
    assert downloads == ["pkg==1.0"]


def test_wrong_content_is_refused_and_leaves_nothing(packaged):
    members, _, cache = packaged
    members["pkg/b"] = b"sec"
    with pytest.raises(AssetError, match=r"SHA-256 .* truncated or is another version"):
        fetch("made-here")
    assert left(cache) == []
    members["pkg/b"] = b"second"
    assert (fetch("made-here") / "whole.bin").is_file()


def test_a_missing_member_is_named(packaged):
    members, _, _ = packaged
    del members["pkg/b"]
    with pytest.raises(AssetError, match="damaged or lacks pkg/b"):
        fetch("made-here")


def test_what_a_killed_process_left_is_swept(packaged):
    _, _, cache = packaged
    folder = cache / "assets"
    for name in (".made-here-x3_k9abq", ".made-here-too-x3_k9abq", "other"):
        (folder / name / "content").mkdir(parents=True)
        (folder / name / "content" / "half.bin").write_bytes(b"half")
    fetch("made-here")
    # What another asset's process may be making is not this one's.
    assert {path.name for path in left(cache)} == {"made-here", ".made-here-too-x3_k9abq", "other"}


def test_a_source_distribution_is_not_taken_for_a_wheel(packaged, monkeypatch):
    def download(name, requirement, folder):
        folder.mkdir(parents=True)
        (folder / "pkg-1.0.tar.gz").touch()

    monkeypatch.setattr(assets, "_pip_download", download)
    with pytest.raises(AssetError, match=r"pip gave pkg-1.0.tar.gz for pkg==1.0, not one wheel"):
        fetch("made-here")
    assert left(packaged[2]) == []


def test_pip_is_not_given_a_source_distribution(tmp_path, monkeypatch):
    monkeypatch.setenv("SASA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(assets.ASSETS, "made-here", (File("x", "", ("pkg==1.0:pkg/a",)),))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with tarfile.open(tmp_path / "pkg-1.0.tar.gz", "w:gz") as archive:
        (tmp_path / "setup.py").write_text("from setuptools import setup; setup(name='pkg')")
        archive.add(tmp_path / "setup.py", "pkg-1.0/setup.py")
    with pytest.raises(AssetError, match=r"cannot download pkg==1.0 .*No matching distribution"):
        fetch("made-here")


def test_a_python_without_pip_is_said(tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setenv("SASA_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(AssetError, match=r"bin/python has no pip; give it one by `python -m ens"):
        fetch("minilm")


def test_a_full_disk_is_said_and_leaves_nothing(packaged, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(assets.shutil, "copyfileobj", full)
    with pytest.raises(AssetError, match=r"cannot write .*made-here: No space left on device"):
        fetch("made-here")
    assert left(packaged[2]) == []


def test_an_unreachable_registry_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("SASA_CACHE", str(tmp_path))
    # pip itself, made to find nothing.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AssetError, match=r"cannot download .*is the package registry reachable"):
        fetch("minilm")


def test_an_unknown_asset_is_answered_with_the_known_ones():
    with pytest.raises(AssetError, match=r"unknown asset 'gpt9'; known are .*gemma3-270m"):
        fetch("gpt9")
