"""Fine-tune a ranker: KL from a soft target to the model's two-label distribution.

The model's distribution over {yes, no} at the last prompt token is a Bernoulli with log-odds
h . (W_yes - W_no); KL(target || model) differs from binary cross-entropy by the target's entropy,
so both have the same gradient (paper, section on training). The target is grade / 4, or the
teacher's p when one is given, which recovers a pruned model better than the labels do
(arXiv 2502.14305). Queries share their prefix among their items in a step.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slmrank.data.records import MAX_GRADE
from slmrank.errors import DataError
from slmrank.model.decoder import pad_rows, score_items
from slmrank.prompt.corpus import EncodedQuery
from slmrank.prompt.labels import Labels

Progress = Callable[[int, int, float], None]
STATE_FILE = "state.pt"


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One run. A step holds `queries_per_step` queries with `items_per_query` items each."""

    steps: int
    queries_per_step: int
    items_per_query: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    seed: int
    checkpoint_every: int


def bernoulli_kl(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean KL(target || sigmoid(logit)) in nats. Shapes: [B], [B] -> scalar."""
    cross = functional.binary_cross_entropy_with_logits(logits, targets)
    entropy = functional.binary_cross_entropy(targets, targets)
    return cross - entropy


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then cosine decay to a tenth."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    span = max(settings.steps - settings.warmup_steps, 1)
    progress = (step - settings.warmup_steps) / span
    return settings.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


def draw_batches(
    examples: Sequence[EncodedQuery], settings: TrainSettings
) -> list[list[EncodedQuery]]:
    """The whole run's batches, from the seed alone: a resumed run sees what it would have seen.

    Within a query, items are drawn so that different targets meet: the training signal of a
    listing is the order inside it.
    """
    rng = random.Random(settings.seed)
    if not examples:
        raise DataError("no training pairs", "add pairs with split 'train'")
    queue: list[EncodedQuery] = []
    batches = []
    for _ in range(settings.steps):
        while len(queue) < settings.queries_per_step:
            refill = list(examples)
            rng.shuffle(refill)
            queue += refill
        taken, queue = queue[: settings.queries_per_step], queue[settings.queries_per_step :]
        batches.append([_subset(example, settings.items_per_query, rng) for example in taken])
    return batches


def train(
    model: nn.Module,
    labels: Labels,
    examples: Sequence[EncodedQuery],
    settings: TrainSettings,
    work: Path,
    progress: Progress,
    teacher: nn.Module | None = None,
) -> dict[str, Any]:
    """Train in place; returns figures (loss curve, pairs, tokens, seconds of this run).

    With a `teacher` the target of each pair is the teacher's p instead of the example's.

    State goes to `work/state.pt` every `checkpoint_every` steps and is picked up when its settings
    match. The embedding, which is also the label head, stays frozen: 21 % of the parameters of the
    135M model, and the labels' rows keep their meaning.
    """
    torch.manual_seed(settings.seed)
    batches = draw_batches(examples, settings)
    for parameter in model.get_input_embeddings().parameters():  # type: ignore[operator]
        parameter.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.95),
        fused=True,
    )
    first, losses = _resume(model, optimizer, settings, work)
    tokens, started = 0, time.monotonic()
    model.train()
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        loss, count = _step(model, labels, batches[step], teacher)
        if not math.isfinite(loss):
            raise DataError(f"the loss became {loss} at step {step}", "lower the learning rate")
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(round(loss, 5))
        tokens += count
        progress(step + 1, settings.steps, loss)
        if (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.steps:
            _save(model, optimizer, settings, losses, work)
    model.eval()
    return {
        "steps": settings.steps,
        "pairs": settings.steps * settings.queries_per_step * settings.items_per_query,
        "tokens_this_run": tokens,
        "seconds_this_run": round(time.monotonic() - started, 1),
        "resumed_at": first,
        "loss": losses,
    }


def _step(
    model: nn.Module,
    labels: Labels,
    batch: Sequence[EncodedQuery],
    teacher: nn.Module | None = None,
) -> tuple[float, int]:
    """Forward and backward of one batch; returns its loss and the number of prompt tokens."""
    prefixes = pad_rows([example.prefix for example in batch])
    items = pad_rows([item for example in batch for item in example.items])
    prefix_of = torch.tensor([index for index, one in enumerate(batch) for _ in one.items])
    targets = torch.tensor([grade / MAX_GRADE for example in batch for grade in example.grades])
    # bfloat16 products keep off the float32 GEMM, several times slower on AVX-512 BF16 processors.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if teacher is not None:
            with torch.no_grad():
                taught = score_items(teacher, labels, prefixes, items, prefix_of)
            targets = taught.float().sigmoid()
        logits = score_items(model, labels, prefixes, items, prefix_of)
    loss = bernoulli_kl(logits.float(), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), int(prefixes.lengths.sum() + items.lengths.sum())


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
    return EncodedQuery(
        query=example.query,
        prefix=example.prefix,
        items=tuple(example.items[index] for index in chosen),
        job_ids=tuple(example.job_ids[index] for index in chosen),
        grades=tuple(example.grades[index] for index in chosen),
    )


def _resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainSettings, work: Path
) -> tuple[int, list[float]]:
    path = work / STATE_FILE
    if not path.is_file():
        return 0, []
    state: Mapping[str, Any] = torch.load(path, weights_only=True)
    if json.loads(state["settings"]) != asdict(settings):
        return 0, []
    model.load_state_dict(state["model"], strict=False)
    optimizer.load_state_dict(dict(state["optimizer"]))
    losses = list(state["losses"])
    return len(losses), losses


def _save(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    losses: list[float],
    work: Path,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    temporary = work / f".{STATE_FILE}.{os.getpid()}"
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    state = {
        "settings": json.dumps(asdict(settings)),
        "model": named,
        "optimizer": optimizer.state_dict(),
        "losses": losses,
    }
    torch.save(state, temporary)
    temporary.rename(work / STATE_FILE)
