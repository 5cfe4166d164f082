"""Scores of a repository behind a real server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slmrank.client.client import RankClient
from slmrank.data.records import LabelledSet, Pair, group_by_query
from slmrank.errors import ArtifactError
from slmrank.pipeline.stages.inputs import Scores
from slmrank.pipeline.steps import Making
from slmrank.serving.server import ANY_PORTS, Server


def scores_of(
    pairs: Sequence[Pair], labelled: LabelledSet, settings: Mapping[str, Any], making: Making
) -> Scores:
    """Through a real server: by id, or by the fields of the jobs where the store lacks them."""
    jobs = labelled.jobs if settings["by_fields"] else {}
    scores: Scores = {}
    groups = group_by_query(pairs)
    repository = making.inputs["repository"].path
    with Server(repository, ANY_PORTS) as server, RankClient(server.url) as client:
        for number, (query, group) in enumerate(groups.items(), start=1):
            asked = [jobs.get(pair.job_id, pair.job_id) for pair in group]
            for item in client.score(query, asked):
                if not item.status.scored:
                    raise ArtifactError(
                        f"the server did not score job {item.job_id!r}: {item.status.words}",
                        "run `control summarize` and `control repo` again",
                    )
                scores[query, item.job_id] = item.score
            making.watcher.progress(number, len(groups), "queries over gRPC")
    return scores
