"""The dense baseline: a bi-encoder that a team would have before it has a ranker.

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
        groups: Mapping[str, Sequence[str]],
        texts: Mapping[str, str],
        progress: Callable[[int, int], None],
    ) -> dict[tuple[str, str], float]:
        """Cosine of every (query, job id); `groups` are job ids by query, `texts` by job id."""
        job_ids = list(dict.fromkeys(one for ids in groups.values() for one in ids))
        found = self.embed([*groups, *(texts[one] for one in job_ids)], progress)
        queries = dict(zip(groups, found[: len(groups)], strict=True))
        jobs = dict(zip(job_ids, found[len(groups) :], strict=True))
        return {
            (query, job_id): float(queries[query] @ jobs[job_id])
            for query, ids in groups.items()
            for job_id in ids
        }

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
