"""The grading rule of the example set: how relevant an occupation's posting is to a query.

Relation of two occupations (0..4), from the SOC code and from the overlap of their work
activities, a Jaccard ratio in which each activity weighs its rarity:

    4  same occupation
    3  same 6-digit SOC code, or overlap >= 0.35
    2  same broad group (5 digits), or overlap >= 0.15
    1  same minor group (4 digits), or overlap >= 0.05
    0  otherwise

A query that names activities asks for more: for another occupation that performs all of them the
grade is at least 3, for one that performs some of them at least 2, and for one that performs none
the relation loses one step. The overlap crosses SOC branches, which digits alone do not.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from slmrank.data.onet import Occupation

OVERLAP_STEPS = ((0.35, 3), (0.15, 2), (0.05, 1))


def overlap(a: frozenset[str], b: frozenset[str], rarity: Mapping[str, float]) -> float:
    """Rarity-weighted Jaccard ratio of two activity sets, 0..1."""
    union = sum(rarity[name] for name in a | b)
    return sum(rarity[name] for name in a & b) / union if union else 0.0


def relation(a: Occupation, b: Occupation, rarity: Mapping[str, float]) -> int:
    """How close two occupations are, 0..4, by the table above."""
    if a.code == b.code:
        return 4
    by_code = 0
    for digits, grade in ((7, 3), (6, 2), (5, 1)):  # "25-2031", "25-203", "25-20"
        if a.code[:digits] == b.code[:digits]:
            by_code = grade
            break
    shared = overlap(a.activities, b.activities, rarity)
    by_work = next((grade for least, grade in OVERLAP_STEPS if shared >= least), 0)
    return max(by_code, by_work)


def grade_of(asked: frozenset[str], related: int, offered: frozenset[str]) -> int:
    """Grade of one posting: the relation (0..4), adjusted by the activities asked for."""
    if related == 4 or not asked:
        return related
    done = len(asked & offered)
    if done == len(asked):
        return max(related, 3)
    if done:
        return max(related, 2)
    return max(related - 1, 0)


def candidates(
    grades: Mapping[str, int],
    retrieved: Sequence[str],
    related: int,
    rest: list[str],
    count: int,
    rng: random.Random,
) -> list[str]:
    """One exact job, what BM25 retrieves, some `related` ones of every grade, then any of the rest,
    until there are `count`."""
    exact = rng.sample([job_id for job_id, grade in grades.items() if grade == 4], 1)
    near = [job_id for job_id, grade in grades.items() if 1 <= grade <= 3]
    rng.shuffle(near)
    rng.shuffle(rest)
    chosen = list(dict.fromkeys([*exact, *retrieved, *near[:related], *rest]))[:count]
    rng.shuffle(chosen)
    return chosen
