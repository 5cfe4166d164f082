"""The processes of a training run, through accelerate: one, or those of a launcher."""

from __future__ import annotations

import atexit
import importlib.util
from pathlib import Path
from typing import Any, TypeVar

from slmrank.errors import MissingDependencyError, SpecError
from slmrank.model.placement import Placement
from slmrank.spec.train import TrainSpec

T = TypeVar("T")


def end_at_exit() -> None:
    """End the group of processes with the command, not with the training: accelerate cannot start
    another one. After a failure nobody may: the others wait in a step that will never come."""
    atexit.register(_end_processes)


def _end_processes() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def start_processes(placement: Placement, spec: TrainSpec, logs: Path) -> Any:
    """accelerate's `Accelerator` on the placement, with the spec's logger started in `logs`.

    Raises SpecError when the launcher's configuration asks for more than copies of the model: that
    it is split is a setting of the spec. Raises MissingDependencyError for a logger that is not
    installed.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    logger = None if spec.logger == "none" else spec.logger
    if logger is not None and importlib.util.find_spec(logger) is None:
        raise MissingDependencyError(
            f"logger {logger} is not installed", f"pip install {logger}, or leave it out"
        )
    atexit.unregister(_end_processes)
    launched = Accelerator(
        cpu=placement.device == "cpu",
        mixed_precision="no",  # the placement's own autocast decides
        log_with=logger,
        project_dir=str(logs),
    )
    many = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if launched.distributed_type not in many:
        raise SpecError(
            f"the launcher asks for {launched.distributed_type.value}; whether the model is split "
            "is a setting of the spec",
            "launch with torchrun or `accelerate launch --multi_gpu`, and set shard: true (FSDP2)",
        )
    if logger is not None:
        plain = (str, float, int, bool)
        given = spec.settings().items()
        config = {name: one if isinstance(one, plain) else str(one) for name, one in given}
        launched.init_trackers("slmrank", config=config)
    return launched


def of_main_process(found: T) -> T:
    """What process 0 found, in every process. The last bits of two may differ, and processes that
    decide differently wait for each other for ever."""
    from accelerate.utils import broadcast_object_list

    first: T = broadcast_object_list([found])[0]
    return first
