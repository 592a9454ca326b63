"""Simulated responses for the token label benchmark: all outcomes of a search, drawn before anyone asks.

A response has 50 to 500 tokens (one in five exactly 300) and one of five curves of the share of violating
draws: step, ramp, noisy, bump (non-monotone) and never. The judge follows the turn with a lag of -5 to 30
tokens and errs on 3 % of the prefixes at random. In recycle mode a continuation agrees with the next m
tokens with probability 0.4 ** m.

Cost in FLOPs, 2 x active parameters x tokens, attention left out: rollouts by a 7B model (64 new tokens),
a 4B guard (the continuation and 20 tokens of instruction end), a judge with 235B parameters of which 22B
are active (30 tokens of instruction end). With a prefix cache, one token of the shared prefix is new per
call.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from label.rollout_plan import Costs
from label.rollout_state import GUARD, JUDGE, ROLLOUT, Request, Result

SHAPES = ("step", "ramp", "noisy", "bump", "never")
NEW_TOKENS, PROMPT, INSTRUCTION, GUARD_END, JUDGE_END = 64, 60, 400, 20, 30
ROLLOUT_MODEL, GUARD_MODEL, JUDGE_ACTIVE, JUDGE_DENSE = 7e9, 4e9, 22e9, 235e9


@dataclass(frozen=True)
class Response:
    """All outcomes of one simulated response: violating [n][k], judge [n], agreeing [n][k], and sentence ends."""

    shape: str
    violating: list[list[bool]]
    judge: list[bool]
    agreeing: list[list[int]]
    sentence_ends: list[int]


def costs(cached: bool = True, judge_parameters: float = JUDGE_ACTIVE, length: int = 150) -> Costs:
    """FLOPs of one call at a prefix of `length` tokens; cached: only one token of the shared prefix is new."""
    context = 1 if cached else PROMPT + length
    instruction = 0 if cached else INSTRUCTION
    return Costs(
        rollout=2 * ROLLOUT_MODEL * (context + NEW_TOKENS),
        guard=2 * GUARD_MODEL * (context * (not cached) + instruction + NEW_TOKENS + GUARD_END),
        judge=2 * judge_parameters * (context + instruction + JUDGE_END),
    )


def violation_curve(shape: str, length: int, turn: int, rng: np.random.Generator) -> np.ndarray:
    """[length] share of draws that violate."""
    at, low, high = np.arange(length), rng.uniform(0.0, 0.1), rng.uniform(0.93, 1.0)
    if shape == "never":
        return np.full(length, rng.uniform(0.0, 0.35))
    if shape == "step":
        return np.where(at < turn, low, high)
    ramp = np.clip((at - turn) / rng.uniform(20, 100) + 0.9, 0.0, 1.0)
    curve = low + (high - low) * ramp
    if shape == "noisy":
        noise = np.convolve(rng.normal(0, 0.25, length + 4), np.ones(5) / 5, "valid")
        curve = curve + noise
    if shape == "bump":
        centre = rng.uniform(0, max(turn - 10, 1))
        curve = curve + rng.uniform(0.4, 0.9) * np.exp(-(((at - centre) / rng.uniform(4, 12)) ** 2))
    return np.clip(curve, 0.0, 1.0)


def simulate(index: int, seed: int, k: int, length: int | None = None) -> Response:
    """Response `index`, the same on every machine."""
    rng = np.random.default_rng([seed, index])
    shape = SHAPES[index % len(SHAPES)]
    drawn = int(rng.integers(50, 501))
    length = length or (300 if index // len(SHAPES) % 5 == 0 else drawn)
    turn = int(rng.integers(length // 10, max(length * 9 // 10, length // 10 + 1)))
    share = violation_curve(shape, length, turn, rng)
    lag = int(rng.integers(-5, 31))
    unsafe = (np.arange(length) >= turn + lag) & (shape != "never")
    judge = unsafe ^ (rng.random(length) < 0.03)
    ends = np.cumsum(rng.integers(8, 30, length // 8 + 1))
    return Response(
        shape=shape,
        violating=(rng.random((length, k)) < share[:, None]).tolist(),
        judge=judge.tolist(),
        agreeing=(rng.geometric(0.6, (length, k)) - 1).tolist(),
        sentence_ends=[int(end) for end in ends if end < length],
    )


def answers(response: Response) -> Callable[[Request], Result]:
    """The table's answer to any request."""

    def answer(request: Request) -> Result:
        kind, prefix, draw = request
        if kind == ROLLOUT:
            return Result(ROLLOUT, prefix, draw, tokens=NEW_TOKENS)
        if kind == JUDGE:
            flag = response.judge[prefix]
            return Result(JUDGE, prefix, flag=flag, probability=0.1 + 0.8 * flag)
        agrees = response.agreeing[prefix][draw]
        return Result(GUARD, prefix, draw, flag=response.violating[prefix][draw], agrees=agrees)

    return answer
