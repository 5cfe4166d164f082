"""The reference scorer: transformers' own forward pass over whole prompts, one pair a row.

Nothing is shared or re-implemented here, which makes it the yardstick for every other path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slmrank.errors import CheckpointError
from slmrank.model.batch_tensors import token_batches
from slmrank.model.checkpoint import (
    CHECKPOINT_FOLDER,
    Checkpoint,
    copy_ranker_files,
    open_checkpoint,
    spell_rope,
)
from slmrank.model.decoder import LoadedRanker, label_row, pad_rows
from slmrank.model.placement import Placement
from slmrank.model.probability import probability
from slmrank.model.quiet import quiet
from slmrank.tokens import Ids

Logits = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]


def load_model(checkpoint: Checkpoint, placement: Placement | None = None) -> LoadedRanker:
    """The checkpoint as a transformers model in evaluation mode; float32 on the CPU by default.

    Raises CheckpointError when the weights do not load.
    """
    from transformers import AutoModelForCausalLM

    placement = placement or Placement()
    try:
        with quiet():
            model: Any
            model, loading = AutoModelForCausalLM.from_pretrained(
                str(checkpoint.path), dtype=placement.torch_dtype, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot load the weights of {checkpoint.path}: {error}", "import the checkpoint again"
        ) from error
    wrong = [*loading["missing_keys"], *loading["mismatched_keys"]]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.path} lacks {len(wrong)} weights, for example {wrong[0]}",
            "save the whole model again; missing weights would be random",
        )
    network = model.eval().to(placement.device)
    return LoadedRanker(network=network, labels=checkpoint.labels, placement=placement)


def save_model(ranker: LoadedRanker, source: Checkpoint, folder: Path) -> None:
    """Write the weights, with the ranker files of `source`, as the checkpoint inside `folder`."""
    target = folder / CHECKPOINT_FOLDER
    with quiet():
        ranker.network.save_pretrained(target)
    spell_rope(target)
    copy_ranker_files(source.path, target)
    open_checkpoint(target)


class ReferenceScorer:
    """Scores whole prompts with a transformers model."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement | None = None) -> None:
        self._ranker = load_model(checkpoint, placement)

    def logits(self, prompts: Sequence[Ids], progress: Progress | None = None) -> Logits:
        """Log-odds of "yes" [N] for whole prompts (prefix and item ids)."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        found = np.zeros(len(prompts))
        done = 0
        for batch in token_batches(order, [len(prompt) for prompt in prompts]):
            found[batch] = self._score([prompts[index] for index in batch])
            done += len(batch)
            if progress is not None:
                progress(done, len(prompts))
        return found

    def probabilities(self, prompts: Sequence[Ids], progress: Progress | None = None) -> Logits:
        """P(relevant) [N] for whole prompts."""
        return probability(self.logits(prompts, progress))

    @torch.no_grad()
    def _score(self, prompts: list[Ids]) -> Logits:
        network, placement = self._ranker.network, self._ranker.placement
        rows = pad_rows(prompts, placement)
        steps = torch.arange(rows.ids.shape[1], device=rows.ids.device)[None]
        attention = (steps < rows.lengths[:, None]).long()
        output = network.model(input_ids=rows.ids, attention_mask=attention, use_cache=False)
        places = torch.arange(len(prompts), device=rows.ids.device)
        final = output.last_hidden_state[places, rows.lengths - 1]
        logits: Logits = (final.float() @ label_row(self._ranker).float()).double().cpu().numpy()
        return logits
