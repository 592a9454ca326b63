"""Languages by their codes, the scripts they are written in, and the language of a whole text.

Codes are BCP 47 in their short form: "en", "zh", "zh-Hant", "sr-Latn"; regions fall away except where they
decide the script (zh-TW is zh-Hant). Whole texts are identified by lingua (n-gram models of 75 languages),
restricted to the languages in question where they are known: one model in ten is loaded and short texts are
told apart better.
"""

from dataclasses import dataclass
from functools import lru_cache

from synth.errors import BadInput
from synth.scripts import script_shares

__all__ = ["LANGUAGES", "Language", "identify", "language", "normalise_code", "script_shares"]


@dataclass(frozen=True)
class Language:
    """code: "zh-Hant"; base: "zh"; name in English; scripts it is written in."""

    code: str
    base: str
    name: str
    scripts: frozenset[str]


_TABLE = """
af Afrikaans Latin|am Amharic Ethiopic|ar Arabic Arabic|as Assamese Bengali|ay Aymara Latin
az Azerbaijani Latin,Cyrillic|ba Bashkir Cyrillic|be Belarusian Cyrillic|bg Bulgarian Cyrillic
bn Bengali Bengali|bo Tibetan Tibetan|br Breton Latin|bs Bosnian Latin,Cyrillic|ca Catalan Latin
ceb Cebuano Latin|ckb Sorani Arabic|cs Czech Latin|cy Welsh Latin|da Danish Latin|de German Latin
el Greek Greek|en English Latin|eo Esperanto Latin|es Spanish Latin|et Estonian Latin|eu Basque Latin
fa Persian Arabic|fi Finnish Latin|fil Filipino Latin|fo Faroese Latin|fr French Latin|fy Frisian Latin
ga Irish Latin|gd Gaelic Latin|gl Galician Latin|gn Guarani Latin|gu Gujarati Gujarati|ha Hausa Latin
he Hebrew Hebrew|hi Hindi Devanagari|hr Croatian Latin|ht Haitian Latin|hu Hungarian Latin
hy Armenian Armenian|ia Interlingua Latin|id Indonesian Latin|ig Igbo Latin|is Icelandic Latin
it Italian Latin|ja Japanese Han,Hiragana,Katakana|jv Javanese Latin|ka Georgian Georgian|kk Kazakh Cyrillic
km Khmer Khmer|kn Kannada Kannada|ko Korean Hangul|ku Kurdish Latin|ky Kyrgyz Cyrillic|la Latin Latin
lb Luxembourgish Latin|lg Ganda Latin|ln Lingala Latin|lo Lao Lao|lt Lithuanian Latin|lv Latvian Latin
mg Malagasy Latin|mi Maori Latin|mk Macedonian Cyrillic|ml Malayalam Malayalam
mn Mongolian Cyrillic,Mongolian|mr Marathi Devanagari|ms Malay Latin|mt Maltese Latin|my Burmese Myanmar
nb Bokmal Latin|ne Nepali Devanagari|nl Dutch Latin|nn Nynorsk Latin|ny Chichewa Latin|oc Occitan Latin
om Oromo Latin|or Odia Oriya|pa Punjabi Gurmukhi,Arabic|pl Polish Latin|ps Pashto Arabic|pt Portuguese Latin
qu Quechua Latin|ro Romanian Latin|ru Russian Cyrillic|rw Kinyarwanda Latin|sa Sanskrit Devanagari
sd Sindhi Arabic,Devanagari|si Sinhala Sinhala|sk Slovak Latin|sl Slovene Latin|sm Samoan Latin
sn Shona Latin|so Somali Latin|sq Albanian Latin|sr Serbian Cyrillic,Latin|st Sotho Latin|su Sundanese Latin
sv Swedish Latin|sw Swahili Latin|ta Tamil Tamil|te Telugu Telugu|tg Tajik Cyrillic|th Thai Thai
ti Tigrinya Ethiopic|tk Turkmen Latin|tn Tswana Latin|tr Turkish Latin|ts Tsonga Latin|tt Tatar Cyrillic
ug Uyghur Arabic|uk Ukrainian Cyrillic|ur Urdu Arabic|uz Uzbek Latin,Cyrillic|vi Vietnamese Latin
wo Wolof Latin|xh Xhosa Latin|yi Yiddish Hebrew|yo Yoruba Latin|zh Chinese Han|zu Zulu Latin
"""
_SCRIPT_TAGS = {
    "latn": "Latin",
    "cyrl": "Cyrillic",
    "arab": "Arabic",
    "deva": "Devanagari",
    "guru": "Gurmukhi",
}
_ALIASES = {
    "iw": "he", "in": "id", "jw": "jv", "no": "nb", "tl": "fil", "zh-cn": "zh-Hans", "zh-sg": "zh-Hans",
    "zh-tw": "zh-Hant", "zh-hk": "zh-Hant", "zh-mo": "zh-Hant", "cmn": "zh", "sh": "sr", "mandarin": "zh",
    "tagalog": "fil", "norwegian": "nb", "farsi": "fa", "ind": "id", "eng": "en", "spa": "es", "fra": "fr",
    "deu": "de", "jpn": "ja", "kor": "ko", "rus": "ru", "ara": "ar", "vie": "vi", "tha": "th", "ben": "bn",
    "swa": "sw", "swh": "sw", "jav": "jv", "hin": "hi", "ita": "it", "por": "pt", "zho": "zh", "tur": "tr",
}  # fmt: skip


