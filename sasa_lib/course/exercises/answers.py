"""Answers to exercises: verdicts, and how an answer is compared with what is right."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps

import numpy as np
import torch

# What is expected of a case, and wrong answers by what is said of them.
Truth = tuple[object, Mapping[str, object]]


FACTORS = {
    1 / np.log(2): "this is log base 2: nats were asked",
    1 / np.log(10): "this is log base 10: nats were asked",
    100.0: "this looks like percent: a share between 0 and 1 was asked",
    2.0: "this is twice what was asked",
    0.5: "this is half of what was asked",
}


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check says of an answer; true only if the answer is right.

    Attributes
    ----------
    right : bool or None
        None: not answered yet.
    message : str
        Why it matters, or what is off; also what a notebook shows.
    """

    right: bool | None
    message: str

    def __bool__(self) -> bool:
        return self.right is True

    def __repr__(self) -> str:
        return self.message


class WrongAnswer(Exception):
    """What is off with an answer."""


class Unanswered(Exception):
    """There is no answer yet."""


def exercise(why: str) -> Callable[[Callable[..., None]], Callable[..., Verdict]]:
    """Make a check, which raises what is off, return a verdict; `why` is said of what is right."""

    def decorate(check: Callable[..., None]) -> Callable[..., Verdict]:
        @wraps(check)
        def checked(answer: object, *arguments: object, **options: object) -> Verdict:
            try:
                check_is_there(answer)
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")
                    check(answer, *arguments, **options)
            except Unanswered:
                return Verdict(None, "not answered yet")
            except WrongAnswer as off:
                return Verdict(False, f"not right yet: {off}")
            return Verdict(True, f"right: {why}")

        return checked

    return decorate


def check_is_there(answer: object) -> None:
    """Raise Unanswered for an answer that is still `...`."""
    for part in answer if isinstance(answer, list | tuple) else [answer]:
        if part is None or part is Ellipsis:
            raise Unanswered


def numbers(answer: object) -> np.ndarray:
    """Whatever holds numbers, as a flat array."""
    check_is_there(answer)
    parts = answer if isinstance(answer, list | tuple) else [answer]
    try:
        parts = [p.detach().cpu() if isinstance(p, torch.Tensor) else p for p in parts]
        return np.asarray(parts, dtype=float).ravel()
    except (TypeError, ValueError):
        raise WrongAnswer(f"this is a {type(answer).__name__}, and numbers were asked") from None


def called(function: object, *case: object) -> object:
    """What a function of the reader returns, or what is off with it."""
    if not callable(function):
        raise WrongAnswer(f"this is a {type(function).__name__}, and a function was asked")
    try:
        found = function(*copy.deepcopy(case))  # it may write into them
    except Exception as error:
        name = getattr(function, "__name__", "the function")
        raise WrongAnswer(f"{name} raises {type(error).__name__}: {error}") from None
    if found is None:
        raise WrongAnswer("the function returns nothing: end it with a `return`")
    check_is_there(found)
    return found


def compare(
    found: object,
    expected: object,
    slips: Mapping[str, object],
    *,
    names: Sequence[str] = (),
    rtol: float = 1e-4,
    atol: float = 1e-6,
    share: bool = False,
) -> None:
    """Raise what is off: a known slip, or else how the numbers differ from what is expected."""
    found, expected = numbers(found), numbers(expected)
    if found.size != expected.size:
        raise WrongAnswer(f"the count of numbers is off: {found.size} instead of {expected.size}")
    if np.isnan(found).any():
        raise WrongAnswer("there is NaN in it (0/0, or 0 times infinity, such as 0 log 0?)")

    def close(one: np.ndarray, other: np.ndarray) -> bool:
        return one.shape == other.shape and np.allclose(one, other, rtol=rtol, atol=atol)

    if close(found, expected) or (share and close(found / 100, expected)):
        return
    for hint, slip in slips.items():
        if close(found, numbers(slip)):
            raise WrongAnswer(hint)
    if close(found, -expected):
        raise WrongAnswer("the sign is turned round")
    for factor, hint in FACTORS.items():
        if expected.any() and close(found, factor * expected):
            raise WrongAnswer(hint)
    if found.size > 2 and close(found, expected[::-1]):
        raise WrongAnswer("the order is reversed")
    if close(np.sort(found), np.sort(expected)):
        raise WrongAnswer("these are the right numbers, in another order")
    where = int(np.argmax(~np.isclose(found, expected, rtol=rtol, atol=atol)))
    label = names[where] if names else f"number {where + 1}" if found.size > 1 else "it"
    if np.isinf(expected[where]):
        raise WrongAnswer(f"{label} is {found[where]:.4g}, and infinity is right")
    size = "large" if found[where] > expected[where] else "small"
    raise WrongAnswer(f"{label} is {found[where]:.4g}, which is too {size}")


def compare_distribution(found: object, expected: object, slips: Mapping[str, object]) -> None:
    """Compare probabilities, which must sum to 1."""
    total = numbers(found).sum()
    if numbers(found).size == np.size(expected) and abs(total - 1) > 1e-4:
        raise WrongAnswer(f"it sums to {total:.3g}: is it normalised?")
    compare(found, expected, slips)


def of_function(
    why: str, cases: Sequence[tuple], compare: Callable[..., None] = compare
) -> Callable[[Callable[..., Truth]], Callable[[object], Verdict]]:
    """Make the check of a function, on some cases, from what is true of one case."""

    def decorate(truth: Callable[..., Truth]) -> Callable[[object], Verdict]:
        names = list(inspect.signature(truth).parameters)

        def check(answer: object) -> None:
            if not callable(answer):
                raise WrongAnswer(f"this is a {type(answer).__name__}, and a function was asked")
            for case in cases:
                try:
                    compare(called(answer, *case), *truth(*case))
                except WrongAnswer as off:
                    given = (f"{n} = {shown(v)}" for n, v in zip(names, case, strict=True))
                    raise WrongAnswer(f"{off} (for {', '.join(given)})") from None

        check.__name__, check.__qualname__, check.__doc__ = [truth.__name__] * 2 + [truth.__doc__]
        return exercise(why)(check)

    return decorate


def shown(value: object) -> str:
    """An argument as a sentence shows it."""
    text = repr(value)
    if isinstance(value, np.ndarray):
        text = np.array2string(value, precision=3, separator=", ").replace("\n", "")
    return text if len(text) < 60 else f"{type(value).__name__} of {len(value)}"
