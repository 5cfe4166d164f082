"""Fine-tune a ranker: KL from a soft target to the model's two-label distribution.

The model's distribution over {yes, no} at the last prompt token is a Bernoulli with log-odds
h . (W_yes - W_no); KL(target || model) differs from binary cross-entropy by the target's entropy,
so both have the same gradient (paper, section on training). The target is grade / 4, or the
teacher's p when one is given, which recovers a pruned model better than the labels do
(arXiv 2502.14305). Queries share their prefix among their items in a step.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slmrank.data.records import MAX_GRADE
from slmrank.errors import DataError
from slmrank.hashing import hash_value
from slmrank.model.decoder import LoadedRanker, pad_rows, score_items
from slmrank.prompt.corpus import EncodedQuery
from slmrank.spec.train import TrainSpec

Progress = Callable[[int, int, float], None]
STATE_FILE = "state.pt"


def bernoulli_kl(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean KL(target || sigmoid(logit)) in nats. Shapes: [B], [B] -> scalar."""
    cross = functional.binary_cross_entropy_with_logits(logits, targets)
    entropy = functional.binary_cross_entropy(targets, targets)
    return cross - entropy


def learning_rate_at(step: int, spec: TrainSpec) -> float:
    """Linear warm-up, then cosine decay to a tenth."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    progress = (step - spec.warmup_steps) / max(spec.steps - spec.warmup_steps, 1)
    return spec.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


def draw_batches(examples: Sequence[EncodedQuery], spec: TrainSpec) -> list[list[EncodedQuery]]:
    """The whole run's batches, from the seed alone: a resumed run sees what it would have seen.

    Within a query, items are drawn so that different targets meet: the training signal of a
    listing is the order inside it. Raises DataError when there is no example.
    """
    rng = random.Random(spec.seed)
    if not examples:
        raise DataError("no training pairs", "add pairs with split 'train'")
    queue: list[EncodedQuery] = []
    batches = []
    for _ in range(spec.steps):
        while len(queue) < spec.queries_per_step:
            refill = list(examples)
            rng.shuffle(refill)
            queue += refill
        taken, queue = queue[: spec.queries_per_step], queue[spec.queries_per_step :]
        batches.append([_subset(example, spec.items_per_query, rng) for example in taken])
    return batches


def train(
    ranker: LoadedRanker,
    examples: Sequence[EncodedQuery],
    spec: TrainSpec,
    work: Path,
    progress: Progress,
    *,
    inputs: Mapping[str, str],
    teacher: LoadedRanker | None = None,
) -> dict[str, Any]:
    """Train in place; returns figures (loss curve, pairs, tokens, seconds of this run).

    With a `teacher` the target of each pair is the teacher's p instead of the example's.

    State goes to `work/state.pt` every `checkpoint_every` steps and is picked up when it belongs to
    the same settings and `inputs` (digests of student, data and teacher). The embedding, which is
    also the label head, stays frozen: 21 % of the parameters of the 135M model, and the labels'
    rows keep their meaning. Raises DataError when there is nothing to train on or the loss is lost.
    """
    torch.manual_seed(spec.seed)
    batches = draw_batches(examples, spec)
    network = ranker.network
    for parameter in network.get_input_embeddings().parameters():
        parameter.requires_grad_(False)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=spec.learning_rate,
        weight_decay=spec.weight_decay,
        betas=(0.9, 0.95),
        fused=True,
    )
    identity = hash_value({"spec": spec.settings(), "inputs": dict(inputs)})
    first, losses = _resume(ranker, optimizer, identity, work)
    tokens, started = 0, time.monotonic()
    network.train()
    for step in range(first, spec.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, spec)
        loss, count = _step(ranker, batches[step], teacher)
        if not math.isfinite(loss):
            raise DataError(f"the loss became {loss} at step {step}", "lower the learning rate")
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(round(loss, 5))
        tokens += count
        progress(step + 1, spec.steps, loss)
        if (step + 1) % spec.checkpoint_every == 0 and step + 1 < spec.steps:
            _save(network, optimizer, identity, losses, work)
    network.eval()
    return {
        "steps": spec.steps,
        "pairs": spec.steps * spec.queries_per_step * spec.items_per_query,
        "tokens_this_run": tokens,
        "seconds_this_run": round(time.monotonic() - started, 1),
        "resumed_at": first,
        "loss": losses,
    }


def _step(
    ranker: LoadedRanker, batch: Sequence[EncodedQuery], teacher: LoadedRanker | None
) -> tuple[float, int]:
    """Forward and backward of one batch; returns its loss and the number of prompt tokens."""
    placement = ranker.placement
    prefixes = pad_rows([example.prefix for example in batch], placement)
    items = pad_rows([item for example in batch for item in example.items], placement)
    prefix_of = placement.tensor([index for index, one in enumerate(batch) for _ in one.items])
    grades = [grade / MAX_GRADE for example in batch for grade in example.grades]
    targets = placement.tensor(grades, torch.float32)
    with placement.mixed_precision():
        if teacher is not None:
            with torch.no_grad():
                targets = score_items(teacher, prefixes, items, prefix_of).float().sigmoid()
        logits = score_items(ranker, prefixes, items, prefix_of)
    loss = bernoulli_kl(logits.float(), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), prefixes.tokens + items.tokens


def _subset(example: EncodedQuery, count: int, rng: random.Random) -> EncodedQuery:
    order = list(range(len(example.items)))
    rng.shuffle(order)
    by_grade: dict[int, list[int]] = {}
    for index in order:
        by_grade.setdefault(example.grades[index], []).append(index)
    chosen: list[int] = []
    while len(chosen) < min(count, len(order)):
        for group in by_grade.values():
            if group and len(chosen) < count:
                chosen.append(group.pop())
    return example.pick(chosen)


def _resume(
    ranker: LoadedRanker, optimizer: torch.optim.Optimizer, identity: str, work: Path
) -> tuple[int, list[float]]:
    path = work / STATE_FILE
    if not path.is_file():
        return 0, []
    state: Mapping[str, Any] = torch.load(
        path, weights_only=True, map_location=ranker.placement.device
    )
    if state["identity"] != identity:
        return 0, []
    ranker.network.load_state_dict(state["model"], strict=False)
    optimizer.load_state_dict(dict(state["optimizer"]))
    losses = list(state["losses"])
    return len(losses), losses


def _save(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: str,
    losses: list[float],
    work: Path,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    temporary = work / f".{STATE_FILE}.{os.getpid()}"
    named = {name: value for name, value in network.named_parameters() if value.requires_grad}
    state = {
        "identity": identity,
        "model": named,
        "optimizer": optimizer.state_dict(),
        "losses": losses,
    }
    torch.save(state, temporary)
    temporary.rename(work / STATE_FILE)