def _read_table() -> dict[str, Language]:
    found = {}
    for entry in _TABLE.replace("\n", "|").strip("|").split("|"):
        code, name, scripts = entry.split()
        found[code] = Language(code, code, name, frozenset(scripts.split(",")))
    return found


LANGUAGES = _read_table()
_NAMES = {entry.name.lower(): code for code, entry in LANGUAGES.items()}


@lru_cache(maxsize=1024)
def language(code: str) -> Language:
    """The language of a code, alias or English name. Raises BadInput for one that is unknown."""
    parts = str(code).strip().replace("_", "-").lower().split("-")
    whole = "-".join(parts)
    alias = _ALIASES.get(whole) or _ALIASES.get(parts[0]) or _NAMES.get(whole)
    if alias and whole not in LANGUAGES:
        parts = [*alias.lower().split("-"), *parts[1:]]
    base = LANGUAGES.get(parts[0])
    if base is None:
        raise BadInput(f"unknown language '{code}' (codes are like en, zh, zh-Hant, sr-Latn)")
    for part in parts[1:]:
        if part in ("hans", "hant") and base.code == "zh":
            return Language(f"zh-{part.title()}", "zh", f"Chinese ({part.title()})", base.scripts)
        if part in _SCRIPT_TAGS:
            return Language(
                f"{base.code}-{part.title()}", base.code, base.name, frozenset({_SCRIPT_TAGS[part]})
            )
    return base


def normalise_code(code: str) -> str:
    """ "ZH_tw" -> "zh-Hant", "pt-BR" -> "pt", "Swahili" -> "sw". Raises BadInput."""
    return language(code).code


@lru_cache(maxsize=64)
def _detector(codes: tuple[str, ...]):
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    known = {member.name.lower(): member for member in _members(IsoCode639_1)}
    renamed = {"fil": "tl"}
    chosen = [known[renamed.get(c, c)] for c in codes if renamed.get(c, c) in known]
    if len(chosen) < 2:
        return LanguageDetectorBuilder.from_all_languages().build()
    return LanguageDetectorBuilder.from_iso_codes_639_1(*chosen).build()


def _members(enumeration) -> list:
    return [getattr(enumeration, name) for name in dir(enumeration) if name.isupper()]


@lru_cache(maxsize=1024)
def detectable(code: str) -> bool:
    """Whether `identify` has a model of the language."""
    from lingua import IsoCode639_1

    return {"fil": "tl"}.get(language(code).base, language(code).base).upper() in dir(IsoCode639_1)


def pair_confidence(word: str, code: str, other: str) -> float:
    """lingua's confidence that a word is `code` rather than `other` (base codes, both detectable)."""
    values = _detector(tuple(sorted({code, other}))).compute_language_confidence_values(word)
    wanted = {"fil": "tl"}.get(code, code)
    return next((v.value for v in values if v.language.iso_code_639_1.name.lower() == wanted), 0.0)


def identify(text: str, languages: tuple[str, ...] = ()) -> tuple[str, float]:
    """(code, confidence) of a whole text, among the languages given or all 75; ("", 0.0) where nothing can be
    said.

    Confidence is relative to the languages compared.
    """
    codes = tuple(sorted({language(code).base for code in languages}))
    best = _detector(codes).compute_language_confidence_values(text)
    if not best or best[0].value <= 0 or not script_shares(text):
        return "", 0.0
    code = best[0].language.iso_code_639_1.name.lower()
    return {"tl": "fil"}.get(code, code), float(best[0].value)
