"""matplotlib where there is no display."""

from __future__ import annotations

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
