"""One step's draw among re-weighted candidates, computing no more of them than it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from sasa_lib.decoding.prefix_cache import Hidden
from sasa_lib.subspace.boundary import Boundary

FEW_TOKENS = 16  # candidates in a batch that cost a forward pass hardly more than one does
A_PASS = 24  # candidates that cost as much as a further forward pass does
Reweight = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def stacked(
    boundaries: Sequence[Boundary], scaled: bool, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normals [hidden_size, n], a centre [hidden_size] and offsets [n] of boundaries.

    The margin of h from boundary i is (h - centre) . normals[:, i] - offsets[i].
    """
    centre = boundaries[0].midpoint.astype(np.float64)
    normals = np.stack([b.normal.astype(np.float64) for b in boundaries])
    offsets = np.stack(
        [(b.midpoint - centre) @ n for b, n in zip(boundaries, normals, strict=True)]
    )
    scales = np.array([b.scale if scaled else 1.0 for b in boundaries])
    normals, offsets = normals / scales[:, None], offsets / scales
    return tuple(
        torch.tensor(array, dtype=torch.float32, device=like.device)
        for array in (normals.T.copy(), centre, offsets)
    )


class RunningMargins:
    """Weighted mean of the margins of every growing phrase's tokens, from every boundary.

    A mean of hidden states has the mean of their margins, so that is all there is to keep.
    """

    def __init__(self, boundaries: int, batch: int, device: torch.device) -> None:
        self.decay = 0.0
        self.weight = torch.zeros(batch, 1, device=device)
        self.mean = torch.zeros(boundaries, batch, 1, device=device)

    def with_candidates(
        self, margins: torch.Tensor, rows: torch.Tensor | slice = slice(None)
    ) -> torch.Tensor:
        """Means with one candidate more, from the candidates' [boundaries, rows, candidates]."""
        if not self.decay:
            return margins
        before = self.decay * self.weight[rows]
        return (before * self.mean[:, rows] + margins) / (before + 1)

    def begin(self, margins: torch.Tensor, rows: Sequence[int]) -> None:
        """Begin these rows' phrases with a prompt's margins [boundaries, tokens]."""
        if margins.shape[1]:
            ages = torch.arange(margins.shape[1] - 1, -1, -1, device=margins.device)
            weights = self.decay**ages
            self.weight[rows] = weights.sum()
            self.mean[:, rows] = (margins @ weights / weights.sum())[:, None, None]

    def append(self, drawn: torch.Tensor) -> None:
        """Take the means with the drawn candidates, [boundaries, rows, 1], for the phrases'."""
        self.mean = drawn
        self.weight = self.decay * self.weight + 1


class DrawnMargins:
    """Sums of the margins of every response's tokens, without the token that ends it."""

    def __init__(self, boundaries: int, input_ids: torch.Tensor, ends: torch.Tensor | None) -> None:
        self.ends = input_ids.new_empty(0) if ends is None else ends.to(input_ids.device)
        self.sums = torch.zeros(boundaries, len(input_ids), device=input_ids.device)
        self.numbers = torch.zeros(len(input_ids), device=input_ids.device)

    def add(self, margins: torch.Tensor, unfinished: torch.Tensor, tokens: torch.Tensor) -> None:
        """Take in the drawn tokens [batch] with their margins [boundaries, batch]."""
        counted = unfinished & ~torch.isin(tokens, self.ends)
        self.sums += torch.where(counted, margins, 0)
        self.numbers += counted

    def mean(self) -> torch.Tensor:
        """Margins of the mean embeddings, [boundaries, batch]; NaN where there is no token."""
        return self.sums / self.numbers


