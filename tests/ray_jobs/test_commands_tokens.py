"""Token labels as people read them: the boundary marked in the text, the evidence under it."""

import pytest

from ray_jobs.cli import main
from ray_jobs.commands_tokens import marked, visible
from ray_jobs.store import Store
from ray_jobs.token_tables import COSTS, TOKEN_CHECKS, TOKEN_LABELS


def row(response: str, onset: int | None, **more) -> dict:
    seen = {
        "prefix": 3,
        "token": 5,
        "char_end": len(response) - 1,
        "violations": 7,
        "draws": 8,
        "judge": 0.913,
    }
    unasked = {"prefix": 2, "token": 4, "char_end": 4, "violations": 0, "draws": 2, "judge": None}
    found = {"id": "t1", "parent_id": "r1", "group_id": "g", "prompt": "Tell\nme.", "response": response}
    found |= {
        "part": "answer",
        "language": "und",
        "severity": "Unsafe",
        "reason": "",
        "tokens": 9,
        "labels": [],
    }
    found |= {"outcome": "none" if onset is None else "boundary", "boundary": onset and 4, "onset": onset}
    found |= {"evidence": [unasked, seen], "lost_calls": 0, "state": None} | dict.fromkeys(COSTS, 11)
    return found | {"paper_rollouts": 72} | more


@pytest.mark.parametrize(
    ("response", "onset", "shown"),
    [
        ("好的。先关灯，再做坏事。", 6, "好的。先关灯⟦Unsafe⟧，再做坏事。"),
        ("fine 👨‍👩‍👧 then 👍🏽 bad", 17, "fine 👨‍👩‍👧 then 👍⟦Unsafe⟧🏽 bad"),
        ("all\x1b[31m red", 4, "all·⟦Unsafe⟧[31m red"),
    ],
)
def test_the_boundary_stands_in_the_text_and_the_evidence_under_it(response, onset, shown):
    lines = marked(row(response, onset)).split("\n")
    assert lines[0] == f"t1  Unsafe, boundary at token 4 of 9, character {onset}"
    assert lines[1].endswith("Tell·me.") and lines[2].endswith(f" {shown}")
    assert "token       4  0 of 2 violate   judge not asked" in lines[3]
    assert "token       5  7 of 8 violate   judge 0.91" in lines[4]
    assert lines[4].endswith(visible(response[:-1])[-24:])
    assert "every prefix with all draws: 72 continuations" in lines[5]


def test_a_search_without_a_boundary_says_why():
    told = marked(row("all is well", None, outcome="capped", reason="stopped after 9 rollouts, 90 tokens"))
    assert told.startswith("t1  Unsafe, capped (stopped after 9 rollouts, 90 tokens)\n") and "⟦" not in told


def test_neighbours_that_only_the_judge_saw_share_a_line():
    seen = [
        {"prefix": i, "token": i, "char_end": i + 1, "violations": 0, "draws": 0, "judge": i / 10}
        for i in range(4)
    ]
    drawn = {"prefix": 4, "token": 4, "char_end": 5, "violations": 4, "draws": 4, "judge": 0.9}
    lines = marked(row("all is well", 4, evidence=[*seen, drawn])).split("\n")
    assert "token     0-3  nothing drawn    judge <= 0.30" in lines[3] and lines[3].endswith("all ")
    assert "4 of 4 violate" in lines[4] and lines[5].startswith("  cost")


def test_show_prints_one_row_by_its_id(tmp_path, put, capsys):
    root = str(tmp_path / "root")
    put(Store(root), "token_labels", TOKEN_LABELS, [row("好的。坏事。", 3), row("other", None, id="t2")])
    assert main(["show", "token_labels", "t1", "--root", root]) == 0
    told = capsys.readouterr().out
    assert "好的。⟦Unsafe⟧坏事。" in told and "t2" not in told
    assert main(["show", "token_labels", "--root", root]) == 0
    assert "t2" in capsys.readouterr().out


def test_show_says_how_far_an_approximate_mode_agreed_with_the_exact_one(tmp_path, put, capsys):
    root = str(tmp_path / "root")
    checks = [
        {"id": f"c{i}", "parent_id": "t1", "group_id": "g", "mode": "bisect", "same": i > 0} for i in range(3)
    ]
    put(Store(root), "token_labels", TOKEN_LABELS, [row("other", None)], "run")
    put(Store(root), "token_label_checks", TOKEN_CHECKS, checks, "run")
    assert main(["show", "token_labels", "--root", root]) == 0
    assert capsys.readouterr().out.endswith("2 of 3 texts checked: bisect as exact\n")
