"""What a search for the cheapest compression found: a table, a plot, notes, and a spec."""

from __future__ import annotations

import math
from typing import Any

from slmrank.evaluate.metrics import Interval
from slmrank.evaluate.page import interval_bars
from slmrank.html_page import Table
from slmrank.pipeline.compress_search import Found, Search
from slmrank.pipeline.score_step import OWN
from slmrank.pyplot import plain_plot

COLUMNS = ("combination", "predicted loss", "after steps", "loss", "items/s", "verdict")
NOTES = (
    "loss: NDCG@10 against the unpruned ranker, on full texts or on the spec's summaries, "
    "whichever ranks better; paired by query, 95 % bootstrap interval. items/s: one stream of the "
    "engine in this process; predicted ones by a line in the multiply-adds of an item.",
    "The vocabulary is no axis: its rows cost memory, and no multiply-add of an item.",
)


def search_notes(search: Search, found: Found) -> list[str]:
    """What the columns mean, which queries chose, and what widths by layer would give, which
    engines refuse."""
    told = "The layers of a model stay alike: TensorRT-LLM's and the exported graphs refuse others."
    for one in search.uneven():
        least, most = min(one.widths), max(one.widths)
        told += (
            f" Widths of {least} to {most} by layer with {one.width} neurons on average would "
            f"leave {one.error:.3f} of relative error on calibration tokens, added over the "
            f"layers, instead of {one.even_error:.3f}."
        )
    return [*NOTES, _chosen_by(search, found), told]


def search_table(found: Found, max_loss: float) -> Table:
    """What was tried, the last round at the end."""
    rows = []
    for one in found.tried:
        verdict = "within" if one.loss.value <= max_loss else "loses too much"
        if found.best is one:
            verdict = "best"
        rows.append(
            [
                one.choice.words,
                f"{one.predicted_loss:.4f}",
                str(one.steps),
                _interval(one.loss),
                f"{1 / one.seconds:.3g}" + ("" if one.in_engine else " predicted"),
                verdict,
            ]
        )
    return f"{len(found.predicted)} combinations, limit {max_loss}", COLUMNS, rows


def draw_search(found: Found, max_loss: float) -> bytes:
    """A PNG: loss over items/s, predicted before recovery and measured after it."""

    def draw(axes: Any) -> None:
        def rates(those: Any) -> list[float]:
            return [1 / one.seconds for one in those]

        axes.scatter(
            rates(found.predicted),
            [one.loss for one in found.predicted],
            s=12,
            color="#bbbbbb",
            label="predicted, not recovered",
        )
        for last, color in ((False, "#4477aa"), (True, "#ee6677")):
            those = [one for one in found.tried if one.in_engine is last]
            losses = [one.loss for one in those]
            label = "in the engine" if last else "while recovered"
            interval_bars(axes, rates(those), losses, fmt="o", color=color, label=label)
        axes.axhline(max_loss, color="#999999", linewidth=0.8, linestyle="--")
        axes.set_xlabel("items/s, one stream in process")
        axes.set_ylabel("NDCG@10 lost")
        axes.legend(frameon=False)

    return plain_plot(draw)


def winning_lines(search: Search, found: Found) -> list[str]:
    """The evidence of the winner, for the comments of its spec."""
    best, own = found.best, search.bundle.spec.summarize.budget_tokens
    assert best is not None
    other = best.choice.budget_tokens != own
    return [
        "Written by `control compress-search`; use it like any other spec.",
        f"{best.choice.words}: {1 / best.seconds:.3g} items/s in process",
        f"NDCG@10 lost: {_interval(best.loss)}",
        _chosen_by(search, found),
        *([f"by a ranker trained on summaries of {own} tokens: evaluate this spec"] * other),
    ]


def _chosen_by(search: Search, found: Found) -> str:
    """Which queries the losses are of, and what the winner loses on others."""
    if search.on != OWN:
        return f"The queries of {search.on} chose: evaluate the winner on others."
    told = "The dev queries of the spec's own data chose."
    if found.checked is not None:
        told += f" On the test queries the winner loses {_interval(found.checked)}."
    return told


def _interval(loss: Interval) -> str:
    if math.isnan(loss.low):  # of one query
        return f"{loss.value:+.4f}"
    return f"{loss.value:+.4f} [{loss.low:+.4f}, {loss.high:+.4f}]"
