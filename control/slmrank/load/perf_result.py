"""What perf_analyzer measured in one point, recomputed from the requests that it exported.

A point has numbers only when the tool's CSV row and this recomputation agree; of an open loop the
schedule that was really kept is compared with the one that was asked for.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from slmrank.errors import SweepError
from slmrank.load.points import Point

CSV_FILE = "latency.csv"
EXPORT_FILE = "profile.json"
MERGED_WINDOWS = 3
DISAGREEMENT = 0.02
LEAST_ACHIEVED = 0.99
BACKLOG_SHARE = 0.05
# Standard deviations of what arrivals and answers differ by where nothing piles up.
BACKLOG_DEVIATIONS = 3

Times = np.ndarray[Any, Any]
Verdict = Literal["ok", "disagrees", "unstable", "late", "overload", "refused", "failed"]
# Measuring again would tell nothing new.
FINAL: tuple[Verdict, ...] = ("ok", "disagrees", "late", "overload", "refused")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One point's result; latencies in milliseconds over the merged stable windows, in an open loop
    from when a request was due. `achieved`: share of the asked rate that was really sent, 1 in a
    closed loop. `backlog`: requests that were due after the first window of an open loop, less
    those answered after it; `in_flight`: how many were under way in the first one, by Little's law,
    which is no backlog, however many a parallel server has."""

    window_ms: int
    requests: int
    requests_per_s: float
    items_per_s: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    reported_requests_per_s: float
    disagreement: float
    achieved: float
    backlog: int
    in_flight: float
    stages_us: dict[str, dict[str, float]]

    @property
    def verdict(self) -> Verdict:
        """`ok` where the tool's own figure agrees with ours within 2 %."""
        if self.achieved < LEAST_ACHIEVED:
            return "late"
        # The number under way at two moments is Poisson around the same mean.
        chance = BACKLOG_DEVIATIONS * math.sqrt(2 * self.in_flight)
        if self.backlog > max(3, BACKLOG_SHARE * self.requests, chance):
            return "overload"
        return "ok" if self.disagreement <= DISAGREEMENT else "disagrees"


def known_percentile(figures: Mapping[str, Any], percentile: int) -> float | None:
    """A latency in ms; None where so few requests ended that none is expected beyond it: it would
    be the slowest request under another name."""
    if figures["requests"] < 100 / (100 - percentile):
        return None
    return float(figures[f"p{percentile}_ms"])


def percentile_cell(figures: Mapping[str, Any], percentile: int) -> str:
    """It for a table; "-" where it is not known."""
    found = known_percentile(figures, percentile)
    return "-" if found is None else f"{found:.0f}"


def read_result(
    folder: Path, point: Point, window_ms: int, schedule: list[int] | None = None
) -> Measured:
    """Figures of a finished point from its export, its CSV and its stage CSVs. `schedule` holds the
    gaps in us that an open loop was to keep.

    Raises SweepError when a file or the row is missing, or no request ended in the windows.
    """
    export = _read_json(folder / EXPORT_FILE)
    latencies, ended, begin, end = merged_requests(export, schedule)
    if not len(latencies):
        raise SweepError(
            f"no request of {point.name} ended inside a window",
            "raise sweep.window_ms: one request takes longer than a window",
        )
    rate = len(latencies) / ((end - begin) / 1e9)
    rows = _rows(folder / CSV_FILE)
    if not rows:
        raise SweepError(f"perf_analyzer wrote no row for {point.name}", "see the tool's own lines")
    reported = float(rows[0]["Inferences/Second"])
    p50, p90, p95, p99 = (float(x) for x in np.percentile(latencies, [50, 90, 95, 99]))
    backlog, in_flight = 0, 0.0
    if schedule:
        borders = export["experiments"][0]["window_boundaries"]
        # The run begins with nothing under way: until then a parallel server fills.
        filled = borders[max(len(borders) - MERGED_WINDOWS, 1)] if len(borders) > 2 else begin
        backlog = due_requests(export, schedule, filled, end) - int((ended > filled).sum())
        in_flight = float(latencies[ended <= filled].sum()) * 1e6 / max(filled - begin, 1)
    return Measured(
        window_ms=window_ms,
        requests=len(latencies),
        requests_per_s=rate,
        items_per_s=rate * point.items,
        mean_ms=float(latencies.mean()),
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        reported_requests_per_s=reported,
        disagreement=abs(reported - rate) / rate,
        achieved=kept_share(export, schedule) if schedule else 1.0,
        backlog=backlog,
        in_flight=in_flight,
        stages_us=_stages(folder),
    )


