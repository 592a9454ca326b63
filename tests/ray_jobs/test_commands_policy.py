"""`guardmill policy`: lint passes on what ships and fails on broken policies, one sentence each; gold rows with their
reasons; the two labellings; what an edit touches."""

import json
from pathlib import Path

import pytest

from label.gold_agreement import agreement, settled_rows
from ray_jobs.cli import main
from ray_jobs.prompts import REJECTED
from ray_jobs.seeds import PROMPT
from ray_jobs.store import Store
from ray_jobs.voters import BALLOT
from synth.errors import BadInput
from synth.policy import load_gold, load_policy
from synth.policy_tools import skeleton, skeleton_gold

GOOD = skeleton("small")
SEED = '[You clumsy goose, "Listen, you turnip, nobody asked you."]'
TWIN = "{id: insult.name_calling, category: insult, name: Twin, definition: x, seeds: {Rude: {en: [Oi.]}}}"
PAIRS = """    pairs:
      en:
        - {violating: "You are a goose, Sam.", benign: "You have a goose, Sam."}
"""
WORDS = "en: [goose, turnip, clumsy]"
CURT = """      Curt:
        en: ["Oh you silly goose, not again."]
"""
NEIGHBOUR = "    excludes: Asking what such a word means, or quoting it.\n"
BANTER = "      Curt: It may be banter among friends.\n"
MANY = "[" + ", ".join(f"{chr(97 + i) * 30} {i}" for i in range(15)) + "]"
ONCE, AGAIN = '"Oh you silly goose, not again."', '"Listen you turnip, nobody asked you."'
# what is broken: (what stands there, what is put there, the exit code, words of the sentence)
BROKEN = {
    "a leaf's id twice": ("\n\ntemplates:", f"\n  - {TWIN}\n\ntemplates:", 2, "insult.name_calling"),
    "an unknown severity": (
        "      Rude:\n        en",
        "      Wild:\n        en",
        2,
        "unknown severity 'Wild'",
    ),
    "an unknown category": ("category: insult\n    name: N", "category: insults\n    name: N", 2, "insults"),
    "a field that a template may not use": ("{{ translation }}", "{{ nobody_gives }}", 2, "nobody_gives"),
    "no neighbour": (NEIGHBOUR, "", 1, "no neighbour"),
    "a severity without guidance": (BANTER, "", 1, "no guidance for Curt"),
    "keywords that never occur": (WORDS, "en: [qwx, zvb, kjh, plk, goose]", 1, "keywords are in none"),
    "a keyword twice": (WORDS, "en: [goose, turnip, Goose]", 1, "stands twice"),
    "one text under two severities": (ONCE, AGAIN, 1, "nearly the same"),
    "no contrastive pair": (PAIRS, "", 1, "no pairs"),
    "a severity without a seed": (CURT, "", 1, "no seed that is Curt"),
    "far more seeds of one severity": (SEED, MANY, 1, "Rude seeds against 2 Polite"),
}


def write(folder: Path, name: str, text: str, gold: str = skeleton_gold()) -> Path:
    (folder / "small_gold.jsonl").write_text(gold, encoding="utf-8")
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["safety", "data_quality"])
def test_lint_passes_on_the_policies_that_ship(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "lint", name]) == 0
    assert "nothing to mend" in capsys.readouterr().out


@pytest.mark.parametrize("case", list(BROKEN))
def test_lint_fails_on_a_broken_policy_with_one_sentence(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, code, part = BROKEN[case]
    assert GOOD.count(old) >= 1, old
    path = write(tmp_path, "small.yaml", GOOD.replace(old, new))
    assert main(["policy", "lint", str(path)]) == code
    told = capsys.readouterr()
    said = told.out if code == 1 else told.err
    assert part in said and said.count("\n") == 1, said
    assert told.err.startswith("guardmill: ") and told.err.count("\n") == 1


def test_a_seed_that_its_voters_contradict_is_a_finding_of_lint_with_a_root(
    tmp_path: Path, put, capsys: pytest.CaptureFixture[str]
) -> None:
    path, store = write(tmp_path, "small.yaml", GOOD), Store(str(tmp_path / "root"))
    texts = {"s1": "You clumsy goose", "s2": "The turnip is a root vegetable."}
    rows = [
        {"id": seed, "parent_id": "", "group_id": seed, "text": text, "history": [], "language": "en",
         "category": "insult", "leaf": "insult.name_calling", "intended": "", "human": "", "source": "seed",
         "keyword": "", "pair_id": ""}
        for seed, text in texts.items()
    ]  # fmt: skip
    put(store, "seeds", PROMPT, rows, "seeds")
    ballots = [
        {"id": f"{seed}{v}", "parent_id": seed, "group_id": seed, "voter": f"v{v}", "side": "prompt",
         "severity": [0.9, 0.1, 0.0], "category": [0.0], "refusal": None, "raw": ""}
        for seed in texts for v in range(3)
    ]  # fmt: skip
    put(store, "head_ballots", BALLOT, ballots, "voters")
    assert main(["policy", "lint", str(path), "--root", store.root]) == 1
    said = capsys.readouterr().out
    assert "You clumsy goose" in said and "turnip is a root" not in said
    with_none = Store(str(tmp_path / "empty"))
    assert main(["policy", "lint", str(path), "--root", with_none.root]) == 2
    assert "no votes on seeds" in capsys.readouterr().err


def test_random_gold_rows_come_with_their_reasons_the_same_ones_each_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["policy", "gold", "safety", "-n", "30"]) == 0
    first = capsys.readouterr().out
    heads = [line for line in first.splitlines() if not line.startswith(" ")]
    assert len(heads) == 30 and all(line.startswith("[") and ": " in line for line in heads)
    assert main(["policy", "gold", "safety", "-n", "30"]) == 0
    assert capsys.readouterr().out == first
    assert main(["policy", "gold", "safety", "-n", "5", "--side", "response", "--language", "zh"]) == 0
    assert capsys.readouterr().out.count("[zh]") == 5


