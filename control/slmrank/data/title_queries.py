"""What people type for an occupation: titles, short forms, a title with a tool, a vacancy's
headline, a duty in a few words, a title with a duty.

Never all the words of one of its postings' titles, nor only some of them: a ranker that was trained
on such queries learned to match strings (AUC 0.91 on its own test, 0.53 to 0.68 on real queries).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from slmrank.data.onet_database import TitledOccupation
from slmrank.data.wording import lower_first, phrases
from slmrank.data.words import words_of
from slmrank.spec.data import QueryKind

MAX_DUTY_WORDS = 8
_BREAK = re.compile(r", |; | to | using | such as | including | by | in accordance | and/or ")


def duty_in_short(task: str) -> str | None:
    """The first clause of a task statement, when it says something alone: 3 to 8 words."""
    clause = _BREAK.split(task.rstrip("."))[0].split()
    return lower_first(" ".join(clause)) if 3 <= len(clause) <= MAX_DUTY_WORDS else None


def queries_of(
    one: TitledOccupation,
    duties: Sequence[str],
    shown: Sequence[Sequence[str]],
    kinds: Sequence[QueryKind],
    count: int,
    rng: random.Random,
) -> dict[str, QueryKind]:
    """Up to `count` distinct queries with their kinds.

    `duties` are tasks that the occupation's postings leave out, `shown` the words of the postings'
    titles; kinds that the occupation has nothing for are passed over.
    """
    made: dict[str, QueryKind] = {}
    seen: set[str] = set()
    for _ in range(count * 4):
        if len(made) == count:
            break
        kind = rng.choice(kinds)
        text = _make(kind, one, duties, rng)
        if text is None or text.lower() in seen:
            continue
        words = set(words_of(text))
        if words and not any(words <= set(title) or set(title) <= words for title in shown):
            seen.add(text.lower())
            made[text] = kind
    return made


def _make(
    kind: QueryKind, one: TitledOccupation, duties: Sequence[str], rng: random.Random
) -> str | None:
    pool = one.short_titles if kind == "short" else one.titles
    title = rng.choice(pool) if pool else None
    if title is not None and rng.random() < 0.6:
        title = title.lower()
    duty = duty_in_short(rng.choice(duties)) if duties and "duty" in kind else None
    if kind == "duty":
        return duty
    if title is None:
        return None
    if kind == "tool":
        return f"{title} {rng.choice(one.technologies)}" if one.technologies else None
    if kind == "title_duty":
        return f"{title} {duty}" if duty is not None else None
    return _headline(title, rng) if kind == "vacancy" else title


def _headline(title: str, rng: random.Random) -> str:
    """The title as it stands over a vacancy or in a hasty search."""
    words = phrases()
    city = rng.choice(words["city"])
    before, after = rng.choice(words["vacancy_before"]), rng.choice(words["vacancy_after"])
    text = " ".join(f"{before} {title}{after.format(city=city)}".split())
    return text.upper() if rng.random() < 0.1 else text