def kept_share(export: dict[str, Any], schedule: list[int]) -> float:
    """Share of the asked rate that was sent: what the schedule's gaps between the first and the
    last request were to take, over what they took. Above 1 is early by rounding."""
    sent = _sent(export)
    sent = sent[: _known(export, sent)]
    if len(sent) < 2:
        return 1.0
    wanted = _due_times(int(sent[0]), schedule, len(sent))[-1] - sent[0]
    return float(wanted / (sent[-1] - sent[0]))


def _sent(export: dict[str, Any]) -> Times:
    """When the exported requests were sent, in ns, in order."""
    requests = export["experiments"][0]["requests"]
    return np.sort(np.array([one["timestamp"] for one in requests], dtype=np.int64))


def _known(export: dict[str, Any], sent: Times) -> int:
    """How many of the first ones are the schedule's, one by one: the export lacks what was not
    answered at the end, and among those that were sent late an answer may have overtaken them."""
    experiment = export["experiments"][0]
    took = [
        one["response_timestamps"][-1] - one["timestamp"]
        for one in experiment["requests"]
        if one["response_timestamps"]
    ]
    borders = experiment["window_boundaries"]
    until = max(borders[-1] if borders else 0, int(sent[-1]) if len(sent) else 0)
    return int((sent <= until - max(took, default=0)).sum())


def due_requests(export: dict[str, Any], schedule: list[int], begin: int, end: int) -> int:
    """Requests that the schedule wants between two times in ns. The export cannot tell: it lacks
    every request that was not answered."""
    started = min(request["timestamp"] for request in export["experiments"][0]["requests"])
    count = (math.ceil((end - started) / (sum(schedule) * 1000)) + 1) * len(schedule)
    due = _due_times(started, schedule, count)
    return int(((due >= begin) & (due <= end)).sum())


def merged_requests(
    export: dict[str, Any], schedule: list[int] | None = None
) -> tuple[Times, Times, int, int]:
    """Latencies in ms of the requests that ended inside the last three windows, when they ended,
    and the windows' begin and end, in ns. The export holds all windows; the tool reports the merged
    last three.

    With the `schedule` of an open loop a latency begins when the request was due, where the tool
    sent it later than that (coordinated omission): by as much as the last one whose place in the
    schedule is known, where it is not.
    """
    experiment = export["experiments"][0]
    borders = experiment["window_boundaries"]
    if len(borders) < 2:
        return np.zeros(0), np.zeros(0), 0, 0
    begin, end = borders[max(len(borders) - 1 - MERGED_WINDOWS, 0)], borders[-1]
    requests = sorted(experiment["requests"], key=lambda request: request["timestamp"])
    since = np.array([request["timestamp"] for request in requests], dtype=np.int64)
    if schedule and requests:
        known = max(_known(export, since), 1)
        late = np.maximum(since[:known] - _due_times(int(since[0]), schedule, known), 0)
        since = since - np.concatenate([late, np.full(len(since) - known, late[-1])])
    found = [
        (request["response_timestamps"][-1], start)
        for request, start in zip(requests, since.tolist(), strict=True)
        if request["response_timestamps"] and begin <= request["response_timestamps"][-1] <= end
    ]
    times = np.array(found, dtype=np.int64).reshape(-1, 2)
    return (times[:, 0] - times[:, 1]) / 1e6, times[:, 0], begin, end


def _due_times(started: int, schedule: list[int], count: int) -> Times:
    """When `count` requests are due, in ns: the tool waits one gap before its first, which counts
    as on time, and starts over at the end of the list."""
    gaps = np.resize(np.array(schedule, dtype=np.int64) * 1000, count + 1)[1:count]
    due: Times = started + np.concatenate([[0], np.cumsum(gaps)])
    return due


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _stages(folder: Path) -> dict[str, dict[str, float]]:
    """Average server time in us per stage (queue, compute), from `<model>_v<n>.latency.csv`."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(folder.glob(f"*.{CSV_FILE}")):
        rows = _rows(path)
        if rows:
            stage = path.name.removesuffix(f".{CSV_FILE}").rsplit("_v", 1)[0]
            found[stage] = {
                "queue": float(rows[0]["Server Queue"]),
                "compute": sum(
                    float(rows[0][f"Server Compute {part}"])
                    for part in ("Input", "Infer", "Output")
                ),
            }
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        # The export copies string tensors byte for byte, length prefixes included, so it is
        # neither UTF-8 nor free of control characters.
        text = path.read_bytes().decode("utf-8", "replace")
        loaded: dict[str, Any] = json.loads(text, strict=False)
    except (OSError, ValueError) as error:
        raise SweepError(
            f"perf_analyzer left no readable export: {error}", "see the tool's own lines"
        ) from error
    return loaded
