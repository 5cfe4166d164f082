"""Fine-tune a ranker: KL from a soft target to the model's two-label distribution.

The model's distribution over {yes, no} at the last prompt token is a Bernoulli with log-odds
h . (W_yes - W_no); KL(target || model) differs from binary cross-entropy by the target's entropy,
so both have the same gradient (paper, section on training). The target is grade / 4, a stored
score, or the teacher's p when one is given, which recovers a pruned model better than the labels do
(arXiv 2502.14305). Queries share their prefix among their items in a step.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slmrank.errors import DataError
from slmrank.evaluate.metrics import Listing, auc_top_against_zero, ndcg_at_10
from slmrank.hashing import hash_value
from slmrank.model.batch_tensors import batch_tensors, score_in_passes
from slmrank.model.decoder import LoadedRanker, Padded, score_items
from slmrank.model.placement import Placement
from slmrank.prompt.corpus import EncodedQuery
from slmrank.spec.train import TrainSpec
from slmrank.train.adapter import add_adapter, load_adapter, merge_adapter, save_adapter
from slmrank.train.average import MovingAverage
from slmrank.train.batches import draw_batches, learning_rate_at, micro_batches, tokens_of
from slmrank.train.launch import end_at_exit, of_main_process, start_processes
from slmrank.train.losses import LIST_LOSSES, Summed, bernoulli_kl
from slmrank.train.sharding import local, shard_rest, sharded_copy
from slmrank.train.state import put_values, resume_state, save_state, trained_values

Progress = Callable[[int, int, float], None]
Part = tuple[Padded, Padded, Tensor]  # prefixes, items, and which prefix each item follows
TargetsOf = Callable[[Sequence[EncodedQuery], Part], Tensor]


class Scorer(nn.Module):
    """The ranker as one module whose forward pass gives logits: what DDP can watch."""

    def __init__(self, ranker: LoadedRanker) -> None:
        super().__init__()
        self.network = ranker.network
        self._ranker = ranker

    def forward(self, prefixes: Padded, items: Padded, prefix_of: Tensor) -> Tensor:
        placement = self._ranker.placement
        with placement.mixed_precision(), placement.trained_attention(items.ids.shape[1]):
            return score_items(self._ranker, prefixes, items, prefix_of).float()


def train(
    ranker: LoadedRanker,
    examples: Sequence[EncodedQuery],
    spec: TrainSpec,
    work: Path,
    progress: Progress,
    *,
    inputs: Mapping[str, str],
    teacher: LoadedRanker | None = None,
    teacher_reads: Callable[[EncodedQuery], EncodedQuery] | None = None,
    dev: Sequence[EncodedQuery] = (),
    adapter_folder: Path | None = None,
    logs: Path | None = None,
) -> dict[str, Any]:
    """Train in place; returns figures (log of the steps, pairs, tokens, seconds of this run).

    With a `teacher` the target of each pair is the teacher's p instead of the example's, of other
    texts of the same jobs where `teacher_reads` gives them. Where the
    spec trains an adapter, it is written to `adapter_folder` and merged at the end.

    Under `torchrun` or `accelerate launch` every process calls this with the same arguments: each
    step's queries are dealt out, the gradient is that of the whole step, and process 0 writes. With
    `spec.shard` the processes split weights, gradients and optimizer state instead of copying them.

    State goes to `work/state.pt` every `checkpoint_every` steps and is picked up when it belongs to
    the same settings and `inputs` (digests of student, data and teacher); `logs` is where a logger
    writes. The embedding and the label head, often one, stay frozen: 21 % of the parameters of the
    135M model, and the labels' rows keep their meaning. With `dev_every`, what is returned are the
    weights of the last evaluation on `dev` that is not worse than the best one by more than noise.
    Raises DataError when there is nothing to train on, the loss is lost, or the interrupted run had
    another number of processes, SpecError for a launcher's configuration of another kind.
    """
    torch.manual_seed(spec.seed)
    network, adapter = ranker.network, None
    for table in (network.get_input_embeddings(), network.get_output_embeddings()):
        table.requires_grad_(False)
    if spec.adapter is not None:
        adapter = load_adapter(ranker, spec.adapter, trainable=spec.steps > 0)
    elif spec.lora is not None:
        adapter = add_adapter(ranker, spec.lora)
    figures: dict[str, Any] = {"steps": 0}
    if spec.steps:
        targets_of = partial(_targets, ranker.placement, teacher, teacher_reads)
        figures = _run(ranker, examples, spec, work, progress, inputs, targets_of, dev, logs)
    network.eval()
    if adapter is not None:
        if adapter_folder is not None:
            save_adapter(adapter, adapter_folder)
        merge_adapter(adapter)
    return figures


def _run(
    ranker: LoadedRanker,
    examples: Sequence[EncodedQuery],
    spec: TrainSpec,
    work: Path,
    progress: Progress,
    inputs: Mapping[str, str],
    targets_of: TargetsOf,
    dev: Sequence[EncodedQuery],
    logs: Path | None,
) -> dict[str, Any]:
    """The steps, from where an interrupted run stopped."""
    launched = start_processes(ranker.placement, spec, logs or work / "logs")
    processes = launched.num_processes
    drawn = draw_batches(examples, spec, processes)
    split = spec.shard and processes > 1
    working = sharded_copy(ranker, processes) if split else ranker
    network, scorer = working.network, Scorer(working)
    if split:
        shard_rest(scorer)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=spec.learning_rate,
        weight_decay=spec.weight_decay,
        betas=(0.9, 0.95),
        fused=True,
    )
    identity = hash_value({"spec": spec.deciding(), "inputs": dict(inputs)})
    state = resume_state(identity, processes, network, optimizer, work, ranker.placement.device)
    average = MovingAverage(network, spec.ema_decay)
    average.go_on(state.mean, state.done)
    launched.wait_for_everyone()
    model = scorer if split else launched.prepare_model(scorer, device_placement=False)
    resumed_at, tokens, started = state.done, 0, time.monotonic()
    pairs = sum(_items_in(batch) for batch in itertools.islice(drawn, state.done))
    network.train()
    for step in range(state.done, spec.steps):
        if state.out_of_patience(spec.patience):
            break
        rate = learning_rate_at(step, spec)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = next(drawn)
        own = batch[launched.process_index]
        loss = _step(model, own, spec, launched, ranker.placement, targets_of)
        if not math.isfinite(loss):
            raise DataError(f"the loss became {loss} at step {step}", "lower the learning rate")
        launched.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        tokens += sum(tokens_of(one) for part in batch for one in part)
        pairs += _items_in(batch)
        record = {"step": step + 1, "loss": round(loss, 5), "learning_rate": rate}
        state.log.append(record)
        if spec.dev_every and dev and (step + 1 == spec.steps or not (step + 1) % spec.dev_every):
            with average.in_place():
                scored = score_dev(model, ranker.placement, dev[: spec.dev_queries])
                figures, by_query = of_main_process(scored)
                record |= figures
                if state.keeps(by_query):
                    state.best, state.kept_step = trained_values(network), step + 1
        launched.log({key: value for key, value in record.items() if key != "step"}, step + 1)
        progress(step + 1, spec.steps, loss)
        if (step + 1) % spec.checkpoint_every == 0 and step + 1 < spec.steps:
            state.mean = average.values()
            save_state(state, network, optimizer, work, write=launched.is_main_process)
            launched.wait_for_everyone()
    if state.best is not None:
        put_values(network, state.best)
    else:
        average.put()
    if split:
        put_values(ranker.network, trained_values(network))
        ranker.network.to(ranker.placement.device)
    finite = all(bool(one.isfinite().all()) for one in ranker.network.parameters())
    # The reducer of DDP goes before the group of processes: as the group's last owner it joins
    # gloo's threads while it holds the GIL that one of them waits for, and the process hangs.
    del model
    launched.free_memory()
    for tracker in launched.trackers:
        tracker.finish()
    if not finite:
        raise DataError(
            f"the weights are no numbers after step {state.done}", "lower learning_rate"
        )
    end_at_exit()
    return {
        "steps": state.done,
        "processes": processes,
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "parameters_here": sum(local(parameter).numel() for parameter in trained),
        "pairs": pairs,
        "tokens_this_run": tokens,
        "seconds_this_run": round(time.monotonic() - started, 1),
        "resumed_at": resumed_at,
        "kept_step": state.kept_step or state.done,
        "loss": [record["loss"] for record in state.log],
        "log": state.log,
    }


def _items_in(batch: Sequence[Sequence[EncodedQuery]]) -> int:
    return sum(len(one.items) for part in batch for one in part)


@torch.no_grad()
def score_dev(
    model: nn.Module, placement: Placement, queries: Sequence[EncodedQuery]
) -> tuple[dict[str, float], list[float]]:
    """NDCG@10 and AUC (grade 4 against 0) of the model as it stands, where dev can tell them, and
    the NDCG@10 of every query that has a relevant item; long items in several passes."""
    model.eval()
    listings = [
        Listing(
            scores=score_in_passes(query, placement, model),
            grades=np.array(query.grades, dtype=float),
        )
        for query in queries
    ]
    model.train()
    by_query = [value for one in listings if not math.isnan(value := ndcg_at_10(one))]
    figures = {"dev_auc": auc_top_against_zero(listings)}
    if by_query:
        figures["dev_ndcg10"] = float(np.mean(by_query))
    known = {name: round(value, 4) for name, value in figures.items() if not math.isnan(value)}
    return known, by_query


def _step(
    model: nn.Module,
    own: Sequence[EncodedQuery],
    spec: TrainSpec,
    launched: Any,
    placement: Placement,
    targets_of: TargetsOf,
) -> float:
    """Forward and backward of this process's part of a step; returns the whole step's loss.

    The terms of all parts are counted first: each part then adds its sum over that count, so that
    the gradient is the one of all items at once.
    """
    groups = micro_batches(own, spec.tokens_at_once)
    parts = [batch_tensors(group, placement) for group in groups]
    targets = [targets_of(group, part) for group, part in zip(groups, parts, strict=True)]
    zeros = [torch.zeros_like(one) for one in targets]
    counts = torch.zeros(2, device=placement.device)
    for part, target, zero in zip(parts, targets, zeros, strict=True):
        counts += torch.stack([count for _, count in _losses(zero, target, part[2], spec)])
    counts = launched.reduce(counts, "sum").clamp(min=1)
    weights = torch.tensor([1.0, spec.list_weight], device=placement.device)
    total = torch.zeros((), device=placement.device)
    for number, (part, target) in enumerate(zip(parts, targets, strict=True)):
        last = number == len(parts) - 1
        with contextlib.nullcontext() if last else launched.no_sync(model):
            logits = model(*part)
            sums = torch.stack([found for found, _ in _losses(logits, target, part[2], spec)])
            loss = (weights * sums / counts).sum()
            # Gradients of processes are averaged; the sums of all of them are wanted.
            launched.backward(loss * launched.num_processes)
        total += loss.detach()
    return float(launched.reduce(total, "sum"))


def _losses(logits: Tensor, targets: Tensor, query_of: Tensor, spec: TrainSpec) -> list[Summed]:
    """Sums and counts of the pointwise loss and of the one inside queries."""
    inside = (logits.new_zeros(()), logits.new_zeros(()))
    if spec.list_loss is not None:
        inside = LIST_LOSSES[spec.list_loss](logits, targets, query_of)
    return [bernoulli_kl(logits, targets), inside]


@torch.no_grad()
def _targets(
    placement: Placement,
    teacher: LoadedRanker | None,
    teacher_reads: Callable[[EncodedQuery], EncodedQuery] | None,
    batch: Sequence[EncodedQuery],
    part: Part,
) -> Tensor:
    """The wanted p of every item [B]."""
    if teacher is not None:
        with placement.mixed_precision():
            if teacher_reads is None:
                return score_items(teacher, *part).float().sigmoid()
            # Longer texts than the student's, whose parts were cut for its own.
            read = [teacher_reads(one) for one in batch]
            scored = [
                score_in_passes(one, placement, partial(score_items, teacher)) for one in read
            ]
        return placement.tensor(np.concatenate(scored), torch.float32).sigmoid()
    wanted = [target for example in batch for target in example.targets]
    return placement.tensor(wanted, torch.float32)
