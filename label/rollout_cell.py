"""What is known about one open prefix of a rollout search: its draws' outcomes and the judge's answer.

A cell is five unsigned integers: masks over the draws (asked and answered at all, violating, not
violating, lost to a failure) and the judge's answer in one byte. Verdicts are three-valued, since calls
can fail: a rejection by either test is enough, an acceptance needs both, and what neither can settle is
stuck.
"""

from array import array
from collections.abc import Iterator

from label.rollout_plan import Plan, Rates

ROLLED, BAD, FINE, LOST, JUDGED, FIELDS = 0, 1, 2, 3, 4, 5
Cell = tuple[int, int, int, int, int]
FRESH: Cell = (0, 0, 0, 0, 0)
OPEN, REJECTED, ACCEPTED, STUCK = 0, 1, 2, 3
UNASKED, JUDGE_FAILED = 0, 255
_JUDGE_STEPS = 125
# What a closed prefix says about the next ones, against the prefix after it.
_DECAY = 0.7


def each(cells: array) -> Iterator[Cell]:
    """The cells that stand in an array one after the other."""
    numbers = iter(cells)
    return zip(numbers, numbers, numbers, numbers, numbers, strict=True)


def judge_code(flag: bool, probability: float) -> int:
    """The judge's answer in a byte: its lowest bit is yes or no, the rest its probability in 125 steps."""
    steps = round(probability * _JUDGE_STEPS)
    if not 0 <= steps <= _JUDGE_STEPS:
        steps = 0 if steps < 0 else _JUDGE_STEPS
    return 3 + 2 * steps if flag else 2 + 2 * steps


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


def status(plan: Plan, cell: Cell) -> int:
    """What draws and judge say together."""
    _, bad, fine, lost, judge = cell
    if judge != UNASKED and not judge & 1:  # a failed one is odd
        return REJECTED
    draws = drawn(plan, bad.bit_count(), fine.bit_count(), lost.bit_count())
    if draws == REJECTED:
        return REJECTED
    if judge == UNASKED or draws == OPEN:
        return OPEN
    return ACCEPTED if draws == ACCEPTED and judge != JUDGE_FAILED else STUCK


def record_draw(cells: array, at: int, draw: int, field: int) -> None:
    """Set a draw's bit as answered (ROLLED) and in field BAD, FINE or LOST of the cell beginning at `at`."""
    if at >= len(cells):
        _grow(cells, at)
    cells[at + ROLLED] |= 1 << draw
    cells[at + field] |= 1 << draw


def record_judge(cells: array, at: int, flag: bool, probability: float, failed: bool) -> None:
    """Write the judge's answer into the cell beginning at `at`."""
    if at >= len(cells):
        _grow(cells, at)
    cells[at + JUDGED] = JUDGE_FAILED if failed else judge_code(flag, probability)


def _grow(cells: array, at: int) -> None:
    """Fresh cells up to the one beginning at `at`."""
    cells.frombytes(bytes((at + FIELDS - len(cells)) * cells.itemsize))


def close(plan: Plan, cells: array, trend: Rates) -> tuple[list[int], Rates]:
    """The verdicts on the leading cells that are decided, up to the first accepted or stuck one where the plan goes
    left to right, and the response's own recent rates with them."""
    bad, fine, yes, no = trend
    verdicts, to_first = [], plan.active.left_to_right
    for cell in each(cells):
        _, violating, clear, _, judge = cell
        verdict = REJECTED if judge and not judge & 1 else status(plan, cell)
        if verdict == OPEN:
            break
        verdicts.append(verdict)
        bad = _DECAY * bad + violating.bit_count()
        fine = _DECAY * fine + clear.bit_count()
        yes = _DECAY * yes + (judge & 1 and judge != JUDGE_FAILED)
        no = _DECAY * no + (judge != UNASKED and not judge & 1)
        if verdict != REJECTED and to_first:
            break
    return verdicts, Rates(bad, fine, yes, no)


def notes(cells: array) -> bytes:
    """Violations, other draws and the judge's code of each cell, three bytes."""
    found: list[int] = []
    for _, bad, fine, _, judge in each(cells):
        found += (bad.bit_count(), fine.bit_count(), judge)
    return bytes(found)


def note(evidence: bytearray, prefix: int, cell: Cell) -> None:
    """Write an examined prefix's note into the evidence, which may have gaps."""
    rolled, bad, fine, _, judge = cell
    if rolled or judge:
        at = 3 * prefix
        evidence.extend(bytes(max(0, at + 3 - len(evidence))))
        evidence[at : at + 3] = bytes((bad.bit_count(), fine.bit_count(), judge))
