"""Load, replicas and objective over time, one line for each policy, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from slmrank.deploy.autoscale.fleet import Outcome
from slmrank.deploy.autoscale.simulate import per_minute
from slmrank.deploy.autoscale.situation import Situation
from slmrank.deploy.autoscale.traces import STEP_S, Trace
from slmrank.pyplot import COLORS, new_figure, png_of

SIZE_IN, DPI = (9.0, 8.2), 110
DASHES = ("-", "--", ":")
SMOOTH_MIN = 5


def draw_comparison(trace: Trace, outcomes: Mapping[str, Outcome], situation: Situation) -> bytes:
    """Three panels that share the time axis."""
    figure = new_figure(figsize=SIZE_IN, dpi=DPI, layout="constrained")
    load, size, kept = figure.subplots(3, 1, sharex=True)
    hours = np.arange(len(trace.rates)) * STEP_S / 3600
    load.plot(hours, trace.rates, color="#333333", linewidth=1)
    load.set_ylabel("offered items/s")
    load.set_ylim(0)
    for number, (name, outcome) in enumerate(outcomes.items()):
        # What lies below another is wider: several policies often ask for the same.
        style: dict[str, Any] = {
            "color": COLORS[number % len(COLORS)],
            "linestyle": DASHES[number % len(DASHES)],
            "linewidth": 1 + 0.5 * (len(outcomes) - number),
        }
        times = [at / 3600 for at, _, _ in outcome.sizes]
        size.step(
            times,
            [asked for _, asked, _ in outcome.sizes],
            where="post",
            label=name,
            **style,
        )
        share = _smooth(per_minute(outcome, situation.limit_s)[1])
        minutes = np.arange(len(share)) / 60
        kept.plot(minutes, 100 * share, **style)
    size.set_ylabel("replicas asked for")
    size.set_ylim(0)
    kept.set_ylabel(f"% within {situation.limit_s * 1000:g} ms\n(mean of {SMOOTH_MIN} minutes)")
    kept.set_ylim(0, 102)
    kept.set_xlabel("hours")
    figure.legend(*size.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(
        f"{trace.name}: cold start {situation.cold_start_s:g} s, "
        f"{situation.capacity_items_per_s:g} items/s per replica at the objective",
        fontsize=10,
    )
    return png_of(figure)


def _smooth(values: Any) -> Any:
    """Means over SMOOTH_MIN minutes; minutes without requests are left out."""
    known = ~np.isnan(values)
    window = np.ones(min(SMOOTH_MIN, len(values)))
    total = np.convolve(np.where(known, values, 0), window, mode="same")
    count = np.convolve(known.astype(float), window, mode="same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
