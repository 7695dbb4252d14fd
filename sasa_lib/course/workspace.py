"""Where a notebook works, however it is run: by make, by papermill, or in Jupyter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset
from upath import UPath

from sasa_lib.course.plots.style import set_style
from sasa_lib.engine.storage import store
from sasa_lib.subspace.boundary import Boundary
from sasa_lib.texts.corpora import fingerprint, labelled

FIRST = Path("notebooks", "00_start.ipynb")  # what tells a clone


def begin(run: str | Path, needs: Mapping[str, str] | None = None) -> tuple[Path, Path | UPath]:
    """Settle where a notebook's results lie, and set the style of its figures.

    The working directory becomes the project's folder: the nearest one at or above it with
    notebooks/00_start.ipynb, else it stays. So a relative path means the same in Jupyter, under
    papermill from any folder of the project, and under make.

    Parameters
    ----------
    run : str or Path
        Folder of the results, made if absent.
    needs : mapping from str to str, optional
        Files in it that must be there, and the notebooks that write them.

    Returns
    -------
    run : Path
    store : Path or UPath
        Where what is long work is kept, see `sasa_lib.engine.storage.store`.

    Raises
    ------
    FileNotFoundError
        A file is missing; the message says which command makes it.
    """
    here = Path.cwd()
    project = next((folder for folder in (here, *here.parents) if (folder / FIRST).is_file()), None)
    if project:
        os.chdir(project)
    run = Path(run)
    for file, notebook in (needs or {}).items():
        if not (run / file).exists():
            made = f"`papermill {notebook}.ipynb {notebook}.out.ipynb -p run {run}`"
            if project:
                made = f"`make {run}/{notebook}.ipynb` in {project}"
            raise FileNotFoundError(
                f"{run.absolute()} has no {file}, which notebook {notebook} writes: run it first, "
                f"by {made}"
            )
    run.mkdir(parents=True, exist_ok=True)
    # An executed copy of a clone names no folder of its machine.
    print(f"Results lie in {run if project and not run.is_absolute() else run.absolute()}")
    set_style()
    return run, store(run)


def check_fitted_on(boundary: Boundary, corpus: Dataset, attribute: str = "toxicity") -> None:
    """Refuse a boundary of another value, or of other texts, than what a notebook compares it with.

    Parameters
    ----------
    boundary : Boundary
        From an earlier notebook.
    corpus : datasets.Dataset
        What it should have been fitted on.
    attribute : str
        The value that it should separate.
    """
    facts = boundary.metadata
    if facts["attribute"] != attribute:
        raise ValueError(
            f"the boundary was fitted for {facts['attribute']!r}, not for {attribute!r}: run "
            "notebook 03_boundary with the same parameters first"
        )
    rows, _ = labelled(corpus, attribute, facts["threshold"])
    if facts["data_fingerprint"] != fingerprint(rows, attribute):
        raise ValueError(
            "the boundary was fitted on other texts than this corpus: run notebook 03_boundary "
            "with the same parameters first"
        )
