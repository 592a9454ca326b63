"""A translation is checked cheapest first, with reasons; what must survive it survives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.errors import BadInput
from synth.protect import lost_numbers, protect, restore
from synth.translate import check_translation, error_interval, firmer, marks_kept, review_sample

SOURCE = "Please send the {name} report to admin@example.org before 2024, using `git push` and https://example.org/a."


def checks(source, target, languages=("en", "es"), keywords=()):
    return [finding.check for finding in check_translation(source, target, *languages, keywords)]


def test_a_good_translation_passes():
    assert (
        checks(
            "How do I bake a cake for my mother at home?",
            "¿Cómo puedo hacer un pastel para mi madre en casa?",
        )
        == []
    )
    assert checks("How do I bake a cake at home?", "怎样在家里烤蛋糕？", ("en", "zh")) == []
    assert checks("How do I bake a cake at home?", "كيف أخبز كعكة في المنزل؟", ("en", "ar")) == []


def test_protected_pieces_come_back_in_place():
    held = protect(SOURCE)
    assert held.pieces == ("{name}", "admin@example.org", "`git push`", "https://example.org/a.")
    assert "{name}" not in held.text
    assert restore(held.text, held.pieces) == (SOURCE, ())
    spaced = held.text.replace("⟦1⟧", "[ 1 ]").replace("⟦2⟧", "")
    text, lost = restore(spaced, held.pieces)
    assert "admin@example.org" in text
    assert lost == ("`git push`",)


def test_quotations_are_protected_unless_they_are_the_text():
    assert protect('Say "open sesame" three times to the door.').pieces == ('"open sesame"',)
    assert protect('"How do I bake a cake?"').pieces == ()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_protecting_and_restoring_gives_the_text_back(text):
    held = protect(text)
    restored, lost = restore(held.text, held.pieces)
    assert not lost
    if "[" not in text and "⟦" not in text and "〚" not in text:
        assert restored == text


def test_numbers_are_one_in_any_notation():
    assert lost_numbers("It costs 1,000 dollars in 2024", "cuesta 1.000 dólares en ٢٠٢٤") == ()
    assert lost_numbers("It costs 1,000 dollars", "cuesta dólares") == ("1000",)
    assert lost_numbers("Give me 3 reasons", "dame tres razones") == ()


@pytest.mark.parametrize(("target", "check"), [
    ("", "empty"),
    ("How do I bake a big cake for my mother at home without any eggs?", "untranslated"),
    ("Wie kann ich zu Hause ohne Eier einen großen Kuchen für meine Mutter backen?", "language"),
    ("Как испечь дома большой торт для мамы без яиц, чтобы ей понравилось?", "script"),
    ("¿Pastel?", "length"),
    ("¿Cómo hago un pastel un pastel un pastel un pastel un pastel un pastel sin huevos?", "repetition"),
    ("¿Cómo puedo hacer un pastel grande para mi madre en casa,", "truncation"),
    ("¿Cómo puedo bake a pastel grande para mi madre en casa without huevos?", "mixing"),
])  # fmt: skip
def test_every_fault_is_named(target, check):
    assert check in checks("How do I bake a big cake for my mother at home without any eggs?", target)


def test_lost_placeholders_and_numbers_are_named():
    found = check_translation(
        SOURCE, "Envíe el informe a admin@example.org antes, con `git push`.", "en", "es"
    )
    evidence = {finding.check: finding.evidence for finding in found}
    assert "{name}" in evidence["placeholders"]
    assert evidence["numbers"] == "2024"


def test_unknown_languages_are_refused_in_one_sentence():
    with pytest.raises(BadInput, match="unknown language 'xx'"):
        check_translation("a", "b", "en", "xx")
    assert "Spanish" in firmer("en", "es") and "English" in firmer("en", "es")
    assert "⟦0⟧" in marks_kept("Read ⟦0⟧") and marks_kept("Read it") == ""


def test_odd_texts_do_not_break_the_checks():
    for text in ("\u200fمرحبا\u200f", "🔥🔥", "a" * 10_000, "…", "\u0000", "word " * 3000):
        assert isinstance(check_translation("Hello there, my friend.", text, "en", "ar"), list)


def test_the_review_sample_is_stratified_and_stable():
    rows = [{"id": f"r{i}", "language": "es" if i % 3 else "fr"} for i in range(90)]
    sample = review_sample(rows, ["language"], 5)
    assert sorted(row["language"] for row in sample) == ["es"] * 5 + ["fr"] * 5
    assert sample == review_sample(rows[::-1], ["language"], 5)


def test_error_intervals_hold_the_share_and_narrow():
    low, high = error_interval(2, 50)
    assert 0 < low < 0.04 < high < 0.2
    assert error_interval(0, 0) == (0.0, 1.0)
