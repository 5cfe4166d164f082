"""matplotlib where there is no display."""

from __future__ import annotations

import io
from typing import Any

from slmrank.errors import MissingDependencyError


def headless_pyplot() -> Any:
    """matplotlib's pyplot without a display. Raises MissingDependencyError when it is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(
            f"plots need matplotlib: {error}", "pip install 'slmrank[report]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def png_of(figure: Any) -> bytes:
    """A figure as PNG, without a creation date: the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
