"""Plots of a sweep record, as PNG bytes (matplotlib)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from slmrank.load.perf_result import known_percentile
from slmrank.load.record import Record
from slmrank.pyplot import new_figure, png_of

SIZE_IN = (8.0, 4.8)
DPI = 110
STAGE_COLORS = {"prepare": "#4477aa", "queue": "#ccbb44", "ranker": "#ee6677", "other": "#bbbbbb"}


def title_of(record: Record) -> str:
    """Model, engine and machine, for every plot."""
    served, host = record["served"], record["host"]
    engine = f"{served.get('engine_target', '?')} {served.get('precision', '')}".strip()
    checkpoint = served.get("checkpoint", "")[:8]
    machine = f"{host.get('cores', '?')} cores {host.get('processor', '')}".strip()
    gpus = host.get("gpus") or []
    if gpus:
        machine = gpus[0]["name"]
    return f"{served.get('bundle', '?')} {checkpoint}, {engine}, {machine}"


def stable_points(record: Record) -> list[Record]:
    """Points with numbers, without repeats of the same cell and load."""
    seen: dict[tuple[Any, ...], Record] = {}
    for point in record["points"]:
        if point["stable"]:
            seen[key_of(point)] = point
    return list(seen.values())


def cell_of(point: Record) -> tuple[Any, ...]:
    return point["items"], point["tokens"], point["query_tokens"]


def key_of(point: Record) -> tuple[Any, ...]:
    """Its cell and its load."""
    return (*cell_of(point), point["load"]["kind"], point["load"]["level"])


def in_order(point: Record) -> tuple[Any, ...]:
    """Where a point stands among others, by its sizes and its load."""
    return tuple(one or 0 for one in key_of(point))


def rate_text(value: float) -> str:
    """A rate for a table: a large model on a CPU has less than one item a second."""
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def load_name(load: Mapping[str, Any]) -> str:
    """A load in words, as "4 in flight" or "12.5/s"."""
    return f"{load['level']:g}" + (" in flight" if load["kind"] == "concurrency" else "/s")


def cell_name(cell: tuple[Any, ...]) -> str:
    items, tokens, query = cell
    text = f"{items} x {tokens or 'stored'} tokens"
    return text + (f", query {query}" if query else "")


def point_name(point: Record) -> str:
    return f"{cell_name(cell_of(point))}, {load_name(point['load'])}"


def draw(record: Record) -> dict[str, bytes]:
    """Every plot that the record has data for, by name."""
    plots: dict[str, Callable[[Record, Any], bool]] = {
        "latency-throughput": _latency_throughput,
        "items-per-second": _heat_map,
        "stage-times": _stages,
        "pareto": _pareto,
    }
    found = {}
    for name, plot in plots.items():
        figure = new_figure(figsize=SIZE_IN, dpi=DPI, layout="constrained")
        if plot(record, figure.subplots()):
            figure.suptitle(title_of(record), fontsize=9, color="#555555")
            found[name] = png_of(figure)
    return found


def _with_p95(record: Record) -> list[Record]:
    return [one for one in stable_points(record) if known_percentile(one, 95) is not None]


def _latency_throughput(record: Record, axes: Any) -> bool:
    points = _with_p95(record)
    if not points:
        return False
    cells = list(dict.fromkeys(cell_of(point) for point in sorted(points, key=in_order)))
    axes.figure.set_size_inches(SIZE_IN[0], max(SIZE_IN[1], 1.4 + 0.19 * len(cells)))
    markers = {"concurrency": "o", "rate": "^"}
    for number, cell in enumerate(cells):
        for kind, marker in markers.items():
            own = [p for p in points if cell_of(p) == cell and p["load"]["kind"] == kind]
            own.sort(key=lambda p: p["load"]["level"])
            if own:
                loop = "" if kind == "concurrency" else ", open loop"
                axes.plot(
                    [p["items_per_s"] for p in own],
                    [p["p95_ms"] for p in own],
                    marker=marker,
                    linestyle="-" if kind == "concurrency" else "--",
                    linewidth=(1.5, 3.0, 0.7)[number // 10 % 3],
                    color=f"C{number % 10}",
                    label=cell_name(cell) + loop,
                )
    axes.set(
        xlabel="throughput (items/s)", ylabel="p95 latency (ms)", title="Latency by throughput"
    )
    _scale(axes, "y", points)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True


def _scale(axes: Any, which: str, points: list[Record]) -> None:
    """An axis of p95: from 0, or logarithmic where they lie far apart, with 1, 2, 5, 10 and so on
    as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    waits = [point["p95_ms"] for point in points]
    if max(waits) <= 20 * min(waits):
        axes.set(**{f"{which}lim": (0, None)})
        return
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _heat_map(record: Record, axes: Any) -> bool:
    points = [p for p in stable_points(record) if p["tokens"] is not None]
    items = sorted({p["items"] for p in points})
    lengths = {(p["tokens"], p["query_tokens"]) for p in points}
    tokens = sorted(lengths, key=lambda one: (one[0], one[1] or 0))
    if not points or len(items) * len(tokens) < 2:
        return False
    best = np.full((len(items), len(tokens)), np.nan)
    for p in points:
        place = items.index(p["items"]), tokens.index((p["tokens"], p["query_tokens"]))
        best[place] = np.fmax(best[place], p["items_per_s"])
    image = axes.imshow(best, aspect="auto", cmap="viridis")
    axes.figure.colorbar(image, ax=axes, label="items/s")
    several = len({query for _, query in tokens}) > 1
    axes.set_xticks(
        range(len(tokens)), [f"{t}, {q or 'any'}" if several else str(t) for t, q in tokens]
    )
    axes.set_yticks(range(len(items)), [str(i) for i in items])
    axes.set(
        xlabel="tokens per item" + (", tokens of the query" if several else ""),
        ylabel="items per request",
        title="Best throughput over all loads (items/s)",
    )
    middle = (np.nanmin(best) + np.nanmax(best)) / 2
    for (row, column), value in np.ndenumerate(best):
        text = rate_text(value) if value == value else "-"
        shade = "white" if value != value or value < middle else "black"
        axes.text(column, row, text, ha="center", va="center", color=shade)
    return True


