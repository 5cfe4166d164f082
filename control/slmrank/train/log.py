"""The log of a training run as a file: one record a step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

LOG_FILE = "train.jsonl"


def write_log(path: Path, log: Sequence[Mapping[str, float]]) -> None:
    """One record a step: loss, learning_rate, and dev_ndcg10, dev_auc where dev was scored."""
    path.write_text("".join(json.dumps(dict(one)) + "\n" for one in log), encoding="utf-8")


def read_log(path: Path) -> list[dict[str, float]]:
    """What `write_log` wrote; nothing where there was no step."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
