"""How far a summary moves a frozen ranker: the first term of the paper's reward (section 3).

For a query q, a posting r and its summary s it is -KL(p(.|q, s) || p(.|q, r)) of the two-token
answer, a mean over several queries of the job, good ones and bad ones: with one kind alone the easy
cases would decide. The second term pays for length: -w (len(s) / len(r))^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmrank.data.records import Job
from slmrank.model.probability import probability
from slmrank.prompt.corpus import EncodedQuery
from slmrank.prompt.template import job_text

# A summary that makes the ranker sure of the opposite costs at most 4.6 nats, so that one query
# does not outweigh a hundred.
CLIP = 0.01
Floats = npt.NDArray[np.float64]


def divergence(summary: Floats, full: Floats) -> Floats:
    """KL(summary || full) in nats of answers with P("yes") [N] and [N]."""
    p, r = np.clip(summary, CLIP, 1 - CLIP), np.clip(full, CLIP, 1 - CLIP)
    found: Floats = p * np.log(p / r) + (1 - p) * np.log((1 - p) / (1 - r))
    return found


def length_cost(tokens: float, source_tokens: float, weight: float) -> float:
    """w (len(s) / len(r))^2; the paper's w is 0.4."""
    return weight * (tokens / max(source_tokens, 1)) ** 2


class FrozenRanker:
    """A trained ranker that reads whole postings and summaries. `item_tokens`: longest item; a
    posting is cut there."""

    def __init__(self, folder: Path, item_tokens: int, device: str) -> None:
        from slmrank.model.checkpoint import open_checkpoint
        from slmrank.model.placement import choose_placement
        from slmrank.model.reference import load_model

        checkpoint = open_checkpoint(folder)
        self._encoder = checkpoint.encoder(item_tokens)
        self._ranker = load_model(checkpoint, choose_placement(device, "bfloat16"))
        self._full: dict[tuple[str, str], float] = {}

    def divergences(self, job: Job, queries: Sequence[str], summaries: Sequence[str]) -> Floats:
        """Mean KL [N] over the queries, of every summary of a job."""
        summed: Floats = np.zeros(len(summaries))
        for query in queries:
            known = self._full.get((job.job_id, query))
            if known is None:
                # Apart: beside it the summaries are padded towards the posting's length (1.4 times
                # the time for six of them).
                [known] = self._probabilities(query, [job_text(job, job.description)])
                self._full[job.job_id, query] = known
            found = self._probabilities(query, [job_text(job, text) for text in summaries])
            summed += divergence(found, np.array(known))
        return summed / len(queries)

    def _probabilities(self, query: str, texts: Sequence[str]) -> Floats:
        from slmrank.model.batch_tensors import query_logits

        items = tuple(self._encoder.item(ids).ids for ids in self._encoder.bodies(texts))
        asked = EncodedQuery.unjudged(query, self._encoder.prefix(query), items)
        found: Floats = probability(query_logits(self._ranker, asked)).astype(np.float64)
        return found