def _stages(record: Record, axes: Any) -> bool:
    points = [p for p in stable_points(record) if p.get("stages_us")]
    if not points:
        return False
    points.sort(key=in_order)
    names = [point_name(p) for p in points]
    parts: dict[str, list[float]] = {name: [] for name in STAGE_COLORS}
    for p in points:
        stages = p["stages_us"]
        prepare = stages.get("prepare", {}).get("compute", 0) / 1000
        ranker = stages.get("ranker", {}).get("compute", 0) / 1000
        queue = sum(stage["queue"] for stage in stages.values()) / 1000
        parts["prepare"].append(prepare)
        parts["queue"].append(queue)
        parts["ranker"].append(ranker)
        parts["other"].append(max(0.0, p["mean_ms"] - prepare - ranker - queue))
    left = [0.0] * len(points)
    for name, values in parts.items():
        axes.barh(names, values, left=left, label=name, color=STAGE_COLORS[name])
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.figure.set_size_inches(SIZE_IN[0], max(3.0, 1.4 + 0.28 * len(points)))
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlabel="mean time of a request (ms)", title="Where the time goes")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True


def _pareto(record: Record, axes: Any) -> bool:
    points = _with_p95(record)
    if len(points) < 2:
        return False
    front = pareto_front(points)
    axes.scatter(
        [p["p95_ms"] for p in points],
        [p["items_per_s"] for p in points],
        color="#bbbbbb",
        label="measured points",
    )
    axes.plot(
        [p["p95_ms"] for p in front],
        [p["items_per_s"] for p in front],
        marker="o",
        color="#228833",
        label="beaten by none in both",
    )
    for number, p in enumerate(front, start=1):
        axes.annotate(
            str(number),
            (p["p95_ms"], p["items_per_s"]),
            textcoords="offset points",
            xytext=(0, 6),
            ha="center",
            fontsize=8,
        )
    key = "\n".join(f"{number}: {point_name(p)}" for number, p in enumerate(front, start=1))
    axes.plot([], [], " ", label=key)
    axes.set(xlabel="p95 latency (ms)", ylabel="throughput (items/s)", title="Pareto front")
    _scale(axes, "x", points)
    # Room for the number above the highest point.
    axes.set_ylim(bottom=0, top=1.1 * max(p["items_per_s"] for p in points))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True


def pareto_front(points: list[Record]) -> list[Record]:
    """Points that no other beats in both throughput and p95, by latency."""
    front: list[Record] = []
    for point in sorted(points, key=lambda p: (p["p95_ms"], -p["items_per_s"])):
        if not front or point["items_per_s"] > front[-1]["items_per_s"]:
            front.append(point)
    return front
