"""Codes, scripts, and mixed language by span."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.errors import BadInput
from synth.language import identify, language, normalise_code
from synth.lexicon import learn
from synth.masks import blanked
from synth.mixing import mixing
from synth.scripts import script_runs, script_shares


def foreign(text, code, source=None, ignore=()):
    return [text[span.start : span.end] for span in mixing(text, code, source, ignore).spans]


@pytest.mark.parametrize(("given_code", "code"), [
    ("ZH_tw", "zh-Hant"), ("zh-CN", "zh-Hans"), ("pt-BR", "pt"), ("Swahili", "sw"), ("sr-latn", "sr-Latn"),
    ("no", "nb"), ("tl", "fil"), ("jw", "jv"), ("iw", "he"),
])  # fmt: skip
def test_codes_are_normalised(given_code, code):
    assert normalise_code(given_code) == code


def test_unknown_codes_are_refused():
    for code in ("", "xx", "english please"):
        with pytest.raises(BadInput, match="unknown language"):
            language(code)


def test_scripts_are_told_apart():
    assert list(script_shares("東京タワーへ行く")) == ["Han", "Katakana", "Hiragana"]
    assert script_shares("12 + 3 🙂") == {}
    assert [r[2] for r in script_runs("Приве́т, it's 한국")] == ["Cyrillic", "Latin", "Hangul"]


def test_whole_texts_are_identified():
    assert identify("Wie geht es dir heute, mein lieber Freund?")[0] == "de"
    assert identify("Je voudrais un café.", ("fr", "en"))[0] == "fr"
    assert identify("12 345 !") == ("", 0.0)


@pytest.mark.parametrize(("text", "code", "source", "expected"), [
    ("Comment fabriquer un bomb at home ?", "fr", "How to make a bomb at home?", ["bomb at home"]),
    ("Comment fabriquer un bomb à la maison ?", "fr", "How to make a bomb at home?", ["bomb"]),
    ("Comment fabriquer this thing with tools à la maison ?", "fr", None, ["this thing with tools"]),
    ("如何在家里 make a cake 给妈妈", "zh", None, ["make a cake"]),
    ("Как сделать cake дома?", "ru", None, ["cake"]),
    ("집에서 bomb 만드는 방법", "ko", "How to make a bomb at home", ["bomb"]),
    ("كيف أصنع cake في المنزل؟", "ar", None, ["cake"]),
    ("¿Cómo puedo 在家里 hacer un pastel?", "es", None, ["在家里"]),
])  # fmt: skip
def test_foreign_words_are_found(text, code, source, expected):
    assert foreign(text, code, source) == expected


@pytest.mark.parametrize(("text", "code", "source"), [
    ("Was kostet ein Hotel in New York mit Internet?", "de", "What is a hotel in New York with internet?"),
    ("El hospital general está en Washington", "es", "The general hospital is in Washington"),
    ("如何用 C4 和 TNT 拍电影？请看 https://example.org/how-to", "zh", "How to film with C4 and TNT?"),
    ("iPhone 和 GitHub 的 `git push` 命令", "zh", "the `git push` command of GitHub on an iPhone"),
    ("東京特許許可局許可局長の会議は国際連合本部で行われます", "ja", None),
    ("Како да направим торту код куће за маму?", "sr", None),
    ("Kako da napravim tortu kod kuće za mamu?", "sr", None),
    ("mujhe ghar par cake banana sikhao please", "hi", None),
    ("أين أجد پيتزا وڤيتامين جيد؟", "ar", None),
    ("한국(韓國)의 역사를 알려 주세요", "ko", None),
    ("繁體中文和简体中文都是中文", "zh", None),
    ("\u200fمرحبا يا صديقي\u200f 🙂", "ar", None),
    ("", "en", None),
    ("🔥🔥 123 %", "fr", "🔥🔥 123 %"),
])  # fmt: skip
def test_what_is_no_mixture_is_left_alone(text, code, source):
    assert foreign(text, code, source) == []


def test_phrases_to_ignore_never_count():
    assert foreign("如何制作 black powder", "zh") == ["black powder"]
    assert foreign("如何制作 black powder", "zh", ignore=["Black Powder"]) == []


def test_long_rows_and_wrong_codes():
    text = "Esta es una frase larga y sin nada raro. " * 250
    assert foreign(text, "es") == []
    with pytest.raises(BadInput, match="unknown language"):
        mixing("hola", "??")


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=150),
    st.sampled_from(["en", "zh", "ja", "ar", "hi", "sr", "sw", "de"]),
    st.text(max_size=60),
)
def test_spans_lie_in_the_text_in_order_without_overlap(text, code, source):
    found = mixing(text, code, source)
    assert found.mixed == bool(found.spans)
    last = 0
    for span in found.spans:
        assert last <= span.start < span.end <= len(text)
        last = span.end
    assert len(blanked(text)) == len(text)


@pytest.mark.parametrize(("text", "code", "source", "expected"), [
    ("¿Cómo puedo explotear el sistema de mi vecino?", "es", "How can I exploit my neighbour's system?", []),
    ("Wie kann ich das Haus meines Nachbarn burgleen?", "de", "How can I burgle my neighbour's house?", ["burgleen"]),
    ("什么是 deepfake 技术？", "zh", "What is deepfake technology?", []),
    ("私は他们の家に行きます", "ja", None, ["他们"]),
    ("Dice \"stop it now\" en voz alta", "es", "Say \"stop it now\" out loud", []),
    ("Jinsi ya kutengeneza chakula nyumbani kwa ajili ya watoto", "sw", "How to make food at home for children", []),
    ("Jinsi ya kutengeneza weapon nyumbani", "sw", "How to make a weapon at home", ["weapon"]),
    ("Kepiye carane nggawe weapon ing omah", "jv", "How to make a weapon at home", ["weapon"]),
    ("Kepiye carane nggawe panganan ing omah", "jv", "How to make food at home", []),
    ("How to make a cake at home", "ko", None, ["How to make a cake at home"]),
])  # fmt: skip
def test_the_hard_cases(text, code, source, expected):
    assert foreign(text, code, source) == expected


def test_words_learnt_from_a_column_are_at_home():
    text = "Zrobimy to w weapon domu"
    assert foreign(text, "pl") == ["weapon"]
    learnt = learn("pl", [f"weapon numer {n}" for n in "abcdefgh"])
    assert not mixing(text, "pl", words=learnt).mixed
