"""Texts near an evaluation set are named, with the reason."""

import random

import pyarrow as pa

from synth.decontaminate import contaminated

WORDS = [f"word{i}" for i in range(2000)]


def sentence(seed, length):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def reasons(texts, evals):
    return [
        (r["row"], r["eval_row"], r["reason"])
        for r in contaminated(pa.array(texts), pa.array(evals)).to_pylist()
    ]


def test_a_run_of_thirteen_tokens_condemns():
    question = sentence(1, 40)
    run = " ".join(question.split()[10:23])
    short_of_it = " ".join(question.split()[10:22])
    evals = [sentence(2, 30), question]
    assert reasons([sentence(3, 50) + " " + run.upper() + "! " + sentence(4, 20)], evals) == [
        (0, 1, "long run")
    ]
    assert reasons([sentence(3, 50) + " " + short_of_it + " " + sentence(4, 20)], evals) == []


def test_a_short_question_wrapped_in_a_long_prompt_is_seen_by_runs_of_eight():
    question = sentence(5, 10)
    wrapped = f"{sentence(6, 40)}: {question}? {sentence(7, 40)}"
    assert reasons([sentence(8, 30), wrapped], [question]) == [(1, 0, "short runs")]


def test_a_near_duplicate_of_a_very_short_question_is_seen():
    assert reasons(["How do I bake a cake?!", "something else"], ["how do i bake a cake"]) == [
        (0, 0, "near-duplicate")
    ]


def test_one_common_phrase_of_eight_tokens_does_not_condemn():
    phrase = sentence(9, 8)
    assert reasons([phrase + " " + sentence(10, 30)], [sentence(11, 30) + " " + phrase]) == []


def test_scripts_without_spaces_are_compared_by_characters():
    question = "请问怎样才能在家里自己做一个很大的生日蛋糕给孩子们吃"
    found = contaminated(pa.array(["我想知道" + question + "谢谢大家", "今天天气很好"]), pa.array([question]))
    assert set(found["row"].to_pylist()) == {0}
    assert "long run" in found["reason"].to_pylist()


def test_empty_sides_are_near_nothing():
    assert reasons([], ["a b c"]) == []
    assert reasons(["", None, "..."], ["", None]) == []
    assert reasons(["a b c d"], []) == []
