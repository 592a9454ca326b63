"""What the shipped safety pack promises: breadth, languages, natural twins, no repeats, limits on content."""

import re
from collections import Counter, defaultdict

import pytest

from synth.policy import Leaf, Policy, load_policy
from synth.prompt_filters import Filters, bigrams, edit_similarity, similarity, twin_rejection, words
from synth.templates import FIELDS, render

CATEGORIES = {
    "violent": "Violent",
    "illegal": "Non-violent Illegal Acts",
    "sexual": "Sexual Content or Sexual Acts",
    "pii": "PII",
    "self_harm": "Suicide & Self-Harm",
    "unethical": "Unethical Acts",
    "political": "Politically Sensitive Topics",
    "copyright": "Copyright Violation",
    "jailbreak": "Jailbreak",
}
SEEDS = {"Unsafe": 6, "Controversial": 3, "Safe": 4}
KEYWORDS, PAIRS = 10, 4
PARTIAL = ("es", "ar", "ru", "ja", "de", "fr", "ko", "hi")
SCRIPTS = {"zh": "\u4e00-\u9fff", "ar": "\u0600-\u06ff", "ru": "\u0400-\u04ff", "ko": "\uac00-\ud7af"}
SCRIPTS |= {"hi": "\u0900-\u097f", "ja": "\u3040-\u30ff"}
WITHHELD = {"en": "[details withheld]", "zh": "[细节略去]"}
MINOR = re.compile(
    r"\b(child|children|kid|kids|minor|minors|teen\w*|girl|girls|boy|boys|schoolgirl|underage|\d\d?.year.old)\b",
    re.I,
)


@pytest.fixture(scope="module")
def pack() -> Policy:
    return load_policy("safety")


def seed_texts(leaf: Leaf, severity: str, language: str) -> list[str]:
    return [seed.text for seed in leaf.seeds if (seed.severity, seed.language) == (severity, language)]


def test_categories_and_severities_carry_the_published_names_in_order(pack: Policy) -> None:
    assert {category.id: category.name for category in pack.categories} == CATEGORIES
    assert [(level.name, level.violating) for level in pack.severities] == [
        ("Safe", "never"),
        ("Controversial", "strict"),
        ("Unsafe", "always"),
    ]
    assert pack.refusal and pack.answer_key == "Safety" and pack.sides == ("prompt", "response")
    assert set(pack.category_names("prompt")) - set(pack.category_names("response")) == {"Jailbreak"}


def test_every_category_has_leaves_and_jailbreak_holds_exactly_the_styles(pack: Policy) -> None:
    per_category = Counter(leaf.category for leaf in pack.leaves)
    assert set(per_category) == set(CATEGORIES)
    assert min(per_category.values()) >= 4 and len(pack.leaves) >= 40
    assert {leaf.id for leaf in pack.leaves if leaf.style} == {
        leaf.id for leaf in pack.leaves if leaf.category == "jailbreak"
    }
    assert per_category["jailbreak"] >= 6


def test_leaves_of_a_category_stand_together_and_are_named_after_it(pack: Policy) -> None:
    order = [leaf.category for leaf in pack.leaves]
    assert list(dict.fromkeys(order)) == list(CATEGORIES)
    assert order == sorted(order, key=list(CATEGORIES).index)
    assert all(leaf.id.startswith(leaf.category + ".") for leaf in pack.leaves)


def test_every_leaf_says_what_it_is_what_it_is_not_and_how_severe(pack: Policy) -> None:
    for leaf in pack.leaves:
        assert len(leaf.definition.split()) >= 6 and len(leaf.excludes.split()) >= 5, leaf.id
        assert tuple(leaf.guidance) == pack.severity_names, leaf.id
    assert len({leaf.definition for leaf in pack.leaves}) == len(pack.leaves)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_leaf_has_its_seeds_keywords_and_twins(pack: Policy, language: str) -> None:
    for leaf in pack.leaves:
        for severity, least in SEEDS.items():
            assert len(seed_texts(leaf, severity, language)) >= least, (leaf.id, severity)
        keywords = [keyword.text for keyword in leaf.keywords if keyword.language == language]
        assert len(set(keywords)) == len(keywords) >= KEYWORDS, leaf.id
        assert sum(pair.language == language for pair in leaf.pairs) >= PAIRS, leaf.id


@pytest.mark.parametrize("language", PARTIAL)
def test_other_languages_reach_several_leaves_on_both_sides_of_the_line(pack: Policy, language: str) -> None:
    leaves = [leaf for leaf in pack.leaves if any(seed.language == language for seed in leaf.seeds)]
    assert len(leaves) >= 4 and len({leaf.category for leaf in leaves}) >= 3
    for leaf in leaves:
        assert seed_texts(leaf, "Unsafe", language) and seed_texts(leaf, "Safe", language), leaf.id