class CandidateDraw:
    """One step's draw: argmax of new logit + noise, over the candidates in `order`.

    A candidate can reach its reference + noise and no more where g is never above 0. In that
    order, then, the draw is decided as soon as one that was judged is above all that were not.
    Elsewhere a row needs all that survive in it, of which rows have different numbers.

    Parameters
    ----------
    reweight : callable
        From reference [rows, candidates], hidden states, means and rows to new logits and margins.
    reference, noise : torch.Tensor, shape [batch, candidates]
    unfinished : torch.Tensor of bool, shape [batch]
    means : RunningMargins
    bounded : bool
        Whether g is never above 0, so that not all candidates need be judged.
    together : bool
        Whether all candidates of a row must be judged in one pass.
    expected : torch.Tensor, shape [batch, 1], optional
        What the best candidate's g is expected to take from its logit, at most 0: with a bound,
        how many candidates are judged first follows from it, not which one is drawn.
    """

    def __init__(
        self,
        reweight: Reweight,
        reference: torch.Tensor,
        noise: torch.Tensor,
        unfinished: torch.Tensor,
        means: RunningMargins,
        *,
        bounded: bool = False,
        together: bool = True,
        expected: torch.Tensor | None = None,
    ) -> None:
        self.order = (reference + noise).argsort(-1, descending=True)
        self.reference = reference.gather(1, self.order)
        self.noise = noise.gather(1, self.order)
        self.weighted = torch.full_like(reference, float("-inf"))
        self.margins = reference.new_full((len(means.mean), *reference.shape), float("nan"))
        self.reweight = reweight
        self.means = means
        self.unfinished = unfinished
        self.bounded = bounded
        possible = (reference > float("-inf")).sum(-1)
        reach = self.reference + self.noise
        needed = possible
        if bounded:
            within_reach = reach[:, :1] + (0.0 if expected is None else expected)
            needed = (reach > within_reach).sum(-1)
        if not together:
            needed = torch.where(unfinished, needed, 0).clamp(min=1)
        self.numbers = needed.tolist()
        self.first = max(self.numbers) if together else cheapest_first(self.numbers)
        # So few cost hardly more than one; what is expected to be enough may not be.
        if bounded and (few := FEW_TOKENS // len(reference)) > self.first:
            self.first = min(few, int(possible.max()))
        self._drawn: torch.Tensor | None = None

    def judge(self, hidden: Hidden) -> None:
        """Take in the hidden states of the first candidates."""
        first = self.reference[:, : self.first]
        found = self.reweight(first, hidden, self.means)
        self.weighted[:, : self.first], self.margins[..., : self.first] = found

    def undecided(self) -> tuple[torch.Tensor, int]:
        """Rows that are not decided yet, and how many candidates they need."""
        numbers = self.numbers
        if self.bounded and self.first < self.weighted.shape[1]:
            # In `order`, what is within reach comes first.
            reached = (self.weighted + self.noise).amax(-1, keepdim=True)
            needed = (self.reference + self.noise > reached).sum(-1)
            numbers = torch.where(self.unfinished, needed, 0).tolist()
        rows = [row for row, number in enumerate(numbers) if number > self.first]
        return torch.tensor(rows, dtype=torch.long, device=self.order.device), max(numbers)

    def judge_further(self, hidden: Hidden, rows: torch.Tensor) -> None:
        """Take in the hidden states of further candidates of some rows."""
        width = next(iter(hidden.values())).shape[1]
        further = slice(self.first, self.first + width)
        found = self.reweight(self.reference[rows, further], hidden, self.means, rows)
        self.weighted[rows, further], self.margins[:, rows, further] = found

    def drawn(self) -> torch.Tensor:
        """Column of the candidate that each row draws, [rows, 1], once all needed are judged."""
        if self._drawn is None:
            best, self._drawn = (self.weighted + self.noise).max(-1, keepdim=True)
            self.is_finite = best.isfinite().all()  # NaN counts as the best
        return self._drawn

    @property
    def lost(self) -> torch.Tensor:
        """What re-weighting took from the drawn candidate's logit, at most 0, [rows, 1]."""
        return (self.weighted - self.reference).gather(1, self.drawn()).clamp(max=0)

    def record(self, candidates: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a trace keeps of the step."""
        entry = {
            "candidates": candidates,
            "reference": self.reference,
            "weighted": self.weighted,
            "margin": self.margins[0],
            "drawn": self.drawn(),
            "unfinished": self.unfinished,
        }
        return {name: value.cpu() for name, value in entry.items()}


def check_drawn(is_finite: bool) -> None:
    """Raise ValueError unless the best of every row's candidates was finite."""
    if not is_finite:
        raise ValueError(
            "the margins of some candidates are not finite, so nothing can be drawn: load the "
            "model with dtype='float32' or 'bfloat16'"
        )


def cheapest_first(needed: Sequence[int]) -> int:
    """How many candidates of every row to judge first, if the rows need so many each.

    A second pass costs `A_PASS` candidates, and takes as many of each row that needs more as the
    one that needs most.
    """
    most = max(needed)

    def cost(first: int) -> int:
        further = sum(number > first for number in needed)
        return first * len(needed) + (A_PASS + further * (most - first)) * (further > 0)

    return min(range(1, most + 1), key=cost)
