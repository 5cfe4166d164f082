"""The words of a text, as lexical retrieval and summaries count them."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+")
# Thai, Lao, Burmese, Khmer, kana and Han are written without spaces between words.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)


def words_of(text: str) -> list[str]:
    """Lower-case words with a plural s removed, so that 'teachers' meets 'teacher'; pairs of
    characters for scripts that are written without spaces."""
    return [part for word in _WORD.findall(text.lower()) for part in _parts(word)]


def _parts(word: str) -> list[str]:
    if not _UNSPACED.search(word):
        return [_stem(word)]
    return [word[start : start + 2] for start in range(max(len(word) - 1, 1))]


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
