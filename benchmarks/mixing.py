"""Mixed-language detection against simpler rules, on parallel human translations.

    python benchmarks/mixing.py [--json FILE] [--catqa FOLDER] [--peers] [--rows 150]

The test set is benchmarks/mixing_cases.py.

Rivals: lingua's `detect_multiple_languages_of` alone, a script-share rule (over 2 % of letters in a foreign
script), the bare copy rule (any lower-case source word occurs in the translation), and, with --peers,
py3langid over windows of three words, in a throwaway virtual environment.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

from mixing_cases import CATQA, Case, cases, catqa, seeds, words_of

from synth.language import detectable, language
from synth.mixing import mixing
from synth.scripts import script_shares

SECOND = ("native-ending", "other-ending", "transliterated")  # the second kind, reported apart
PY3LANGID = """
import json, sys, time
import py3langid
rows = json.load(open(sys.argv[1]))
py3langid.classify("load")
start, found = time.perf_counter(), []
for text, code in rows:
    words = text.split() if len(text.split()) > 4 else [text[i : i + 4] for i in range(0, len(text), 4)]
    windows = [" ".join(words[i : i + 5]) for i in range(0, max(1, len(words) - 4), 2)]
    found.append(any(py3langid.classify(window)[0] != code for window in windows))
json.dump({"seconds": time.perf_counter() - start, "found": found}, open(sys.argv[2], "w"))
"""


@cache
def lingua(codes: tuple[str, ...]):
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_iso_codes_639_1(
        *(getattr(IsoCode639_1, c.upper()) for c in codes)
    ).build()


def by_lingua(case: Case, codes: tuple[str, ...]) -> bool:
    if not detectable(case.language):
        return False
    parts = lingua(codes).detect_multiple_languages_of(case.text)
    return any(part.language.iso_code_639_1.name.lower() != case.language for part in parts)


def by_scripts(case: Case) -> bool:
    home = language(case.language).scripts
    return sum(share for script, share in script_shares(case.text).items() if script not in home) > 0.02


def by_copies(case: Case) -> bool:
    theirs = {word for word in words_of(case.source) if word.islower()}
    return bool(theirs & set(words_of(case.text)))


def judged(found: list[bool], every: list[Case]) -> dict[str, float]:
    """Precision, recall and F1 of mixed texts of the first kind, false positives, and the share found by
    kind."""
    first = [(f, c) for f, c in zip(found, every, strict=True) if c.kind not in SECOND]
    hits = sum(f for f, c in first if c.kind != "negative")
    false = sum(f for f, c in first if c.kind == "negative")
    missed = sum(not f for f, c in first if c.kind != "negative")
    kinds: dict[str, list[bool]] = {}
    for f, c in zip(found, every, strict=True):
        kinds.setdefault(c.kind, []).append(f)
        if c.kind.startswith("third"):
            kinds.setdefault("third", []).append(f)
    scores = {"precision": hits / max(1, hits + false), "recall": hits / max(1, hits + missed)}
    scores["f1"] = 2 * hits / max(1, 2 * hits + false + missed)
    return scores | {f"found:{kind}": sum(values) / len(values) for kind, values in sorted(kinds.items())}


def langid(every: list[Case]) -> tuple[list[bool], float] | None:
    """py3langid in a throwaway environment."""
    with tempfile.TemporaryDirectory() as folder:
        python, source, target = (Path(folder) / name for name in ("v/bin/python", "in.json", "out.json"))
        venv.create(Path(folder) / "v", with_pip=True)
        if subprocess.run(
            [python, "-m", "pip", "install", "-q", "py3langid"], capture_output=True
        ).returncode:
            return None
        source.write_text(json.dumps([[case.text, case.language] for case in every]))
        subprocess.run([python, "-c", PY3LANGID, source, target], check=True)
        done = json.loads(target.read_text())
    return done["found"], done["seconds"]


def measure(every: list[Case], peers: bool) -> list[dict]:
    codes = tuple(sorted({case.language for case in every} | {"en"}))
    systems: dict[str, Callable[[Case], bool]] = {
        "ours, with source": lambda case: mixing(case.text, case.language, case.source).mixed,
        "ours, without": lambda case: mixing(case.text, case.language).mixed,
        "lingua": lambda case: by_lingua(case, codes),
        "script shares": by_scripts,
        "source copies": by_copies,
    }
    runs_of: dict[str, tuple[list[bool], float]] = {}
    for name, rule in systems.items():
        for case in every[:: max(1, len(every) // 200)]:
            rule(case)  # models and word lists are loaded once a process
        start = time.process_time()
        found = [rule(case) for case in every]
        runs_of[name] = found, time.process_time() - start
    if peers and (done := langid(every)):
        runs_of["py3langid"] = done
    records = []
    for name, (found, seconds) in runs_of.items():
        for code in ("all", *sorted({case.language for case in every})):
            mine = [(f, c) for f, c in zip(found, every, strict=True) if code in ("all", c.language)]
            scores = judged([f for f, _ in mine], [c for _, c in mine])
            records.append(
                {
                    "system": name,
                    "language": code,
                    "cases": len(mine),
                    "rows_per_second": len(every) / seconds,
                }
                | scores
            )
    return records


def show(records: list[dict]) -> None:
    columns = [
        "f1",
        "precision",
        "recall",
        *(
            f"found:{k}"
            for k in (
                "negative",
                "1",
                "2",
                "4",
                "clause",
                "third",
                "native-ending",
                "other-ending",
                "transliterated",
            )
        ),
    ]
    print(f"{'system':20s} {'lang':5s} " + " ".join(f"{c.removeprefix('found:'):>9.9s}" for c in columns))
    for record in records:
        if record["language"] == "all" or record["system"].startswith("ours"):
            line = " ".join(f"{record[c]:9.3f}" if c in record else " " * 9 for c in columns)
            print(f"{record['system']:20s} {record['language']:5s} {line} {record['rows_per_second']:8.0f}/s")


def claims(records: list[dict]) -> list[dict]:
    found = []
    goals = {"ours, with source": {"f1": 0.98, "found:1": 0.9}, "ours, without": {"f1": 0.88, "found:1": 0.6}}
    for system, wanted in goals.items():
        mine = [r for r in records if r["system"] == system]
        whole = mine[0]
        for key, goal in (wanted | {"found:third": 0.85, "rows_per_second": 2000}).items():
            found.append(
                {
                    "name": f"{system}: {key}",
                    "value": whole[key],
                    "unit": "",
                    "goal": goal,
                    "holds": whole[key] >= goal,
                }
            )
        worst = max(mine[1:], key=lambda r: r["found:negative"])
        name = f"{system}: false positives in the worst language ({worst['language']})"
        value = worst["found:negative"]
        found.append({"name": name, "value": value, "unit": "", "goal": 0.02, "holds": value <= 0.02})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--catqa", type=Path, default=CATQA)
    parser.add_argument("--rows", type=int, default=150, help="texts per language")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    data = seeds()
    if options.catqa.exists():
        data |= catqa(options.catqa)
    else:
        print(f"no CatQA at {options.catqa}: the policy's seeds alone", file=sys.stderr)
    every = cases(data, options.rows, options.seed)
    records = measure(every, options.peers)
    show(records)
    held = claims(records)
    for claim in held:
        verdict = "holds" if claim["holds"] else "FAILS"
        print(f"{verdict}  {claim['name']}: {claim['value']:.4g} (goal {claim['goal']})")
    if options.json:
        where = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "load": os.getloadavg()[0],
        }
        record = {"environment": where | {"cases": len(every)}, "measurements": records, "claims": held}
        record["examples"] = [asdict(case) for case in every[:20]]
        options.json.write_text(json.dumps(record, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
