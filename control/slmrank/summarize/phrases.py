"""Phrases of a description, and the choice of those that say most for their tokens.

A phrase is a run of words inside a clause that neither starts nor ends with a stop word. It is
worth the sum of its words' weights and of what their sentence adds; phrases are taken greedily by
worth per cost, as sentences are (Lin and Bilmes, 2010, section 4), and a word counts once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from slmrank.data.words import FULL_STOPS, LONG_WORD, WORD_PATTERN, is_stop_word, words_of
from slmrank.summarize.salience import Salience
from slmrank.summarize.summarizer import Encode
from slmrank.tokens import Ids

# Words with what holds them together inside (C++, .NET, e-mail, A/B, nurse's), or one sign.
_PIECE = re.compile(rf"\.?{WORD_PATTERN}(?:[-'\u2019&/.+#]{WORD_PATTERN})*[+#]*|[^\w\s]")
_BORDER = re.compile(
    rf"[.!?;:,()\[\]/|\u2022\u00b7\u2013\u2014\uff0c\u3001\u060c\u061b{FULL_STOPS}]|^-$"
)
_SENTENCE_END = re.compile(rf"(?<=[.!?;])\s+|(?<=[{FULL_STOPS}])|\n+")
MAX_WORDS = 9
# Chosen on the skill spans that people marked in 336 sentences of British vacancies (Green et al.,
# LREC 2022) and on NDCG@10 of the ranker in the box (docs/compression). WORD_WORTH lets a phrase go
# on; without CONTEXT a tenth of the kept words is boilerplate at 36 tokens.
WORD_WORTH = 0.4
# Nats of idf below which a word's worth shrinks: it stands in more than two postings of nine. "All
# qualified applicants receive consideration without regard to race" is rare wording for a model,
# and stood in most summaries of 96 tokens: NDCG@10 lost 0.024 [0.010, 0.039] on 400 queries.
RARE = 1.5
STOP_WORTH = -0.1  # a stop word inside a phrase spends a token that says nothing
COST_EXPONENT = 0.5
CONTEXT = 2.0  # how far a word is also worth what its sentence says
PRIOR_WORDS = 2  # so that a sentence of one word says little
JOINT = ", "
KEPT_WORDS = 200_000  # weights of words that are kept in memory

Weights = npt.NDArray[np.float32]


def clauses_of(text: str) -> list[list[str]]:
    """The words of every clause: what stands between signs, line ends and bullets."""
    clauses: list[list[str]] = []
    for line in text.splitlines():
        words: list[str] = []
        for piece in _PIECE.findall(line):
            if _BORDER.search(piece) and not any(sign.isalnum() for sign in piece):
                clauses.append(words)
                words = []
            elif any(sign.isalnum() for sign in piece):
                words.append(piece)
        clauses.append(words)
    return [words for words in clauses if words]


def ids_of_words(words: Sequence[str], encode: Encode) -> list[Ids]:
    """The ids of words as they stand inside of a text, behind a blank: alone, byte-level tokenizers
    cut them into a fifth more, of other names."""
    before = JOINT.strip()
    start, *texts = encode([before, *(f"{before} {word}" for word in words)])
    return [ids[len(start) :] for ids in texts]


@dataclass(frozen=True)
class PhraseScorer:
    """What tokens say: `weights` [V] by token id, how rare words are in the postings, and how a
    text is encoded."""

    weights: Weights
    salience: Salience
    encode: Encode
    _known: dict[str, tuple[float, int]] = field(default_factory=dict, compare=False)

    def of(self, word: str) -> tuple[float, int]:
        """The worth of a word, the mean of its tokens' weights, less where many postings have it,
        and its length in tokens."""
        found = self._known.get(word)
        if found is None:
            [ids] = ids_of_words([word], self.encode)
            worth = STOP_WORTH
            if not is_stop_word(word):
                says = WORD_WORTH + float(self.weights[ids].mean())
                worth = says * min(1.0, self.salience.of(word) / RARE) if says > 0 else says
            if len(self._known) >= KEPT_WORDS:
                self._known.clear()
            found = (worth, len(ids))
            if len(word) <= LONG_WORD:
                self._known[word] = found
        return found

    def choose(self, text: str, budget: int, known: Set[str] = frozenset()) -> str:
        """The best phrases of a text that `budget` tokens hold, in the order of the text; empty
        where no phrase is worth anything. `known` are words that the item says anyway."""
        left = budget + 1
        taken: set[int] = set()
        said = set(known)
        chosen: list[tuple[int, list[str]]] = []
        for _, start, words, cost in sorted(self._candidates(text), key=lambda one: -one[0]):
            places = range(start, start + len(words))
            content = {stem for word in words if not is_stop_word(word) for stem in words_of(word)}
            news = content - said
            if cost > left or 2 * len(news) <= len(content) or not taken.isdisjoint(places):
                continue
            taken.update(places)
            said |= content
            chosen.append((start, words))
            left -= cost
            if left < 2:
                break
        while True:
            found = JOINT.join(" ".join(words) for _, words in sorted(chosen))
            if not chosen or len(self.encode([found])[0]) <= budget:
                return found
            chosen.pop()

    def _candidates(self, text: str) -> Iterator[tuple[float, int, list[str], int]]:
        """(worth per cost, place, words, cost) of every phrase that is worth something."""
        place = 0
        for words, more in self._in_context(text):
            known = [
                (worth if is_stop_word(word) else worth + more, cost)
                for word, (worth, cost) in ((word, self.of(word)) for word in words)
            ]
            for first in range(len(words)):
                if is_stop_word(words[first]):
                    continue
                worth, cost = 0.0, 1  # the comma
                for last in range(first, min(first + MAX_WORDS, len(words))):
                    worth += known[last][0]
                    cost += known[last][1]
                    if worth > 0 and not is_stop_word(words[last]):
                        rate = worth / cost**COST_EXPONENT
                        yield rate, place + first, words[first : last + 1], cost
            place += len(words) + 1

    def _in_context(self, text: str) -> Iterator[tuple[list[str], float]]:
        """Every clause, and what its words are worth more for standing where they do: a sentence
        about benefits takes from `insurance` what one about claims gives to it."""
        sentences = [clauses_of(one) for one in _SENTENCE_END.split(text)]
        means = []
        for clauses in sentences:
            worths = [
                self.of(word)[0] for words in clauses for word in words if not is_stop_word(word)
            ]
            summed = sum(worths) + PRIOR_WORDS * WORD_WORTH
            means.append(summed / (len(worths) + PRIOR_WORDS))
        said = sorted(mean for mean, clauses in zip(means, sentences, strict=True) if clauses)
        middle = said[len(said) // 2] if said else 0.0
        for mean, clauses in zip(means, sentences, strict=True):
            for words in clauses:
                yield words, CONTEXT * (mean - middle)
