"""The far end of `perf/bench.py`: one peer in a process and an environment of its own.

A peer is a file beside this one: the packages that it needs in its PEP 723 header, `convert`, which
turns a Hugging Face checkpoint into what it loads, and `start`, which loads that and returns a
function from requests to P("yes"), one number an item, in order. Run as

    python NAME.py convert CHECKPOINT FOLDER '{"yes": 1, "no": 2, "threads": 2}'
    python NAME.py serve   CHECKPOINT FOLDER '{...}'

The second prints a line of JSON about itself when it is ready; then each line of JSON on its input,
a list of requests, is answered by a line with the seconds that the scoring took and the numbers.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """A query with its items: token ids, which make the prompts, and the same as text."""

    prefix: list[int]
    items: list[list[int]]
    query: str
    texts: list[str]

    def prompts(self) -> list[list[int]]:
        return [self.prefix + item for item in self.items]


@dataclass(frozen=True)
class Setting:
    """The checkpoint and a folder for what is made of it; the ids of the two answers."""

    checkpoint: Path
    folder: Path
    yes: int
    no: int
    threads: int


Score = Callable[[Sequence[Request]], list[float]]


def sigmoid(log_odds: float) -> float:
    return 1 / (1 + math.exp(-max(min(log_odds, 700.0), -700.0)))


def in_batches(
    prompts: Sequence[list[int]], size: int, score: Callable[[list[list[int]]], Sequence[float]]
) -> list[float]:
    """Score prompts of similar length together, `size` at once: for what leaves that to its caller.
    Log-odds in, probabilities out, in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found = [0.0] * len(prompts)
    for begin in range(0, len(order), size):
        places = order[begin : begin + size]
        for place, value in zip(places, score([prompts[one] for one in places]), strict=True):
            found[place] = sigmoid(float(value))
    return found


def padded(prompts: Sequence[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Rows of equal length, and the place of the last token of each. Padding stands behind: under a
    causal mask nothing before it can see it, so no mask is needed."""
    longest = max(map(len, prompts))
    rows = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
    return rows, [len(prompt) - 1 for prompt in prompts]


def main(
    start: Callable[[Setting], tuple[Score, dict[str, Any]]],
    convert: Callable[[Setting], None] = lambda setting: None,
) -> None:
    verb, checkpoint, folder, told = sys.argv[1:5]
    setting = Setting(checkpoint=Path(checkpoint), folder=Path(folder), **json.loads(told))
    if verb == "convert":
        convert(setting)
        return
    # Libraries print what they like; answers go where nothing else does.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    score, about = start(setting)
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        requests = [Request(**one) for one in json.loads(line)]
        started = time.perf_counter()
        found = score(requests)
        seconds = time.perf_counter() - started
        print(json.dumps([seconds, found]), file=answers, flush=True)
