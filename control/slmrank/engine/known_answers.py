"""Known answers: a few scores written down when the engine was built, to be asked of a server.

A server that loaded other weights, another tokenizer or another summary store answers as quickly as
the right one. Only its scores show it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slmrank.errors import ArtifactError

KNOWN_FILE = "known_answers.json"


@dataclass(frozen=True, kw_only=True)
class KnownAnswer:
    """One stored job and its P(relevant) for a query. `job`: its fields, where the store is shared
    and may hold a newer text of the job, or none."""

    query: str
    job_id: str
    p: float
    job: dict[str, str] | None = None

    def values(self) -> dict[str, Any]:
        """As it is written."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def choose_known(scored: Sequence[tuple[str, str, float]], count: int = 4) -> list[KnownAnswer]:
    """From (query, job id, p) triples the query whose p are furthest apart, with `count` of its
    jobs from lowest to highest: a server that answers one constant must not pass."""
    by_query: dict[str, list[tuple[float, str]]] = {}
    for query, job_id, p in scored:
        by_query.setdefault(query, []).append((p, job_id))
    if not by_query:
        return []
    query = max(by_query, key=lambda one: (max(by_query[one])[0] - min(by_query[one])[0], one))
    ranked = sorted(set(by_query[query]))
    last = len(ranked) - 1
    places = sorted({round(last * step / max(count - 1, 1)) for step in range(count)})
    return [
        KnownAnswer(query=query, job_id=ranked[place][1], p=round(ranked[place][0], 6))
        for place in places
    ]


def known_json(answers: Sequence[KnownAnswer]) -> str:
    """The content of `known_answers.json`."""
    return json.dumps({"schema": 1, "answers": [one.values() for one in answers]}, indent=2) + "\n"


REMEDY = f"name the {KNOWN_FILE} of a repository, or its folder, which `control repo` makes"


def read_known(path: Path) -> list[KnownAnswer]:
    """Raises ArtifactError when the file holds no known answers."""
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        answers = [KnownAnswer(**one) for one in loaded["answers"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"{path} holds no known answers: {told}", REMEDY) from error
    if not answers:
        raise ArtifactError(f"{path} holds no known answers", REMEDY)
    return answers
