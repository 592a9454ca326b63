"""What a rollout search may spend and in which order: k, threshold, savings, costs, and the tables they
imply.

A prefix is *flagged* when at least `needed` = ceil(threshold * k) of its k draws violate, so it is cleared by
`clearing` = k - needed + 1 draws that do not. Three savings keep the label exact (METHOD.md §5):

* curtail: stop drawing once `needed` or `clearing` is reached. Draws are asked in bursts no longer than
  what is needed with probability `sure`; with sure = 1 no draw is ever in vain.
* cheapest_first: judge or draws first, whichever rejects at the lower expected cost. Both orders, and any
  switch between them after some draws, are compared by dynamic programming over (violations, clears), with
  a Beta belief about the share of violating draws and a probability that the judge agrees.
* left_to_right: stop at the first boundary; look ahead only as far as a prefix is needed with probability
  `sure`.

The beliefs steer cost alone: whatever they are, the outcome is the same.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from synth.errors import BadInput

MODES = ("paper", "exact", "bisect", "recycle")
BINS = 16
_STRENGTH = 4.0
_PRIOR_WEIGHT = 1.0
MOST_DRAWS = 32


@dataclass(frozen=True)
class Costs:
    """Relative cost of one call of each kind, in any common unit (FLOPs, seconds, money)."""

    rollout: float = 1.0
    guard: float = 0.5
    judge: float = 1.0


@dataclass(frozen=True)
class Savings:
    """Which exact savings are on; `paper` has none of them."""

    curtail: bool = True
    cheapest_first: bool = True
    left_to_right: bool = True


class Rates(NamedTuple):
    """Outcomes seen so far: draws that violate or not, judge's yes or no. Counts, possibly discounted."""

    bad: float = 1.0
    fine: float = 3.0
    yes: float = 1.0
    no: float = 3.0

    def plus(self, bad: float, fine: float, yes: float, no: float) -> "Rates":
        """These counts and more."""
        return Rates(self.bad + bad, self.fine + fine, self.yes + yes, self.no + no)


class Tables(NamedTuple):
    """Look-up by bin of belief and (violations, clears), flattened: see `Plan.cells`."""

    burst: bytes
    accept: list[float]
    judge_first: bytes


