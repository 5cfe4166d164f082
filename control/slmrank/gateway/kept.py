"""Which parts of a text its summary kept."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

_WORD = re.compile(r"\w+", re.UNICODE)
MIN_WORDS = 2  # one common word alone says nothing of where it came from


def kept_spans(text: str, summary: str) -> list[tuple[int, int]]:
    """Places [start, end) in `text` of the word sequences that stand in `summary` as well, in
    order; sequences of fewer than two words only where the summary itself is one word."""
    words = [(one.group().casefold(), one.start(), one.end()) for one in _WORD.finditer(text)]
    said = [one.group().casefold() for one in _WORD.finditer(summary)]
    matcher = SequenceMatcher(None, [word for word, _, _ in words], said, autojunk=False)
    least = min(MIN_WORDS, len(said))
    return [
        (words[block.a][1], words[block.a + block.size - 1][2])
        for block in matcher.get_matching_blocks()
        if block.size >= max(least, 1)
    ]
