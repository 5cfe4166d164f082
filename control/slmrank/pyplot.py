"""matplotlib where there is no display."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from slmrank.errors import needs


def headless_pyplot() -> Any:
    """matplotlib's pyplot without a display. Raises MissingDependencyError when it is missing."""
    with needs("plots need matplotlib", "report"):
        import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plain_plot(draw: Callable[[Any], None]) -> bytes:
    """A PNG with one pair of axes in the house's style, which `draw` fills."""
    pyplot = headless_pyplot()
    figure: Any
    axes: Any
    figure, axes = pyplot.subplots(figsize=(8.0, 4.8), dpi=110, layout="constrained")
    draw(axes)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    image = png_of(figure)
    pyplot.close(figure)
    return image


class Spread(Protocol):
    """A value with its interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def interval_bars(axes: Any, at: Sequence[Any], values: Sequence[Spread], **style: Any) -> None:
    """Values over the places `at`, with their intervals as bars."""
    below = [one.value - one.low for one in values]
    above = [one.high - one.value for one in values]
    axes.errorbar(at, [one.value for one in values], yerr=[below, above], capsize=3, **style)


def png_of(figure: Any) -> bytes:
    """A figure as PNG, without a creation date: the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
