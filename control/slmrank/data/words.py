"""The words of a text, as lexical retrieval and summaries count them."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# To Python, vowel signs of Indic scripts, Arabic vowels and the accents of decomposed letters are
# no part of a word.
_MARKS = "".join(
    character
    for character in map(chr, range(0x300, 0x10000))
    if unicodedata.category(character).startswith("M")
)
WORD_PATTERN = rf"[^\W_](?:[^\W_]|[{_MARKS}\u200c\u200d])*"
_WORD = re.compile(WORD_PATTERN)
LONG_WORD = 64
# Of scripts that end a sentence in another way: Han and kana, Arabic, Urdu, Hindi.
FULL_STOPS = "\u3002\uff01\uff1f\u061f\u06d4\u0964"
# Thai, Lao, Burmese, Khmer, kana and Han are written without spaces between words.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)


def words_of(text: str) -> list[str]:
    """Lower-case words with a plural s removed, so that 'teachers' meets 'teacher'; pairs of
    characters for scripts that are written without spaces. Letters with accents, full and half
    width are the same in all their forms."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return [part for word in _WORD.findall(text.lower()) for part in _parts(word)]


def is_unspaced(text: str) -> bool:
    """Whether any of it is in a script that is written without spaces between words."""
    return _UNSPACED.search(text) is not None


def same_query(query: str) -> str:
    """What spellings of one query have in common: their words in one case and one form."""
    return " ".join(unicodedata.normalize("NFKC", query).split()).casefold()


def _parts(word: str) -> tuple[str, ...]:
    # What is kept for every word must be short: 20 texts of Han kept 227 MB.
    return _kept_parts(word) if len(word) <= LONG_WORD else _parts_of(word)


def _parts_of(word: str) -> tuple[str, ...]:
    if not is_unspaced(word):
        return (_stem(word),)
    return tuple(word[start : start + 2] for start in range(max(len(word) - 1, 1)))


_kept_parts = lru_cache(maxsize=65_536)(_parts_of)


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


# Function words of English: what carries no content of its own.
_FUNCTION_WORDS = """
a an the and or nor but of to in on at for with by from as into onto over under upon out up
down about within across through per via between among against during before after above
below than then so if when where while who whom whose which what how why that this these
those it its we our us you your they their them he she his her i me my is are was were be
been being am do does did have has had having will would can could should may might must
shall not no any some such all each every both either neither other another more most less
least very too also only own same there here etc e.g i.e
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
_ABBREVIATIONS = frozenset({"it", "us", "am"})  # in capitals: the trade, the country, the morning


def is_stop_word(word: str) -> bool:
    """Whether a word, without its punctuation, is a function word."""
    lowered = word.lower()
    return lowered in STOP_WORDS and not (word.isupper() and lowered in _ABBREVIATIONS)