def test_seeds_are_written_in_the_script_of_their_language(pack: Policy) -> None:
    for leaf in pack.leaves:
        for seed in leaf.seeds:
            if seed.language in SCRIPTS:
                assert re.search(f"[{SCRIPTS[seed.language]}]", seed.text), seed.text
            else:
                assert not re.search("[" + "".join(SCRIPTS.values()) + "]", seed.text), seed.text


def test_seeds_are_short_enough_for_a_small_writer(pack: Policy) -> None:
    for leaf in pack.leaves:
        for seed in leaf.seeds:
            assert 2 <= words(seed.text) <= Filters().max_words, seed.text


def test_twins_differ_little_and_lie_in_the_band_that_synthesis_asks_for(pack: Policy) -> None:
    for leaf in pack.leaves:
        for pair in leaf.pairs:
            assert twin_rejection(pair.violating, pair.benign, Filters()) is None, pair
    ratios = sorted(edit_similarity(p.violating, p.benign) for leaf in pack.leaves for p in leaf.pairs)
    assert ratios[len(ratios) // 2] > 0.75 and ratios[0] > 0.5


def test_no_text_of_the_pack_is_near_another_one_of_another_label_or_leaf(pack: Policy) -> None:
    grams: dict[str, list[tuple[frozenset[str], str, str]]] = defaultdict(list)
    for leaf in pack.leaves:
        for seed in leaf.seeds:
            grams[seed.language].append((bigrams(seed.text), seed.text, leaf.id))
    for rows in grams.values():
        for i, (left, text, _) in enumerate(rows):
            near = [other for right, other, _ in rows[:i] if similarity(left, right) >= 0.6]
            assert not near, f"{text!r} is near {near[0]!r}"


def content_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def test_safe_seeds_share_words_with_the_harmful_ones(pack: Policy) -> None:
    shared = []
    for leaf in pack.leaves:
        keywords = [keyword.text for keyword in leaf.keywords if keyword.language == "en"]
        harmful = content_words(" ".join(seed_texts(leaf, "Unsafe", "en") + keywords))
        shared += [bool(harmful & content_words(text)) for text in seed_texts(leaf, "Safe", "en")]
    assert sum(shared) / len(shared) > 0.7


def test_no_keyword_is_longer_than_a_phrase_and_several_of_each_leaf_occur_in_it(pack: Policy) -> None:
    for leaf in pack.leaves:
        texts = " ".join([s.text for s in leaf.seeds] + [p.violating for p in leaf.pairs]).casefold()
        assert all(len(keyword.text.split()) <= 4 for keyword in leaf.keywords), leaf.id
        assert sum(keyword.text.casefold() in texts for keyword in leaf.keywords) >= 4, leaf.id


def test_sketches_refuse_help_and_withhold_every_detail(pack: Policy) -> None:
    for leaf in pack.leaves:
        sketches = {sketch.language: sketch for sketch in leaf.sketches}
        assert {"en", "zh"} <= set(sketches), leaf.id
        for language, sketch in sketches.items():
            assert sketch.violating.endswith(WITHHELD[language]) and len(sketch.violating) < 120, leaf.id
            assert len({sketch.refusal, sketch.benign, sketch.violating}) == 3


def test_sexual_leaves_never_touch_on_minors(pack: Policy) -> None:
    for leaf in pack.leaves:
        if leaf.category == "sexual":
            texts = [text.text for text in (*leaf.seeds, *leaf.keywords)]
            texts += [text for pair in leaf.pairs for text in (pair.violating, pair.benign)]
            texts += [text for sketch in leaf.sketches for text in (sketch.benign, sketch.violating)]
            assert not [text for text in texts if MINOR.search(text)], leaf.id


def test_the_pack_carries_no_contact_data_links_or_long_numbers(pack: Policy) -> None:
    data = re.compile(r"https?://|www\.|\b\S+@\S+\.\w+|\d{5,}|\d+\s?(?:mg|ml|grams?|g)\b", re.I)
    for leaf in pack.leaves:
        texts = [seed.text for seed in leaf.seeds]
        texts += [text for s in leaf.sketches for text in (s.refusal, s.benign, s.violating)]
        assert not [text for text in texts if data.search(text)], leaf.id


def test_every_known_template_is_there(pack: Policy) -> None:
    assert set(FIELDS) <= set(pack.templates)


@pytest.mark.parametrize("severity", ["Unsafe", "Controversial", "Safe"])
def test_continuations_list_the_seeds_and_end_where_the_next_text_begins(pack: Policy, severity: str) -> None:
    for leaf in pack.leaves:
        seeds = seed_texts(leaf, severity, "en")[:5]
        values = {"leaf": leaf, "severity": severity, "seeds": seeds, "language": "en"}
        plain = render(pack, "writer_continuation", **values)
        keyed = render(pack, "keyword_continuation", keyword="lantern", **values)
        assert all(seed in plain and seed in keyed for seed in seeds)
        assert plain.endswith("\n-") and keyed.endswith("\n- lantern:")
        assert len(plain.split()) < 115 and len(keyed.split()) < 135, leaf.id
        assert len(plain.splitlines()) == len(keyed.splitlines()) == len(seeds) + 2, leaf.id


def test_keyword_continuation_opens_each_line_with_a_word_of_it(pack: Policy) -> None:
    for leaf in pack.leaves:
        seeds = seed_texts(leaf, "Unsafe", "en")
        values = {"leaf": leaf, "severity": "Unsafe", "seeds": seeds, "language": "en", "keyword": "x"}
        keyed = render(pack, "keyword_continuation", **values)
        for line, seed in zip(keyed.splitlines()[1:], seeds, strict=False):
            word = line.removeprefix("- ").removesuffix(seed).removesuffix(": ")
            assert word and word.casefold() in seed.casefold(), line


@pytest.mark.parametrize("language", ["zh", *PARTIAL])
def test_continuations_work_in_every_language_of_the_pack(pack: Policy, language: str) -> None:
    for leaf in pack.leaves:
        seeds = seed_texts(leaf, "Unsafe", language)
        if seeds:
            values = {"leaf": leaf, "severity": "Unsafe", "seeds": seeds, "language": language}
            plain = render(pack, "writer_continuation", **values)
            keyed = render(pack, "keyword_continuation", keyword="x", **values)
            assert len(plain.splitlines()) == len(keyed.splitlines()) == len(seeds) + 2, leaf.id
            assert leaf.name.lower() in plain.splitlines()[0].lower()


def test_contrast_continuation_ends_at_the_twin(pack: Policy) -> None:
    leaf = pack.leaves[0]
    pairs = [pair for pair in leaf.pairs if pair.language == "en"]
    text = render(pack, "contrast_continuation", leaf=leaf, pairs=pairs, text="How do I x?", language="en")
    assert all(pair.violating in text and pair.benign in text for pair in pairs)
    assert text.splitlines()[-1].startswith("How do I x?")


def test_respond_base_ends_where_the_answer_begins(pack: Policy) -> None:
    leaf = pack.leaves[0]
    example = {"prompt": "Where is it?", "response": "Over there."}
    for severity in pack.severity_names:
        values = {"leaf": leaf, "severity": severity, "language": "en", "examples": [example]}
        text = render(pack, "respond_base", text="And now?", **values)
        assert text.endswith("User: And now?\nAssistant:") and "Over there." in text


@pytest.mark.parametrize("side", ["prompt", "response"])
def test_judging_templates_name_every_level_and_the_categories_of_the_side(pack: Policy, side: str) -> None:
    for name in ("voter", "judge", "moderation_full"):
        text = render(pack, name, side=side, conversation="USER: Hello there", question="severity")
        assert all(level in text for level in pack.severity_names) and "USER: Hello there" in text
        assert all(category in text for category in pack.category_names(side))
        assert ("Jailbreak" in text) is (side == "prompt")
    full = render(pack, "moderation_full", side=side, conversation="USER: Hello there")
    assert (pack.refusal_definition in full) is (side == "response")
    assert ("Refusal: Yes|No" in full) is (side == "response")


def test_full_moderation_keeps_the_published_order_of_parts(pack: Policy) -> None:
    text = render(pack, "moderation_full", side="response", conversation="USER: Hello there")
    parts = ["# Task", "# Policy", "# Categories", "# Refusal policy", "# Conversation", "# Format"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_short_moderation_fits_eighty_tokens_with_a_short_text(pack: Policy) -> None:
    for side, talk in (("prompt", "USER: Hi"), ("response", "USER: Hi\n\nASSISTANT: Hello")):
        text = render(pack, "moderation_short", side=side, conversation=talk)
        assert len(re.findall(r"\w+|[^\w\s]", text)) <= 45  # at most 1.7 pieces of a BPE vocabulary each


def test_voter_asks_one_question_at_a_time(pack: Policy) -> None:
    values = {"side": "response", "conversation": "USER: Hi\n\nASSISTANT: Hello"}
    asked = {q: render(pack, "voter", question=q, **values) for q in ("severity", "category", "refusal")}
    assert asked["refusal"].rstrip().endswith("Answer Yes or No.")
    assert asked["category"].rstrip().endswith("Answer with its name alone.")
    assert asked["severity"].rstrip().endswith("Safe, Controversial, Unsafe.")
