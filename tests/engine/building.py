"""Small engines of made-up queries, for the tests of targets that run in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from slmrank.engine.targets.base import Building
from slmrank.engine.targets.registry import TARGETS
from slmrank.prompt.corpus import EncodedQuery
from slmrank.shipped import shipped
from slmrank.spec.reading import change_spec, load_spec


def queries(count: int = 4, items: int = 6, seed: int = 5) -> list[EncodedQuery]:
    """Ids below 900; prefixes and items of different lengths."""
    rng = np.random.default_rng(seed)
    grades = tuple(([4, 0, 2, 0, 1, 3] * items)[:items])
    return [
        EncodedQuery(
            query=str(index),
            prefix=rng.integers(1, 900, 3 + 7 * index).astype(np.int32),
            items=tuple(
                rng.integers(1, 900, size).astype(np.int32) for size in rng.integers(1, 60, items)
            ),
            job_ids=tuple(map(str, range(items))),
            grades=grades,
            targets=tuple(one / 4 for one in grades),
        )
        for index in range(count)
    ]


def build(
    target: str, checkpoint: Any, folder: Path, parity: dict[str, float], **own: Any
) -> dict[str, Any]:
    """The engine of a checkpoint below `folder`; `own` is the target's section of the spec."""
    change = {"engine": {"target": target, target: own, "parity": parity}}
    spec = change_spec(load_spec(shipped("build/demo.yaml")), change)
    return TARGETS.get(target).build(
        Building(
            spec=spec,
            checkpoint=checkpoint,
            calibration=lambda _: queries(),
            held_out=queries(),
            folder=folder,
            report=lambda _: None,
        )
    )
