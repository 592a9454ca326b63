"""The control of a training: itself, with its labels dealt out at random among the examples.

Labels stay within a side, so that every answer keeps its form. What the control scores is what the method scores
without information; a guard that is not ahead of it has learned nothing.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from train.data import GenExample, StreamExample

CONTROL = "control"


def shuffled_gen(examples: Sequence[GenExample], seed: int) -> list[GenExample]:
    """Answers dealt out at random among examples whose answers have as many lines (one side's do)."""
    out = list(examples)
    for lines in sorted({example.answer.count("\n") for example in examples}):
        places = [i for i, example in enumerate(examples) if example.answer.count("\n") == lines]
        dealt = list(places)
        random.Random(f"{seed}/{lines}").shuffle(dealt)
        for place, source in zip(places, dealt, strict=True):
            out[place] = replace(out[place], answer=examples[source].answer, label=examples[source].label)
    return out


def shuffled_stream(examples: Sequence[StreamExample], seed: int) -> list[StreamExample]:
    """Labels dealt out at random per branch; an onset moves as a share of the response's length."""
    out = list(examples)
    for name in ("query", "response"):
        places = [i for i, example in enumerate(examples) if getattr(example, f"{name}_risk") is not None]
        dealt = list(places)
        random.Random(f"{seed}/{name}").shuffle(dealt)
        for place, source in zip(places, dealt, strict=True):
            labels: dict[str, Any] = {
                f"{name}_{what}": getattr(examples[source], f"{name}_{what}") for what in ("risk", "category")
            }
            if name == "response":
                onset, length = examples[source].onset, max(1, len(examples[source].response))
                share = None if onset is None else onset / length
                labels["unmarked"] = examples[source].unmarked
                labels["onset"] = None if share is None else int(share * len(examples[place].response))
            out[place] = replace(out[place], **labels)
    return out
