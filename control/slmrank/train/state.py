"""The resumable state of a run: what is trained, the optimizer, the log, the best so far."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slmrank.errors import DataError
from slmrank.train.sharding import gathered, like

STATE_FILE = "state.pt"


@dataclass(kw_only=True)
class RunState:
    """Where a run stands. `log` has one record per finished step; `top` are the highest
    evaluation's NDCG@10 of the dev queries, `mean` the moving average of the trained parameters,
    `best` those that are kept, of `kept_step` steps."""

    identity: str
    processes: int = 1
    log: list[dict[str, float]] = field(default_factory=list)
    top: list[float] = field(default_factory=list)
    mean: dict[str, Tensor] | None = None
    best: dict[str, Tensor] | None = None
    kept_step: int = 0

    @property
    def done(self) -> int:
        return len(self.log)

    def keeps(self, found: Sequence[float]) -> bool:
        """Whether weights with this NDCG@10 of every dev query are to be kept instead of those
        before: they are the highest, or below it by no more than the standard error of the paired
        difference. 32 queries tell 0.05 apart at best; of what they cannot tell apart the one that
        trained longest is the better guess."""
        short = np.array(self.top or found) - np.array(found)
        if not short.size or short.mean() <= 0:
            self.top = list(found)
            return True
        error = short.std(ddof=1) / math.sqrt(len(short)) if len(short) > 1 else 0.0
        return bool(short.mean() <= error)

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether the best evaluation lies `patience` evaluations back."""
        found = [record["dev_ndcg10"] for record in self.log if "dev_ndcg10" in record]
        if patience is None or not found:
            return False
        return len(found) - 1 - found.index(max(found)) >= patience


def trained_values(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that are trained, by name and whole: every process has to ask."""
    return {
        name: gathered(value.detach()).clone()
        for name, value in network.named_parameters()
        if value.requires_grad
    }


def put_values(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set the named parameters, in place."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in values:
                parameter.copy_(like(values[name], parameter))


def save_state(
    state: RunState,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    work: Path,
    *,
    write: bool = True,
) -> None:
    """Write `work/state.pt`, whole or not at all. Every process has to call it, one of them with
    `write`."""
    kept = {
        **vars(state),
        "model": trained_values(network),
        "optimizer": _each(optimizer.state_dict(), lambda _place, value: gathered(value)),
    }
    if not write:
        return
    work.mkdir(parents=True, exist_ok=True)
    temporary = work / f".{STATE_FILE}.tmp"  # of one writer: the next one takes its place
    try:
        with temporary.open("wb") as stream:
            torch.save(kept, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(work / STATE_FILE)
    except RuntimeError as error:  # torch's words for a disk that is full speak of a position
        if shutil.disk_usage(work).free < temporary.stat().st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def resume_state(
    identity: str,
    processes: int,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    work: Path,
    device: torch.device | str,
) -> RunState:
    """The state of an interrupted run with the same identity, put back; a new one otherwise.

    Raises DataError for a file that cannot be read, and for a run of another number of processes,
    whose batches are others.
    """
    path = work / STATE_FILE
    begun = RunState(identity=identity, processes=processes)
    if not path.is_file():
        return begun
    try:
        kept: Mapping[str, Any] = torch.load(path, weights_only=True, map_location=device)
    except Exception as error:  # torch has no class of its own for a broken file
        raise DataError(
            f"the state of an interrupted run cannot be read: {path}: {error}",
            "remove it: the run then begins anew",
        ) from error
    if kept["identity"] != identity:
        return begun
    if kept["processes"] != processes:
        raise DataError(
            f"the interrupted run had {kept['processes']} processes, this one has {processes}",
            f"launch as many, or remove {path}: the run then begins anew",
        )
    put_values(network, kept["model"])
    trained = [one for one in network.parameters() if one.requires_grad]
    optimizer.load_state_dict(
        _each(kept["optimizer"], lambda place, value: like(value, trained[place]))
    )
    # A run may go on in another version than began it.
    return RunState(**{name: kept[name] for name in vars(begun) if name in kept})


def _each(optimizer: Mapping[str, Any], change: Callable[[int, Any], Any]) -> dict[str, Any]:
    """An optimizer's state with every value changed, given its parameter's place."""
    state = {
        place: {name: change(place, value) for name, value in one.items()}
        for place, one in optimizer["state"].items()
    }
    return {**optimizer, "state": state}
