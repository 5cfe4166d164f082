"""Example job postings in the shape of real ones: a third is signal, the rest is wording.

Real postings run to 917-973 tokens on average and 30-39 % of their sentences hold a skill
(263 real postings, `reference/data.md`); that is what context compression has to find.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from slmrank.data.onet import Occupation, Occupations
from slmrank.data.records import Job
from slmrank.data.wording import lower_first, person_title, phrases

MAX_DUTIES = 14
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Tasks that an occupation's postings leave out, so that queries on them match by meaning."""

    tasks: frozenset[int]
    activities: tuple[str, ...]


def hold_out(occupation: Occupation, rng: random.Random) -> HeldOut:
    """Choose the tasks (by index) whose activities become queries. At least four tasks stay."""
    count = min(max(1, int(len(occupation.tasks) * HELD_OUT_SHARE)), len(occupation.tasks) - 4)
    chosen = sorted(rng.sample(range(len(occupation.tasks)), max(count, 0)))
    activities = dict.fromkeys(
        activity for index in chosen for activity in occupation.tasks[index].activities
    )
    return HeldOut(tasks=frozenset(chosen), activities=tuple(activities))


def posting(
    occupation: Occupation, held_out: HeldOut, table: Occupations, job_id: str, rng: random.Random
) -> Job:
    """One posting for an occupation."""
    words = phrases()
    company = f"{rng.choice(words['company_first'])} {rng.choice(words['company_second'])}"
    city = rng.choice(words["city"])
    title = (
        rng.choice(words["title_prefix"])
        + person_title(occupation.title)
        + rng.choice(words["title_suffix"])
    )
    slots = {
        "company": company,
        "city": city,
        "years": str(rng.randint(5, 90)),
        "staff": str(rng.choice([40, 75, 120, 300, 650, 1200])),
        "experience": str(rng.randint(1, 7)),
        "pounds": str(rng.choice([25, 35, 50])),
        "pay": f"${rng.randint(15, 48)}",
        "match": str(rng.randint(3, 6)),
        "days": str(rng.randint(10, 25)),
        "months": str(rng.choice([6, 12, 18])),
        "weeks": str(rng.randint(2, 5)),
        "reference": str(rng.randint(10_000, 99_999)),
    }

    def some(slot: str, least: int, most: int) -> str:
        chosen = rng.sample(words[slot], rng.randint(least, most))
        return " ".join(sentence.format_map(slots) for sentence in chosen)

    shown = [task for index, task in enumerate(occupation.tasks) if index not in held_out.tasks]
    duties = rng.sample(shown, min(len(shown), rng.randint(8, MAX_DUTIES)))
    activities = sorted(frozenset(a for task in duties for a in task.activities))
    chosen = rng.sample(activities, min(2, len(activities)))
    named = [lower_first(table.activity_titles[name]) for name in chosen]
    role = rng.choice(words["role"]).format(activity_a=named[0], activity_b=named[-1])
    sections = [
        some("company", 4, 7),
        role,
        rng.choice(words["duties_lead"]) + "\n" + "\n".join(f"- {task.text}" for task in duties),
        some("requirements", 5, 9),
        some("benefits", 5, 9),
        some("apply", 3, 5),
        some("equal", 3, 5),
    ]
    if rng.random() < 0.3:
        sections[1], sections[3] = sections[3], sections[1]
    return Job(
        job_id=job_id,
        title=title,
        company=company,
        location=city,
        description="\n\n".join(sections),
    )
