"""Sentences of a description, and what every summary does: keep what fits, cut what does not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from slmrank.data.records import Job
from slmrank.data.words import FULL_STOPS, is_unspaced, words_of
from slmrank.summarize.summarizer import Encode, Summary

_SENTENCE_END = re.compile(rf"(?<=[.!?])\s+|(?<=[{FULL_STOPS}])|\n+")
# One character, or one number, at a time: alternatives that overlap take for ever on `-----`.
_BULLET = re.compile(r"^(?:[\s\-*\u2022\u00b7]|\d{1,3}(?:[.)](?=\s|[^\W\d])|\u3001))*(?=\w)")
MIN_WORDS = 3


def sentences_of(text: str) -> list[str]:
    """Sentences and list entries of a description, without bullets, in order."""
    pieces = (_BULLET.sub("", piece).strip() for piece in _SENTENCE_END.split(text))
    kept = (piece for piece in pieces if not piece.endswith((":", "\uff1a")))
    return [piece for piece in kept if len(words_of(piece)) >= MIN_WORDS]


def headline_words(job: Job) -> set[str]:
    """Words that an item says beside its summary: one that repeats them says nothing."""
    return set(words_of(f"{job.title} {job.company} {job.location}"))


def within_budget(
    jobs: Sequence[Job],
    budget: int,
    encode: Encode,
    shorten: Callable[[Sequence[Job], int], list[str]],
) -> list[Summary]:
    """The summary of each job in at most `budget` tokens.

    A description that fits is kept whole, else what `shorten(jobs, budget)` makes of it is; where
    that is still too long it is cut at word borders, where it is empty the description is.
    """
    sizes = [len(ids) for ids in encode([job.description for job in jobs])]
    long = [job for job, size in zip(jobs, sizes, strict=True) if size > budget]
    shortened = iter(shorten(long, budget))
    texts = [
        (next(shortened) or job.description) if size > budget else " ".join(job.description.split())
        for job, size in zip(jobs, sizes, strict=True)
    ]
    counted = [len(ids) for ids in encode(texts)]
    for place, (size, count) in enumerate(zip(sizes, counted, strict=True)):
        if count <= budget:
            continue
        if size > budget:
            texts[place] = cut_words(texts[place], budget, encode)
            counted[place] = len(encode([texts[place]])[0])
        else:  # a blank between lines of Han takes more than their border
            texts[place], counted[place] = jobs[place].description, size
    return [
        Summary(text=text, tokens=tokens, source_tokens=size)
        for text, tokens, size in zip(texts, counted, sizes, strict=True)
    ]


def cut_words(text: str, budget: int, encode: Encode) -> str:
    """The first words of a text, as many as `budget` tokens hold, and of the next one the first
    characters where it is in a script without spaces or above the budget alone."""

    def fits(text: str) -> bool:
        return len(encode([text])[0]) <= budget

    def most(count: int, first: Callable[[int], str]) -> str:
        low, high = 0, count
        while low < high:
            middle = (low + high + 1) // 2
            if fits(first(middle)):
                low = middle
            else:
                high = middle - 1
        return first(low)

    words = text.split()
    # No word is less than one token.
    kept = most(min(len(words), budget), lambda count: " ".join(words[:count]))
    after = words[len(kept.split()) :][:1]
    if after and (is_unspaced(after[0]) or not fits(after[0])):
        begun = f"{kept} {after[0]}".strip()
        whole = len(kept)
        kept = most(len(begun) - whole, lambda count: begun[: whole + count].rstrip())
    return kept
