"""What is known about one open prefix of a rollout search: its draws' outcomes and the judge's answer.

A cell is five unsigned integers: masks over the draws (asked and answered at all, violating, not
violating, lost to a failure) and the judge's answer in one byte. Verdicts are three-valued, since calls
can fail: a rejection by either test is enough, an acceptance needs both, and what neither can settle is
stuck.
"""

from array import array
from collections.abc import MutableSequence, Sequence

from label.rollout_plan import Plan

ROLLED, BAD, FINE, LOST, JUDGED, FIELDS = 0, 1, 2, 3, 4, 5
FRESH = array("I", [0] * FIELDS)
OPEN, REJECTED, ACCEPTED, STUCK = 0, 1, 2, 3
UNASKED, JUDGE_FAILED = 0, 255
_JUDGE_STEPS = 125


def judge_code(flag: bool, probability: float) -> int:
    """The judge's answer in a byte: its lowest bit is yes or no, the rest its probability in 125 steps."""
    return 2 + 2 * round(min(max(probability, 0.0), 1.0) * _JUDGE_STEPS) + bool(flag)


def judge_answer(code: int) -> tuple[bool, float] | None:
    """(yes or no, probability), None where the judge was not asked or failed."""
    return None if code in (UNASKED, JUDGE_FAILED) else (bool(code & 1), (code - 2) // 2 / _JUDGE_STEPS)


def bits(mask: int) -> list[int]:
    """Positions of the set bits, ascending."""
    found = []
    while mask:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return found


def drawn(plan: Plan, bad: int, fine: int, lost: int) -> int:
    """What the draws alone say: ACCEPTED (flagged), REJECTED (cleared), STUCK, or OPEN."""
    complete = bad + fine + lost >= plan.k
    if complete or plan.active.curtail:
        if bad >= plan.needed:
            return ACCEPTED
        if fine >= plan.clearing:
            return REJECTED
    return STUCK if complete else OPEN


def status(plan: Plan, cell: Sequence[int]) -> int:
    """What draws and judge say together."""
    _, bad, fine, lost, judge = cell
    draws = drawn(plan, bad.bit_count(), fine.bit_count(), lost.bit_count())
    if draws == REJECTED:
        return REJECTED
    if judge == UNASKED:
        return OPEN
    if judge != JUDGE_FAILED and not judge & 1:
        return REJECTED
    if draws == OPEN:
        return OPEN
    return ACCEPTED if draws == ACCEPTED and judge != JUDGE_FAILED else STUCK


def record_draw(cells: MutableSequence[int], at: int, draw: int, field: int) -> None:
    """Set a draw's bit as answered (ROLLED) and in field BAD, FINE or LOST of the cell beginning at `at`."""
    cells[at + ROLLED] |= 1 << draw
    cells[at + field] |= 1 << draw
