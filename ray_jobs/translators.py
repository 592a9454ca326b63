"""Who translates: apertium, a rule-based program, or the language model bound to the role `translator`; and who judges.

Code, addresses and quotations travel as numbered marks (synth.protect). A model is asked by the policy's own template,
`translator`; the one retry says firmly what has to change and samples with another seed. The judge reads source and
translation by the template `translation_judge`, and its answer is a probability, from `score`. A translation back into
the source language can be compared with the source by the embedder's cosine.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_jobs.engine import Failure, Sampling
from ray_jobs.step import Work
from synth.fence import fence
from synth.ids import seed_for
from synth.protect import protect, restore
from synth.responses import split_thinking
from synth.templates import render
from synth.translate import firmer, marks_kept

APERTIUM = {"en": "eng", "es": "spa", "pt": "por", "it": "ita", "fr": "fra", "ca": "cat"}


@dataclass(frozen=True)
class Told:
    """A translation, or why there is none."""

    text: str = ""
    failure: str = ""
    raw: str = ""


def apertium_version() -> str:
    """The installed apertium's version, or "" where there is none."""
    if shutil.which("apertium") is None:
        return ""
    told = subprocess.run(["apertium", "-V"], capture_output=True, text=True, check=False)
    return (told.stdout or told.stderr).strip().splitlines()[0]


def translator(work: Work) -> str:
    """Which one this run has: "model", "apertium", or "" for none. A model bound to the role comes first."""
    if "translator" in work.engines.roles:
        return "model"
    return "apertium" if work.config.program else ""


def translate(work: Work, texts: Sequence[str], source: str, target: str, firm: bool = False) -> list[Told]:
    """Translations in the order of the texts; `firm` for the second try, which only a model can do better."""
    masks = [protect(text) for text in texts]
    masked = [mask.text for mask in masks]
    if translator(work) == "model":
        told = by_model(work, masked, source, target, firm)
    else:
        told = by_apertium(masked, source, target)
    return [
        one if one.failure else Told(restore(one.text, mask.pieces)[0])
        for one, mask in zip(told, masks, strict=True)
    ]


def by_model(work: Work, texts: Sequence[str], source: str, target: str, firm: bool) -> list[Told]:
    """By the role `translator`. A text's seed depends on the text alone: a prompt reads the same in all its rows."""
    client = work.engines.get("translator")
    prompts, seeds = [], []
    for text in texts:
        asked = render(work.policy, "translator", source=source, target=target, text=text)
        asked += marks_kept(text) + (firmer(source, target) if firm else "")
        prompts.append([{"role": "user", "content": asked}])
        seeds.append(seed_for(work.seed, f"translate:{source}:{target}:{text}", int(firm)))
    longest = max((len(text) for text in texts), default=0)
    sampling = Sampling(max_tokens=max(64, longest), temperature=work.config.temperature)
    told = []
    for answer in client.generate(prompts, sampling, seeds):
        if isinstance(answer, Failure):
            told.append(Told(failure=answer.reason, raw=answer.raw))
        else:
            told.append(Told(split_thinking(answer.text).text.strip()))
    return told


def by_apertium(texts: Sequence[str], source: str, target: str) -> list[Told]:
    """By apertium, one line each; unknown words are not marked."""
    lines = [" ".join(text.split()) for text in texts]
    told = subprocess.run(
        ["apertium", "-u", f"{APERTIUM[source]}-{APERTIUM[target]}"],
        input="\n\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line.strip() for line in told.stdout.split("\n\n")]
    if len(found) != len(lines):
        return [Told(failure="apertium gave another number of lines")] * len(lines)
    return [Told(text) if text else Told(failure=f"apertium gave nothing for {target}") for text in found]


def adequacy(
    work: Work, pairs: Sequence[tuple[str, str]], source: str, target: str
) -> list[float | Failure | None]:
    """The judge's probability that each (source text, translation) says the same; None where no judge is bound."""
    if "translation_judge" not in work.engines.roles:
        return [None] * len(pairs)
    prompts = []
    for pair in pairs:
        note, (text, translation) = fence(pair)
        values = {"source": source, "target": target, "text": text, "translation": translation}
        asked = render(work.policy, "translation_judge", **values)
        prompts.append([{"role": "user", "content": f"{note}\n\n{asked}"}])
    answers = work.engines.get("translation_judge").score(prompts, [("Yes", "No")] * len(prompts))
    return [answer if isinstance(answer, Failure) else answer.probabilities[0] for answer in answers]


def back_similarity(
    work: Work, pairs: Sequence[tuple[str, str]], source: str, target: str
) -> list[float | None]:
    """Cosine, by the role `embedder`, of each source text and its translation's translation back; None where it
    is switched off or the way back failed."""
    if not work.config.back_similarity or not pairs:
        return [None] * len(pairs)
    back = translate(work, [translation for _, translation in pairs], target, source)
    told = [one.text for one in back]
    vectors = work.engines.get("embedder").embed([*(text for text, _ in pairs), *told])
    result: list[float | None] = []
    for i, one in enumerate(back):
        here, there = vectors[i], vectors[len(pairs) + i]
        if one.failure or isinstance(here, Failure) or isinstance(there, Failure):
            result.append(None)
        else:
            result.append(float(here @ there / (np.linalg.norm(here) * np.linalg.norm(there) + 1e-12)))
    return result
