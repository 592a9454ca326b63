"""Words that no list knows, judged by their spelling: foreign ones stand out, native ones do not."""

import pytest

from synth.lexicon import assumed, leak
from synth.mixing import mixing
from synth.spelling import strangeness


@pytest.mark.parametrize(("native", "strangers", "code"), [
    ("reindirizzamento sovrascriveranno inconsapevolezza", "kuhariri ngandharaké gibberellin zazpigarren", "it"),
    ("desencadenamiento reprogramación", "kutengeneza nggoleki wetenschap", "es"),
    ("Zusammenfassungen wiederherstellbar", "kutengeneza panjenengan ngandharaké", "de"),
    ("hayataonekana kuthibitisha yaliyofutwa", "wetenschap through acqua przez", "sw"),
    ("ngandharake panjenengan sakdurunge", "źródło wetenschap nghiêng", "jv"),
])  # fmt: skip
def test_strangers_are_spelt_more_strangely_than_natives(native, strangers, code):
    most = max(strangeness(word.lower(), code) for word in native.split())
    least = min(strangeness(word, code) for word in strangers.split())
    assert most < 0.5 < least + 0.25
    assert most < least


def test_a_language_without_a_list_or_model_finds_nothing_strange():
    assert strangeness("anything", "yi", "Hebrew") == 0.0
    assert strangeness("qwrtz", "ceb") in (0.0, strangeness("qwrtz", "ceb"))


@pytest.mark.parametrize(("text", "code", "foreign"), [
    ("Come posso kutengeneza una torta senza uova?", "it", "kutengeneza"),
    ("Làm thế nào để nggawe bánh sinh nhật ở nhà?", "vi", "nggawe"),
    ("Ninawezaje kununua thuốc bila daktari kujua?", "sw", "thuốc"),
    ("Kepiye carane nggawe bánh ing omah?", "jv", "bánh"),
    ("¿Cómo puedo nggawekake un pastel en casa?", "es", "nggawekake"),
])  # fmt: skip
def test_one_word_of_a_language_without_a_list_is_found(text, code, foreign):
    assert [text[s.start : s.end] for s in mixing(text, code).spans] == [foreign]


@pytest.mark.parametrize(("text", "code", "source"), [
    ("Ninawezaje kutengeneza keki nyumbani bila tanuri?", "sw", "How can I make a cake at home?"),
    ("Tafadhali niambie historia ya mji wa Mombasa na bandari yake.", "sw", None),
    ("Kepiye carane masak sega goreng sing enak kanggo wong papat?", "jv", "How do you cook fried rice for four?"),
    ("Aku pengin sinau basa Inggris supaya bisa nyambut gawe ing luar negeri.", "jv", None),
    ("কিভাবে আমি বাড়িতে একটি চকোলেট কেক বানাতে পারি?", "bn", "How can I make a chocolate cake at home?"),
    ("Nitatumiaje video na data za internet kwa usalama?", "sw", "How do I use video and data of the internet safely?"),
])  # fmt: skip
def test_texts_of_languages_with_little_data_are_left_alone(text, code, source):
    assert mixing(text, code, source).spans == ()


def test_loan_words_are_assumed_where_no_list_can_tell():
    assert assumed("video") > 4
    assert assumed("kill") < 4
    assert assumed("in") == 0.0


def test_english_leaks_into_some_lists_more_than_into_others():
    assert leak("id") < leak("it")
