"""What a phrase of a posting does to a trained ranker's p.

The effect of a phrase is how far it sets the job's good queries apart from the others when it
stands alone as the job's text: the log-odds that it adds for queries that the job answers, less
those that it adds for queries that it does not. Wording that every posting shares adds the same to
both. It is the paper's reward for summaries (section 3) without a language model that writes them,
taken phrase by phrase, and on the order of jobs instead of p itself.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmrank.data.records import Job
from slmrank.errors import DataError
from slmrank.prompt.corpus import EncodedQuery
from slmrank.prompt.encoder import PromptEncoder
from slmrank.summarize.summarizer import Fitting

GOOD, BAD = 3, 1  # lowest grade of a query that the job answers, highest of one that it does not
QUERIES = (2, 1)  # queries of the first and of the second kind, per job
MAX_PHRASES = 32
MAX_TOKENS = 24
SEED = 0
Embeddings = npt.NDArray[np.float32]
_CLAUSE_END = re.compile(
    r"[,;:()\n\u2022\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]|\.\s|\s(?:and|or)\s"
)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A phrase and the log-odds by which it sets good queries apart (nats)."""

    phrase: str
    effect: float


def measure_effects(fitting: Fitting) -> tuple[list[Effect], Embeddings]:
    """The effects of the phrases of so many jobs as the spec says, drawn among those with queries
    of both kinds, and the ranker's token embeddings [V, E].

    Raises DataError when no job has any. Cost: (2 + 1) x 33 short items a job.
    """
    from slmrank.model.batch_tensors import query_logits
    from slmrank.model.checkpoint import open_checkpoint
    from slmrank.model.placement import choose_placement
    from slmrank.model.reference import load_model

    assert fitting.ranker is not None
    checkpoint = open_checkpoint(fitting.ranker)
    encoder = checkpoint.encoder()
    loaded = load_model(checkpoint, choose_placement(fitting.device))
    drawn = queried_jobs(fitting, fitting.spec.learn_jobs, QUERIES, SEED)
    found: list[Effect] = []
    for number, (job, queries, rng) in enumerate(drawn, start=1):
        phrases = _phrases(job, encoder, rng)
        if not phrases:
            continue
        items = tuple(encoder.item(encoder.body(text)).ids for text in ("", *phrases))
        added = []
        for group in queries:
            logits = [
                query_logits(loaded, EncodedQuery.unjudged(query, encoder.prefix(query), items))
                for query in group
            ]
            added.append(np.mean([one[1:] - one[0] for one in logits], axis=0))
        found += [
            Effect(phrase=phrase, effect=float(good - bad))
            for phrase, good, bad in zip(phrases, *added, strict=True)
        ]
        fitting.progress(number, len(drawn), "jobs")
    table = loaded.network.get_input_embeddings().weight.detach().float().cpu().numpy()
    return found, table


Drawn = tuple[Job, tuple[list[str], list[str]], random.Random]


def queried_jobs(fitting: Fitting, count: int, sizes: tuple[int, int], seed: int) -> list[Drawn]:
    """Jobs with a draw of their good and bad queries, at most so many of each, and a generator that
    goes on from there. Raises DataError when no job has both."""
    queries: dict[str, tuple[list[str], list[str]]] = {}
    for pair in fitting.pairs:
        if pair.grade >= GOOD or pair.grade <= BAD:
            kinds = queries.setdefault(pair.job_id, ([], []))
            kinds[pair.grade <= BAD].append(pair.query)
    usable = [job for job in fitting.jobs if all(queries.get(job.job_id, ([], [])))]
    if not usable:
        raise DataError(
            f"no job has a training query of grade {GOOD} or more and one of {BAD} or less",
            "give such pairs, or use summarize.method salience",
        )
    # Long postings have both the work and the wording around it.
    usable.sort(key=lambda job: (-len(job.description), job.job_id))
    usable = usable[: max(count, len(usable) // 2)]
    rng = random.Random(seed)
    drawn = []
    for job in rng.sample(usable, min(count, len(usable))):
        own = random.Random(f"{seed} {job.job_id}")
        good, bad = (
            own.sample(sorted(asked), min(size, len(asked)))
            for asked, size in zip(queries[job.job_id], sizes, strict=True)
        )
        drawn.append((job, (good, bad), own))
    return drawn


def _phrases(job: Job, encoder: PromptEncoder, rng: random.Random) -> list[str]:
    pieces = (piece.strip(" -*.") for piece in _CLAUSE_END.split(job.description))
    phrases = [
        piece for piece in dict.fromkeys(pieces) if 0 < len(encoder.body(piece)) <= MAX_TOKENS
    ]
    return rng.sample(phrases, MAX_PHRASES) if len(phrases) > MAX_PHRASES else phrases