def test_an_edit_tells_which_rows_of_a_root_it_touches(
    tmp_path: Path, put, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write(tmp_path, "small.yaml", GOOD)
    after = write(tmp_path, "new.yaml", GOOD.replace("You clumsy goose", "You clumsy duck"))
    harder = write(tmp_path, "harder.yaml", GOOD.replace("Nearly everybody", "Everybody"))
    store = Store(str(tmp_path / "root"))
    row = {"parent_id": "", "group_id": "g", "text": "x", "language": "en", "intended": "", "source": "", "keyword": "",
           "reason": "echo"}  # fmt: skip
    rows = [row | {"id": "a", "leaf": "insult.name_calling"}, row | {"id": "b", "leaf": "other"}]
    put(store, "prompts_rejected", REJECTED, rows, "prompts")
    assert main(["policy", "diff", str(before), str(after), "--root", store.root]) == 0
    said = capsys.readouterr().out
    assert "touches the rows of 1 leaves: insult.name_calling" in said
    assert "prompts_rejected@v1: 1 of 2 rows" in said and "every label" not in said
    assert main(["policy", "diff", str(before), str(harder)]) == 0
    assert "touches every label" in capsys.readouterr().out


def test_the_gold_set_was_labelled_twice_and_every_difference_is_settled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    policy = load_policy("safety")
    gold = load_gold(policy)
    prompts, responses = agreement(policy, gold)
    assert (prompts.side, responses.side) == ("prompt", "response")
    assert prompts.rows >= 600 and responses.rows >= 300 and prompts.unread + responses.unread < 20
    log = settled_rows(policy, gold)
    for side in (prompts, responses):
        apart = sum(sum(line) - line[at] for at, line in enumerate(side.counts))
        rows = {row.id for row in gold if row.side == side.side}
        assert apart == sum(row.id in rows and row.first.severity != row.second.severity for row in log)
        value, low, high = side.alpha["severity"]
        assert low <= value <= high and value > 0.8
    assert all(row.why for row in log)
    assert main(["policy", "agreement", "safety"]) == 0
    assert f"log: {len(log)} rows" in capsys.readouterr().out


def test_the_second_policys_gold_set_was_labelled_twice_too() -> None:
    policy = load_policy("data_quality")
    gold = load_gold(policy)
    (prompts,) = agreement(policy, gold)
    assert prompts.rows == len(gold) >= 200 and prompts.unread == 0 and prompts.alpha["severity"][0] > 0.8


@pytest.mark.parametrize(
    ("what", "line", "part"),
    [
        ("second", {"id": "nobody"}, "no row of the gold set"),
        ("second", {"severity": "Wild", "categories": [], "refusal": None}, "unknown label 'Wild'"),
        ("second", {"severity": "Rude"}, "a label has severity"),
    ],
)
def test_a_second_labelling_that_cannot_be_read_is_one_sentence(
    what: str, line: dict, part: str, tmp_path: Path
) -> None:
    policy = load_policy(write(tmp_path, "small.yaml", GOOD))
    gold = load_gold(policy)
    (tmp_path / f"small_gold_{what}.jsonl").write_text(json.dumps({"id": gold[0].id} | line))
    with pytest.raises(BadInput, match=part) as told:
        agreement(policy, gold)
    assert f"small_gold_{what}.jsonl: line 1" in str(told.value)


def test_without_a_second_labelling_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "agreement", str(write(tmp_path, "small.yaml", GOOD))]) == 2
    assert "no second labelling" in capsys.readouterr().err