@dataclass(frozen=True)
class Plan:
    """How every response of a run is searched. `window`: most prefixes open at once; a cap of 0 is none.

    A draw's randomness belongs to (row, prefix, draw), never to the plan, so that all modes see the same
    draws. BadInput for k outside 1 to 32, a threshold outside (0, 1] or an unknown mode.
    """

    k: int = 8
    threshold: float = 0.85
    mode: str = "exact"
    costs: Costs = field(default_factory=Costs)
    savings: Savings = field(default_factory=Savings)
    window: int = 8
    sure: float = 0.9
    max_rollouts: int = 0
    max_tokens: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MOST_DRAWS:
            raise BadInput(f"k must be 1 to {MOST_DRAWS} draws, not {self.k}")
        if not 0 < self.threshold <= 1:
            raise BadInput(f"threshold must be above 0 and at most 1, not {self.threshold}")
        if self.mode not in MODES:
            raise BadInput(f"mode must be one of {', '.join(MODES)}, not '{self.mode}'")
        if self.window < 1 or not 0 < self.sure <= 1:
            raise BadInput(f"window must be at least 1 and sure in (0, 1], not {self.window} and {self.sure}")

    @cached_property
    def needed(self) -> int:
        """Violating draws that flag a prefix: the decimal threshold times k, rounded up (0.85 of 8 is 7)."""
        return math.ceil(Fraction(str(self.threshold)) * self.k)

    @cached_property
    def clearing(self) -> int:
        """Draws without a violation that clear a prefix."""
        return self.k - self.needed + 1

    @cached_property
    def active(self) -> Savings:
        """The savings in force: none in paper mode; bisect always stops at the first sentence accepted."""
        if self.mode == "paper":
            return Savings(False, False, False)
        return replace(self.savings, left_to_right=True) if self.mode == "bisect" else self.savings

    @cached_property
    def tables(self) -> Tables:
        """Computed once per plan, k² by 16 by 16 entries."""
        return _tables(self)

    @cached_property
    def cells(self) -> int:
        """Entries per belief in the tables: (violations, clears) stands at violations * (k + 1) + clears."""
        return (self.k + 1) ** 2

    def bins(self, trend: Rates, rates: Rates) -> tuple[int, int]:
        """Bins of the believed share of violating draws and of the judge's yes."""
        draw_prior, judge_prior = rates.bad / (rates.bad + rates.fine), rates.yes / (rates.yes + rates.no)
        draw = (trend.bad + _PRIOR_WEIGHT * draw_prior) / (trend.bad + trend.fine + _PRIOR_WEIGHT)
        judge = (trend.yes + _PRIOR_WEIGHT * judge_prior) / (trend.yes + trend.no + _PRIOR_WEIGHT)
        return min(int(draw * BINS), BINS - 1), min(int(judge * BINS), BINS - 1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `Plan.from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Plan":
        costs, savings = Costs(**fields["costs"]), Savings(**fields["savings"])
        return cls(**{**fields, "costs": costs, "savings": savings})


def _tables(plan: Plan) -> Tables:
    """Backward induction over (violations, clears), per bin of both beliefs."""
    size, centres = plan.k + 1, (np.arange(BINS) + 0.5) / BINS
    accept = np.zeros((BINS, size, size))
    finish = np.zeros((BINS, size, size))
    total = np.zeros((BINS, BINS, size, size))
    judge_first = np.zeros((BINS, BINS, size, size), dtype=np.uint8)
    draw_cost, judge_cost = plan.costs.rollout + plan.costs.guard, plan.costs.judge
    accept[:, plan.needed :, : plan.clearing] = 1.0
    total[:, :, plan.needed :, : plan.clearing] = judge_cost
    for bad in reversed(range(plan.needed)):
        for fine in reversed(range(plan.clearing)):
            share = (_STRENGTH * centres + bad) / (_STRENGTH + bad + fine)
            more, less = (bad + 1, fine), (bad, fine + 1)
            accept[:, bad, fine] = share * accept[:, *more] + (1 - share) * accept[:, *less]
            finish[:, bad, fine] = draw_cost + share * finish[:, *more] + (1 - share) * finish[:, *less]
            judging = judge_cost + centres[None, :] * finish[:, bad, fine, None]
            wide = share[:, None]
            drawing = draw_cost + wide * total[:, :, *more] + (1 - wide) * total[:, :, *less]
            judge_first[:, :, bad, fine] = judging < drawing
            total[:, :, bad, fine] = np.minimum(judging, drawing)
    burst = np.array([_bursts(plan, centre) for centre in centres], dtype=np.uint8)
    return Tables(burst.tobytes(), accept.ravel().tolist(), judge_first.tobytes())


def _bursts(plan: Plan, centre: float) -> np.ndarray:
    """[k + 1, k + 1] draws to ask at once: the most whose last one is needed with probability `sure`."""
    size = plan.k + 1
    result = np.zeros((size, size), dtype=np.uint8)
    for bad in range(plan.needed):
        for fine in range(plan.clearing):
            share = (_STRENGTH * centre + bad) / (_STRENGTH + bad + fine)
            for draws in range(1, plan.k - bad - fine + 1):
                if _undecided(plan, bad, fine, share, draws - 1) < plan.sure - 1e-9:
                    break
                result[bad, fine] = draws
    return result


def _undecided(plan: Plan, bad: int, fine: int, share: float, draws: int) -> float:
    """Probability that `draws` more draws leave the prefix neither flagged nor cleared."""
    most_bad, most_fine = plan.needed - 1 - bad, plan.clearing - 1 - fine
    return sum(
        math.comb(draws, more) * share**more * (1 - share) ** (draws - more)
        for more in range(max(0, draws - most_fine), min(draws, most_bad) + 1)
    )
