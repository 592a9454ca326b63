"""Which prompt can take which tokens over from another one, so that no prefix is computed twice.

In lexicographic order, the prompt that shares most with a given one among all before it is its direct
neighbour; so one sort finds for each prompt its best source (the idea of a radix tree, as in SGLang, without
the tree). Longer prompts come before their own prefixes: a response's prefixes, k samples of one prompt, and
rows under one template all reduce to what is new in them. A prompt borrows from the row that first had the
shared tokens, and the prompts fall into waves: those that borrow from nobody, then those that borrow from
these, and so on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SHORTEST_LOAN = 8  # tokens: below, a copy per layer costs as much as computing them


def batch_order(prompt: list[int]) -> tuple[int, list[int]]:
    """Sort key for rows that are to share batches: longest first, in steps of 32 tokens, then by their
    tokens."""
    return -(len(prompt) // 32), prompt


@dataclass(frozen=True)
class Loan:
    """`prompt` takes its first `shared` tokens from `source` (numbers of prompts; shared 0: from nobody)."""

    prompt: int
    source: int
    shared: int


def plan(prompts: Sequence[list[int]], known: int = 0) -> list[list[Loan]]:
    """Waves of loans for the prompts from number `known` on; those before are there already and only lend.

    The last token of a prompt is never borrowed (it is fed later). Within a wave, the prompt with most tokens
    of its own comes first.
    """
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i], i < known), reverse=True)
    loans: dict[int, Loan] = {}
    wave_of: dict[int, int] = {}
    for before, number in zip([-1, *order], order, strict=False):
        shared = 0 if before < 0 else _common(prompts[before], prompts[number])
        source = before
        while shared and source in loans and loans[source].shared >= shared:
            source = loans[source].source
        if number < known:
            wave_of[number] = -1
            continue
        if shared < min(SHORTEST_LOAN, max(1, len(prompts[number]) - 1)):
            source, shared = -1, 0
        loans[number] = Loan(number, source, shared)
        wave_of[number] = wave_of[source] + 1 if shared else 0
    waves: list[list[Loan]] = [[] for _ in range(max(wave_of.values(), default=-1) + 1)]
    for number, loan in loans.items():
        waves[wave_of[number]].append(loan)
    for wave in waves:
        wave.sort(key=lambda loan: (loan.shared - len(prompts[loan.prompt]), loan.prompt))
    return waves


def _common(lender: list[int], borrower: list[int]) -> int:
    """Tokens that both begin with and that the lender has computed: neither one's last token counts."""
    limit = min(len(lender), len(borrower)) - 1
    if lender[:limit] == borrower[:limit]:
        return max(0, limit)
    return next(i for i in range(limit) if lender[i] != borrower[i])
