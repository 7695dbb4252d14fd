"""What a notebook says that it saw, beside what this run sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

FOLDER = "recorded"  # in a run's folder, a file a notebook; scripts/notebooks.py reads them
Claim = tuple[str, float, float, float]


def compare(run: Path, notebook: str, claims: Sequence[Claim]) -> Styler:
    """Show numbers that were recorded beside those of this run, and keep both.

    Recorded are those of the profile `laptop`; a run with other parameters has others.

    Parameters
    ----------
    run : Path
        Folder of the results; the table is written to recorded/<notebook>.csv in it.
    notebook : str
        Name of the notebook, such as "02_subspaces".
    claims : sequence of (str, float, float, float)
        What is claimed, the number recorded, that of this run, and how far the two may part under
        `laptop` on another machine.

    Returns
    -------
    pandas.io.formats.style.Styler
        A row a claim. A number that parts by more is marked.
    """
    table = pd.DataFrame(claims, columns=["what", "recorded", "here", "may part by"])
    table["parts"] = _parts(table)
    (run / FOLDER).mkdir(exist_ok=True)
    table.to_csv(run / FOLDER / f"{notebook}.csv", index=False)
    digits = [max(0, math.ceil(-math.log10(by))) if by else 0 for by in table["may part by"]]
    shown = pd.DataFrame(
        {
            name: [f"{value:.{n}f}" for value, n in zip(table[name], digits, strict=True)]
            for name in ("recorded", "here")
        },
        index=table["what"].rename(None),
    )
    shown["here"] = shown["here"].where(~table["parts"].to_numpy(), shown["here"] + " (parts)")
    return shown.style


def _parts(table: pd.DataFrame) -> pd.Series:
    """Which numbers part from those recorded by more than they may, or are missing."""
    return ~((table["here"] - table["recorded"]).abs() <= table["may part by"] + 1e-9)
