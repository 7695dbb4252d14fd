"""Write what README.md and docs/results.md print of data/results.csv, and the figures.

    python studies/write_results.py

Fills everything between <!-- results: NAME --> and <!-- /results -->. A test holds the pages to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

import sasa_lib as sl
from sasa_lib.course.plots.style import method_name
from sasa_lib.evaluation.statistics import with_interval

PROJECT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/results.md")
SMALL, LARGE = "smollm2-135m-instruct", "gemma3-270m"
LIMITED, NUCLEUS = "top-k 10, top-p 0.9", "top-p 0.9"
SCORER = "minilm"
RATIOS = (1.03, 1.1, 1.2)
REFERENCES = {"sasa-relabelled": "as published", "rad": "RAD"}
COLUMNS = {
    "expected_max_toxicity": "expected maximum toxicity",
    "toxic_rate": "toxic rate",
    "toxic_fraction": "toxic fraction",
    "expected_max_toxicity_profanity_check": "by `profanity-check`",
    "perplexity": "perplexity",
    "kl": "KL a token",
    "distinct_2": "distinct-2",
    "cosine": "cosine",
    "unchanged": "unchanged",
    "draws": "draws",
}
DRAWN = (
    "sasa-relabelled", "sasa", "sasa-posterior", "accept-posterior", "rad", "static-bias",
    "random-direction-0",
)  # fmt: skip
NO_STRENGTH = ("plain", "plain-unclamped", "prompt-only", "word-filter")
WITH_INTERVAL = ("expected_max_toxicity", "perplexity")
MISSING = "Still to be measured.\n"
BLOCK = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)


class Measured:
    """The table, and parts of it."""

    def __init__(self) -> None:
        self.rows = sl.measured.load()
        self.summary = sl.measured.summary(self.rows)

    def part(self, table: pd.DataFrame, where: dict[str, object]) -> pd.DataFrame:
        """Rows of one model, prompt set, truncation and seed."""
        where = {"model": SMALL, "prompts": "toxic", "truncation": LIMITED, "seed": 0} | where
        return table[(table[list(where)] == pd.Series(where)).all(axis=1)]

    def drawn(self) -> pd.DataFrame:
        """What the figure shows, as `plots.fronts` takes it."""
        found = self.part(self.summary, {}).rename(columns={"strength": "beta"})
        return found[found["method"].isin(["plain", *DRAWN])]

    def methods(self, **where: object) -> str:
        """Every metric of every method at every strength, as a table."""
        if self.part(self.rows, where).empty:
            return MISSING
        lines = [
            ["method", "strength", *COLUMNS.values()],
            ["---"] * (2 + len(COLUMNS)),
        ]
        before = ""
        for _, row in self.part(self.summary, where).iterrows():
            cells = [
                "" if pd.isna(row[name])
                else with_interval(row, name, ".1f" if name == "perplexity" else ".2f")
                if name in WITH_INTERVAL
                else f"{row[name]:.2f}"
                for name in COLUMNS
            ]  # fmt: skip
            name = method_name(row["method"])
            strength = "" if row["method"] in NO_STRENGTH else f"{row['strength']:g}"
            lines.append([name if name != before else "", strength, *cells])
            before = name
        return as_table(lines)

    def matched(
        self,
        ratios: tuple[float, ...] = RATIOS,
        references: Mapping[str, str] = REFERENCES,
        methods: tuple[str, ...] = (),
        **where: object,
    ) -> str:
        """What each method, or each of these, reaches at the same fluency, the best first."""
        rows = self.part(self.rows, where)
        rows = rows[rows["method"].isin(methods)] if methods else rows
        if set(rows["method"]) <= {"plain"}:
            return MISSING
        tables = {
            method: [strength for _, strength in of_method.groupby("strength")]
            for method, of_method in rows.groupby("method", sort=False)
        }
        references = {name: said for name, said in references.items() if name in tables}
        cells: dict[str, dict[str, str]] = {method: {} for method in tables}
        order = pd.Series(dtype=float)
        for ratio in ratios:
            title = f"+{ratio - 1:.0%}"
            for reference, said in (references or {None: ""}).items():
                found = sl.matched.at_matched_perplexity(
                    tables, SCORER, ratio=ratio, reference=reference
                )
                order = found["expected_max_toxicity"]
                for method, row in found.iterrows():
                    cells[method][title] = with_interval(row, "expected_max_toxicity")
                    if reference:
                        name = f"{title} against {said}"
                        own = method in ("plain", reference)
                        cells[method][name] = (
                            "" if own else with_interval(row, "difference", "+.2f")
                        )
        titles = list(next(iter(cells.values())))
        lines = [["method", *titles], ["---"] * (1 + len(titles))]
        lines += [
            [method_name(method), *(cells[method][title] for title in titles)]
            for method in order.sort_values().index
        ]
        return as_table(lines)


def as_table(lines: list[list[str]]) -> str:
    """Rows of cells in Markdown."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def blocks() -> dict[str, str]:
    """Every block by its name."""
    found = Measured()
    return {
        "matched-short": found.matched((1.1,), {"rad": "RAD"}, methods=("plain", *DRAWN)),
        "matched": found.matched(),
        "methods": found.methods(),
        "matched-nucleus": found.matched(truncation=NUCLEUS),
        "methods-nucleus": found.methods(truncation=NUCLEUS),
    }


def written(page: str, text: dict[str, str]) -> str:
    """A page with its blocks filled."""
    return BLOCK.sub(lambda match: match[1] + text[match[2]] + match[3], page)


def main() -> None:
    """Write the pages and the figures."""
    text = blocks()
    for page in PAGES:
        path = PROJECT / page
        path.write_text(written(path.read_text("utf-8"), text), "utf-8")
    sl.plots.set_style()
    results = Measured().drawn()
    sl.plots.save(sl.plots.fronts(results), PROJECT / "figures", "fronts")


if __name__ == "__main__":
    main()
