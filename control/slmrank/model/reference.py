"""The reference scorer: transformers' own forward pass over whole prompts, one pair a row.

Nothing is shared or re-implemented here, which makes it the yardstick for every other path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from slmrank.errors import CheckpointError
from slmrank.model.checkpoint import Checkpoint
from slmrank.model.decoder import label_row, pad_rows
from slmrank.model.probability import probability
from slmrank.model.quiet import quiet
from slmrank.prompt.encoder import Ids

Precision = Literal["float32", "bfloat16"]
Logits = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]
BATCH_TOKENS = 4096


def load_model(checkpoint: Checkpoint, precision: Precision = "float32") -> Any:
    """The checkpoint as a transformers model in evaluation mode.

    Raises CheckpointError when the weights do not load.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            model: Any
            model, loading = AutoModelForCausalLM.from_pretrained(
                str(checkpoint.path), dtype=getattr(torch, precision), output_loading_info=True
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
    return model.eval()


class ReferenceScorer:
    """Scores whole prompts with a transformers model."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision = "float32") -> None:
        self.checkpoint = checkpoint
        self._model = load_model(checkpoint, precision)

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
        rows = pad_rows(prompts)
        steps = torch.arange(rows.ids.shape[1])[None]
        attention = (steps < rows.lengths[:, None]).long()
        output = self._model.model(input_ids=rows.ids, attention_mask=attention, use_cache=False)
        final = output.last_hidden_state[torch.arange(len(prompts)), rows.lengths - 1]
        head = label_row(self._model, self.checkpoint.labels).float()
        logits: Logits = (final.float() @ head).double().numpy()
        return logits


def token_batches(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Indices in batches of at most BATCH_TOKENS padded tokens; `order` ascends by length."""
    batches: list[list[int]] = []
    current: list[int] = []
    for index in order:
        if current and lengths[index] * (len(current) + 1) > BATCH_TOKENS:
            batches.append(current)
            current = []
        current.append(index)
    if current:
        batches.append(current)
    return batches
