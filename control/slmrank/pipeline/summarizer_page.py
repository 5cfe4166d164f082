"""What reinforcement did to a summarizing model: its history as a table and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slmrank.errors import ArtifactError
from slmrank.html_page import Table
from slmrank.pyplot import plain_plot
from slmrank.summarize.generative import HISTORY_FILE, POLICY_FOLDER
from slmrank.summarize.summarizer import FITTED_FOLDER

COLUMNS = ("model", "reward", "gain", "-KL", "-length", "tokens", "new words")
History = Mapping[str, Any]


def read_history(summarizer: Path) -> History:
    """What the training of a `generative` summarizer artifact wrote. Raises ArtifactError."""
    path = summarizer / FITTED_FOLDER / POLICY_FOLDER / HISTORY_FILE
    try:
        found: History = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"cannot read {path}: {error}", "run `control train-summarizer --force`"
        ) from error
    return found


def history_table(history: History) -> Table:
    """Reward of the likeliest summaries of held-out jobs, in nats, with its two terms. The gain is
    paired by job, with the standard error of its mean."""
    stages = history["held_out"]
    first = np.array(stages[0]["rewards"])
    rows = []
    for stage in stages:
        gain = np.array(stage["rewards"]) - first
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        rows.append(
            [
                f"{stage['name']} ({stage['step']} steps)",
                f"{np.mean(stage['rewards']):.4f}",
                f"{gain.mean():+.4f} +- {error:.4f}" if stage is not stages[0] else "-",
                f"{-stage['divergence']:.4f}",
                f"{-stage['length_cost']:.4f}",
                f"{stage['tokens']:.1f}",
                f"{stage['new_words']:.1%}",
            ]
        )
    return f"{len(first)} held-out jobs", COLUMNS, rows


def samples_of(history: History) -> list[str]:
    """The first held-out jobs' summaries, before and after."""
    before, after = history["held_out"][0]["shown"], history["held_out"][-1]["shown"]
    return [
        f"{one['title']}. Before: {one['summary']} After: {other['summary']}"
        for one, other in zip(before, after, strict=True)
    ]


def draw_history(history: History) -> bytes:
    """A PNG: the reward of what was sampled, and its two terms, over the steps."""
    log: Sequence[Mapping[str, float]] = [
        one for one in history["log"] if "reward" in one and "step" in one
    ]

    def draw(axes: Any) -> None:
        steps = [one["step"] for one in log]
        width = max(len(log) // 12, 1)
        for name, color in (
            ("reward", "#4477aa"),
            ("faithfulness", "#228833"),
            ("brevity", "#ee6677"),
        ):
            values = np.array([one[name] for one in log])
            axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.4, marker="")
            mean = np.convolve(values, np.ones(width) / width, mode="valid")
            label = f"{name}, mean of {width}"
            axes.plot(steps[width - 1 :], mean, color=color, label=label, marker="")
        axes.set_xlabel("step")
        axes.set_ylabel("nats, of sampled summaries")
        axes.legend(frameon=False)

    def draw_nothing(axes: Any) -> None:
        axes.text(0.5, 0.5, "no steps by reinforcement", ha="center", transform=axes.transAxes)

    return plain_plot(draw if log else draw_nothing)
