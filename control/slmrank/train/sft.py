"""Fine-tune a ranker: KL from a soft target to the model's two-label distribution.

The model's distribution over {yes, no} at the last prompt token is a Bernoulli with log-odds
h . (W_yes - W_no); KL(target || model) differs from binary cross-entropy by the target's entropy,
so both have the same gradient (paper, section on training). The target is grade / 4, or the
teacher's p when one is given, which recovers a pruned model better than the labels do
(arXiv 2502.14305). Queries share their prefix among their items in a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slmrank.data.records import MAX_GRADE
from slmrank.errors import DataError
from slmrank.evaluate.metrics import Listing, auc_top_against_zero, mean_ndcg
from slmrank.hashing import hash_value
from slmrank.model.decoder import LoadedRanker, pad_rows, score_items
from slmrank.model.placement import Placement
from slmrank.prompt.corpus import EncodedQuery
from slmrank.spec.train import TrainSpec
from slmrank.train.adapter import add_adapter, load_adapter, merge_adapter, save_adapter
from slmrank.train.batches import draw_batches, learning_rate_at
from slmrank.train.losses import LIST_LOSSES, bernoulli_kl
from slmrank.train.state import resume_state, save_state, trained_values

Progress = Callable[[int, int, float], None]


def train(
    ranker: LoadedRanker,
    examples: Sequence[EncodedQuery],
    spec: TrainSpec,
    work: Path,
    progress: Progress,
    *,
    inputs: Mapping[str, str],
    teacher: LoadedRanker | None = None,
    dev: Sequence[EncodedQuery] = (),
    adapter_folder: Path | None = None,
) -> dict[str, Any]:
    """Train in place; returns figures (log of the steps, pairs, tokens, seconds of this run).

    With a `teacher` the target of each pair is the teacher's p instead of the example's. Where the
    spec trains an adapter, it is written to `adapter_folder` and merged at the end.

    State goes to `work/state.pt` every `checkpoint_every` steps and is picked up when it belongs to
    the same settings and `inputs` (digests of student, data and teacher). The embedding, which is
    also the label head, stays frozen: 21 % of the parameters of the 135M model, and the labels'
    rows keep their meaning. With `dev_every`, the weights of the best evaluation on `dev` are what
    is returned. Raises DataError when there is nothing to train on or the loss is lost.
    """
    torch.manual_seed(spec.seed)
    batches = draw_batches(examples, spec)
    network, adapter = ranker.network, None
    network.get_input_embeddings().requires_grad_(False)
    if spec.adapter is not None:
        adapter = load_adapter(ranker, spec.adapter, trainable=spec.steps > 0)
    elif spec.lora is not None:
        adapter = add_adapter(ranker, spec.lora)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    figures: dict[str, Any] = {"steps": 0, "trained_parameters": sum(p.numel() for p in trained)}
    if spec.steps:
        identity = hash_value({"spec": spec.settings(), "inputs": dict(inputs)})
        optimizer = torch.optim.AdamW(
            trained,
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            betas=(0.9, 0.95),
            fused=True,
        )
        state = resume_state(identity, network, optimizer, work, ranker.placement.device)
        figures["resumed_at"] = state.done
        tokens, started = 0, time.monotonic()
        network.train()
        for step in range(state.done, spec.steps):
            if state.done and state.evaluations() and state.out_of_patience(spec.patience):
                break
            rate = learning_rate_at(step, spec)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, count = _step(ranker, batches[step], spec, teacher)
            if not math.isfinite(loss):
                raise DataError(f"the loss became {loss} at step {step}", "lower the learning rate")
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            tokens += count
            state.log.append({"step": step + 1, "loss": round(loss, 5), "learning_rate": rate})
            if spec.dev_every and dev and (step + 1) % spec.dev_every == 0:
                state.log[-1] |= score_dev(ranker, dev[: spec.dev_queries])
                if state.improved():
                    state.best = trained_values(network)
            progress(step + 1, spec.steps, loss)
            if (step + 1) % spec.checkpoint_every == 0 and step + 1 < spec.steps:
                save_state(state, network, optimizer, work)
        if state.best is not None:
            network.load_state_dict(state.best, strict=False)
        figures |= {
            "steps": state.done,
            "pairs": sum(len(one.items) for batch in batches[: state.done] for one in batch),
            "tokens_this_run": tokens,
            "seconds_this_run": round(time.monotonic() - started, 1),
            "loss": [record["loss"] for record in state.log],
            "log": state.log,
        }
    network.eval()
    if adapter is not None:
        if adapter_folder is not None:
            save_adapter(adapter, adapter_folder)
        merge_adapter(adapter)
    return figures


@torch.no_grad()
def score_dev(ranker: LoadedRanker, queries: Sequence[EncodedQuery]) -> dict[str, float]:
    """NDCG@10 and AUC (grade 4 against 0) of the model as it stands."""
    ranker.network.eval()
    listings = []
    for query in queries:
        prefixes, items, prefix_of = batch_tensors([query], ranker.placement)
        with ranker.placement.mixed_precision():
            logits = score_items(ranker, prefixes, items, prefix_of)
        listings.append(
            Listing(
                scores=logits.double().cpu().numpy(), grades=np.array(query.grades, dtype=float)
            )
        )
    ranker.network.train()
    return {
        "dev_ndcg10": round(mean_ndcg(listings), 4),
        "dev_auc": round(auc_top_against_zero(listings), 4),
    }


def batch_tensors(batch: Sequence[EncodedQuery], placement: Placement) -> tuple[Any, Any, Any]:
    """Padded prefixes, padded items, and the prefix of each item."""
    prefixes = pad_rows([example.prefix for example in batch], placement)
    items = pad_rows([item for example in batch for item in example.items], placement)
    prefix_of = placement.tensor([index for index, one in enumerate(batch) for _ in one.items])
    return prefixes, items, prefix_of


def _step(
    ranker: LoadedRanker,
    batch: Sequence[EncodedQuery],
    spec: TrainSpec,
    teacher: LoadedRanker | None,
) -> tuple[float, int]:
    """Forward and backward of one batch; returns its loss and the number of prompt tokens."""
    placement = ranker.placement
    prefixes, items, prefix_of = batch_tensors(batch, placement)
    grades = [grade / MAX_GRADE for example in batch for grade in example.grades]
    targets = placement.tensor(grades, torch.float32)
    with placement.mixed_precision():
        if teacher is not None:
            with torch.no_grad():
                targets = score_items(teacher, prefixes, items, prefix_of).float().sigmoid()
        logits = score_items(ranker, prefixes, items, prefix_of).float()
    loss = bernoulli_kl(logits, targets)
    if spec.list_loss is not None:
        loss = loss + spec.list_weight * LIST_LOSSES[spec.list_loss](logits, targets, prefix_of)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), prefixes.tokens + items.tokens
