"""What callers give: lists, numbers and texts, checked at the door, each trap in one place."""

from __future__ import annotations

import json
import math
import numbers
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np


def as_list(values: Iterable[Any], what: str) -> list[Any]:
    """Make a list of whatever sequence a caller has, so that items are counted from 0.

    A filtered pandas Series keeps its old labels, an array its numpy scalars, a generator can be
    read once: after this, item i is the i-th.
    """
    single = isinstance(values, str | bytes | Mapping | Set) or hasattr(values, "columns")
    if single or not isinstance(values, Iterable):
        raise ValueError(f"expected a list of {what}, got a single {type(values).__name__}")
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def text_fault(text: object, *, empty: bool = False) -> str | None:
    """Say why something cannot be read as a text, or None where it can.

    Half of a surrogate pair, as scrapers and `json.loads` let through, is no Unicode text: no
    tokenizer and no file takes it. With `empty=True` a text may be empty.
    """
    if not isinstance(text, str):
        return f"must be a str, got {type(text).__name__}"
    if not text and not empty:
        return "is empty"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half a surrogate pair at character {error.start}, which is no text"
    return None


def check_texts(texts: Iterable[str], what: str, *, empty: bool = False) -> list[str]:
    """Return a list of texts, or raise ValueError that names the first item that is none."""
    texts = as_list(texts, f"{what}s")
    for row, text in enumerate(texts):
        if fault := text_fault(text, empty=empty):
            raise ValueError(f"{what} {row} {fault}")
    return texts


def check_count(name: str, value: int, least: int = 1) -> int:
    """Return a whole number of at least so much as an int, or raise ValueError."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value}")
    return int(value)


def check_seed(seed: int | None) -> int | None:
    """Return a seed as an int of 64 bits or None, which leaves it to torch; or raise ValueError."""
    return None if seed is None else check_count("seed", seed, -(2**63))


def check_number(
    name: str,
    value: float,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> float:
    """Return a finite number in a range as a float, or raise ValueError.

    numpy's numbers are numbers; so the same value is the same key and the same JSON.
    """
    wanted = "a finite number"
    if least > -math.inf:
        wanted += f" of at least {least:g}"
    if above > -math.inf:
        wanted += f" above {above:g}"
    if most < math.inf:
        wanted += f" and at most {most:g}" if wanted != "a finite number" else f" of at most {most}"
    good = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
    if not good or not math.isfinite(value) or not least <= value <= most or not value > above:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return float(value)


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Raise ValueError unless a value is one of those known."""
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; known are {', '.join(known)}")


def check_finite(what: str, values: np.ndarray) -> None:
    """Raise ValueError if any of these numbers is NaN or infinite: what follows would be wrong."""
    bad = ~np.isfinite(np.asarray(values, dtype=float))
    if bad.any():
        row = int(np.argwhere(bad)[0][0]) if bad.ndim else 0
        raise ValueError(
            f"{what}: {int(bad.sum())} of {bad.size} values are not finite, the first in row {row}"
        )


def check_scores(what: str, values: np.ndarray) -> np.ndarray:
    """Return an array of float in [0, 1], or raise ValueError."""
    values = np.asarray(values, dtype=float)
    check_finite(what, values)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{what} must lie in [0, 1]")
    return values


def check_labels(what: str, labels: Iterable[Any]) -> np.ndarray:
    """Return an array of bool from true and false, or 1 and 0, or raise ValueError.

    As truth values scores would all be true, and so would NaN.
    """
    labels = np.asarray(labels)
    if labels.dtype != bool and not np.isin(labels, [0, 1]).all():
        raise ValueError(
            f"{what} must be true or false for every text, or 1 or 0: compare scores with a "
            "threshold first"
        )
    return labels.astype(bool)


def check_groups(groups: Iterable[Any], n: int, what: str) -> np.ndarray:
    """Return the number of each item's group, from 0, or raise ValueError.

    Groups are told apart as Python does, so 1 and "1" are two.
    """
    groups = as_list(groups, "groups")
    if len(groups) != n:
        raise ValueError(f"groups has {len(groups)} items, but there are {n} {what}")
    for row, group in enumerate(groups):
        if group is None or group != group:
            raise ValueError(f"groups must name a group for each of the {what}; row {row} has none")
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return np.array([number[group] for group in groups], dtype=int)


def check_columns(table: object, names: Iterable[str], what: str = "the generations") -> None:
    """Raise ValueError unless this is a pandas table with these columns, each once."""
    columns = list(getattr(table, "columns", []))
    if not hasattr(table, "groupby"):
        raise ValueError(f"{what} must be a pandas DataFrame, got {type(table).__name__}")
    for name in names:
        if columns.count(name) != 1:
            found = "no column" if name not in columns else "several columns"
            raise ValueError(
                f"{what} have {found} {name!r}; they have {', '.join(map(str, columns))}"
            )


def to_json(value: object) -> str:
    """Write as JSON, sorted; numpy's numbers and arrays as the numbers that they are."""

    def plain(thing: object) -> object:
        if isinstance(thing, np.generic | np.ndarray):
            return thing.tolist()
        return str(thing)

    return json.dumps(value, indent=1, sort_keys=True, default=plain)


def set_aside(what: str, faults: Mapping[int, str], total: int, where: str = "") -> None:
    """Warn of items that are left out, with the first one's row and reason."""
    row = min(faults)
    said = f"{len(faults)} of {total} {what} set aside, such as {row}: {faults[row]}"
    warnings.warn(f"{said} ({where})" if where else said, stacklevel=4)


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
