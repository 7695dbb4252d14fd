"""Write docs/families.md: what SASA makes of every causal family of transformers.

    python studies/families.py

A tiny model with random weights of each is decoded and compared with transformers' own `generate`,
as tests/decoding/test_conformance.py does; see tests/decoding/families.py. Ends with 1 if any
differs.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import transformers

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tests" / "decoding"))
import families  # noqa: E402

HEAD = """\
# Model families

Which causal language models of transformers {version} SASA decodes, and how. Of every family a tiny model with random weights was decoded as a user would: three prompts of different length, padded on the left, phrases that grow beyond its windows, a boundary in the middle and one at the end. With beta 0 its tokens and logits are those of plain sampling in transformers, with beta above 0 every candidate's margin and the distribution that is drawn from are those of reading phrase and candidate with transformers alone, with its cache and without one. What cannot be decoded so is refused in one sentence before anything is generated. (Most of these models have four layers: 2 is the middle, 4 the end.) `tests/decoding/test_conformance.py` asserts all of this.

- **side by side**: one pass places all candidates behind the phrase; the fastest.
- **in a copy of the phrase each**: every candidate gets a copy of the phrase's cache; one pass over a batch that is as many times larger as there are candidates.
- **the phrase read anew for each**: no cache is kept; the slowest.

| family | candidates | reads images | result |
|---|---|---|---|
"""  # noqa: E501
REST = """
## Not tested

| family | why |
|---|---|
"""


def main() -> None:
    """Compare every family, and write the table."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    lines, wrong = [HEAD.format(version=transformers.__version__)], []
    for name in families.NAMES:
        try:
            verdict = families.decoded(name)
            way, outcome = verdict.way, result(name, verdict)
        except AssertionError as error:
            way, outcome = "", f"wrong: {error}"
            wrong.append(f"{name}: {error}")
        images = "yes" if name.endswith(families.IMAGES_TOO) else "no"
        lines.append(f"| `{name}` | {way} | {images} | {outcome} |\n")
    lines.append(REST)
    lines += [f"| `{name}` | {reason} |\n" for name, reason in families.UNTESTED.items()]
    path = PROJECT / "docs" / "families.md"
    path.write_text("".join(lines))
    print(f"{path.relative_to(PROJECT)}: {len(families.NAMES)} models", *wrong, sep="\n")
    sys.exit(bool(wrong))


def result(name: str, verdict: families.Verdict) -> str:
    """What came out, in a cell of the table."""
    parts = []
    if verdict.ways:
        without, only = families.READ_ANEW.get(name), families.READ_WITH_CACHE.get(name)
        parts.append(
            f"as transformers without its cache: {without}" if without
            else f"as transformers with its cache: {only}" if only
            else "as transformers"
        )  # fmt: skip
    whole = not verdict.ways
    for layer, sentence in verdict.refused.items():
        place = "refused" if whole else f"layer {layer} refused"
        parts.append(f"{place}: {sentence}".replace("|", "\\|"))
    return "; ".join(dict.fromkeys(parts))


if __name__ == "__main__":
    main()
