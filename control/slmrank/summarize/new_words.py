"""Words of a summary that its posting does not have: a model may make some up."""

from __future__ import annotations

import re
from collections.abc import Iterable

from slmrank.data.records import Job
from slmrank.data.words import is_unspaced, words_of

_SIGNED = re.compile(r"\.?\w+[+#]+|\.\w+")


def new_words(job: Job, summary: str) -> list[str]:
    """The words of a summary that neither title nor description has, by stem; C++, C# and .NET are
    words of their own."""
    posting = f"{job.title} {job.description}"
    known, signed = set(words_of(posting)), set(_SIGNED.findall(posting.casefold()))
    # A cut may leave one character of a text without spaces, whose words are pairs.
    known |= {one for one in posting.casefold() if is_unspaced(one)}
    return [
        word
        for word in summary.split()
        if not set(words_of(word)) <= known or not set(_SIGNED.findall(word.casefold())) <= signed
    ]


def without_new_words(job: Job, summary: str) -> str:
    """The summary without the words that the posting does not have; of a text without spaces,
    without the characters that stand beside none that it has."""
    known = set(words_of(f"{job.title} {job.description}"))
    struck = set(new_words(job, summary))
    kept = (
        _known_runs(word, known) if word in struck and is_unspaced(word) else word
        for word in summary.split()
        if word not in struck or is_unspaced(word)
    )
    return " ".join(filter(None, kept))


def _known_runs(text: str, known: set[str]) -> str:
    """The characters of a text that are part of a known pair."""
    kept = [False] * len(text)
    for start in range(len(text) - 1):
        if set(words_of(text[start : start + 2])) & known:
            kept[start] = kept[start + 1] = True
    marks = [not words_of(one) for one in text]  # stay beside what stays
    return "".join(
        one
        for place, one in enumerate(text)
        if kept[place] or (marks[place] and any(kept[max(place - 1, 0) : place + 2]))
    )


def new_words_share(written: Iterable[tuple[Job, str]]) -> float | None:
    """Mean share of new words in these jobs' summaries; None where no summary has a word."""
    shares = [
        len(new_words(job, text)) / len(text.split()) for job, text in written if text.strip()
    ]
    return sum(shares) / len(shares) if shares else None
