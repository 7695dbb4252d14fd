"""Write the packages of this environment into requirements.txt and environment.yml.

    make lock

Both list the same versions: pip and conda users get the same environment.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

ENVIRONMENT = """\
# The conda view of requirements.txt, and the library; `make lock` writes both.
name: sasa
channels: [conda-forge]
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def main() -> None:
    """Freeze, without the project itself."""
    command = [sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"]
    frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # A local build's tag, such as +cpu, names a file that other machines do not have.
    lines = {line.partition("+")[0] for line in frozen.splitlines()}
    lines = sorted((line for line in lines if not line.startswith("pip==")), key=str.lower)
    bad = [line for line in lines if "==" not in line]
    if bad:
        sys.exit(f"not a released version: {bad[0]}")
    header = "# Written by `make lock` from pyproject.toml.\n"
    (PROJECT / "requirements.txt").write_text(header + "".join(f"{line}\n" for line in lines))
    pins = "".join(f"      - {line}\n" for line in lines)
    (PROJECT / "environment.yml").write_text(ENVIRONMENT + pins + "      - --editable .\n")


if __name__ == "__main__":
    main()
