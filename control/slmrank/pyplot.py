"""matplotlib where there is no display."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from slmrank.errors import needs

# Told apart also by those who see no red or no green (Tol's bright and muted), and by their shape.
COLORS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee"),
    *("#aa3377", "#777777", "#000000", "#ee8866"),
)
MARKERS = tuple("os^Dv<>P*")


def new_figure(**style: Any) -> Any:
    """A figure of matplotlib, which no window shows. Raises MissingDependencyError without it."""
    with needs("plots need matplotlib", "report"):
        from matplotlib.figure import Figure

    return Figure(**style)


def plain_plot(draw: Callable[[Any], None]) -> bytes:
    """A PNG with one pair of axes in the house's style, which `draw` fills."""
    figure = new_figure(figsize=(8.0, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLORS, marker=MARKERS)
    draw(axes)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return png_of(figure)


def png_of(figure: Any) -> bytes:
    """A figure as PNG, without a creation date: the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
