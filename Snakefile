"""Executed notebooks. `make run` and `make sweep` call this, with the files to make.

A notebook runs again only if the text of it, of the library, of its parameters or of a notebook
that it needs has changed; a touched or cloned file has not. What a notebook needs stands in its
own metadata.
"""

import hashlib
import json
import sys
from pathlib import Path

LIBRARY = ["sasa_lib/**/*.py", "data/*.json*", "data/*.safetensors", "scripts/notebooks.py"]
TABLES = {  # read by one alone
    "05_evaluation": ["data/perspective_scale.csv"],
    "07_fronts": ["data/results.csv"],
    "09_your_own": ["data/formality.csv"],
}
NAMES = sorted(path.stem for path in Path("notebooks").glob("[0-9][0-9]_*.ipynb"))


def digest(*paths):
    """SHA-256 of files that are there."""
    found = hashlib.sha256()
    for path in map(Path, paths):
        found.update(f"{path} ".encode() + (path.read_bytes() if path.is_file() else b""))
    return found.hexdigest()


def needs(notebook):
    """Notebooks whose results one reads. scripts/notebooks.py knows, but takes seconds to load."""
    return json.loads(Path(f"notebooks/{notebook}.ipynb").read_text())["metadata"].get("needs", [])


library = digest(*sorted(str(path) for part in LIBRARY for path in Path().glob(part)))


rule notebook:
    input:
        needed=lambda w: [f"runs/{w.run}/{name}.ipynb" for name in needs(w.notebook)],
    params:
        library=library,
        source=lambda w: digest(f"notebooks/{w.notebook}.ipynb", *TABLES.get(w.notebook, [])),
        parameters=lambda w: digest(f"runs/{w.run}/parameters/{w.notebook}.json"),
    # As they are read. An input that is only there for the order would be `ancient`, and behind one
    # that runs again Snakemake leaves out whatever else has changed.
    priority: lambda w: len(NAMES) - NAMES.index(w.notebook)
    # Of which Snakemake tells torch: all, unless a sweep runs several notebooks at once.
    threads: int(config.get("threads", workflow.cores))
    output:
        executed="runs/{run}/{notebook}.ipynb",
        page="runs/{run}/{notebook}.html",
    wildcard_constraints:
        notebook=r"\d\d_\w+",
    shell:
        f"{sys.executable} scripts/notebooks.py execute {{wildcards.notebook}} --run {{wildcards.run}}"
        + (" >> runs/{wildcards.run}/log.txt 2>&1" if config.get("log") else "")
