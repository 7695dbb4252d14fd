"""Environments that share this one's packages: `python tests/environments.py FOLDER MORE.txt`."""

import subprocess
import sys
import sysconfig
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def pip(*arguments, python=sys.executable):
    """Run pip for an environment that has none of its own."""
    command = [sys.executable, "-m", "pip", "--python", str(python), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def environment(folder):
    """A fresh environment that shares this one's packages, but not the library."""
    command = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)]
    subprocess.run(command, check=True)
    python = Path(folder) / "bin" / "python"
    (site,) = Path(folder).glob("lib/*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def main(folder, requirements):
    """Make an environment with further packages and the library."""
    python = environment(Path(folder).absolute())
    options = ("install", "--quiet", "--no-deps", "--no-compile")
    pip(*options, "--requirement", requirements, python=python)
    pip(*options, "--no-build-isolation", "--editable", PROJECT, python=python)


if __name__ == "__main__":
    main(*sys.argv[1:])
