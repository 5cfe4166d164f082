"""Our engine: runs in the environment of the benchmark, on the engine that the spec builds, which
lies in the folder. Every pass has queries of its own, so no prefix comes from a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from slmrank.engine.openvino.runtime import open_engine
from worker import Request, Score, Setting, main, sigmoid


def start(setting: Setting) -> tuple[Score, dict[str, Any]]:
    engine = open_engine(setting.folder, threads=setting.threads)

    def ids(values: Sequence[int]) -> Any:
        return np.array(values, dtype=np.int32)

    def score(requests: Sequence[Request]) -> list[float]:
        asked = [(ids(one.prefix), [ids(item) for item in one.items]) for one in requests]
        return [sigmoid(float(value)) for logits in engine.logits_of(asked) for value in logits]

    return score, {}


if __name__ == "__main__":
    main(start)
