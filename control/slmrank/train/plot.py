"""The picture of a training run: loss, rate and what dev said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from slmrank.pyplot import new_figure, png_of

SIZE_IN = (8.0, 6.0)
DPI = 100


def draw_log(log: Sequence[Mapping[str, float]], title: str) -> bytes:
    """A PNG: the loss of every step with its running mean, and dev NDCG@10 and AUC.

    Raises MissingDependencyError without matplotlib.
    """
    figure = new_figure(figsize=SIZE_IN, dpi=DPI)
    above, below = figure.subplots(2, 1, sharex=True)
    steps = [record["step"] for record in log]
    losses = np.array([record["loss"] for record in log])
    width = max(len(losses) // 30, 1)
    mean = np.convolve(losses, np.ones(width) / width, mode="valid")
    alone = "." if len(steps) == 1 else None  # a line has no single point
    above.plot(steps, losses, color="#bbbbbb", linewidth=0.8, marker=alone, label="loss of a step")
    above.plot(steps[width - 1 :], mean, color="#4477aa", label=f"mean of {width} steps")
    above.set_ylabel("loss (nats)")
    above.legend(frameon=False)
    above.set_title(title)
    for name, label, color in (
        ("dev_auc", "AUC 4 v 0", "#ee6677"),
        ("dev_ndcg10", "NDCG@10", "#228833"),
    ):
        scored = [(record["step"], record[name]) for record in log if name in record]
        if scored:
            below.plot(*zip(*scored, strict=True), "o-", color=color, label=label)
            below.legend(frameon=False)
    below.set_ylabel("on dev")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    return png_of(figure)
