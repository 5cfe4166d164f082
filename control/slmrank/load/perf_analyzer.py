"""Run perf_analyzer for one point and read back what it measured.

One process, one load level, bare file names inside the point's folder (a path in `-f` silently
loses every per-stage CSV), no `--request-count` (it divides by whole seconds waited). A point has
numbers only when the inner binary's exit status, the CSV row, its own warnings and our
recomputation from the exported requests agree. Open loop: our own Poisson schedule, sent
asynchronously (the synchronous default waits for answers and hides the delay), and the schedule
that was really kept is compared with it.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import re
import signal
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from slmrank.errors import SweepError
from slmrank.load.binary import PerfAnalyzer
from slmrank.load.points import Point, arrivals_us

CSV_FILE = "latency.csv"
EXPORT_FILE = "profile.json"
INPUT_FILE = "input.json"
SCHEDULE_FILE = "arrivals_us.txt"
OUTPUT_FILE = "perf_analyzer.txt"
UNSTABLE_STATUS = 2
MERGED_WINDOWS = 3
# A time window really lasts this much longer than -p.
WINDOW_STRETCH = 1.2
DISAGREEMENT = 0.02
LEAST_ACHIEVED = 0.99
BACKLOG_SHARE = 0.05
KILLED_TRIES = 2
ANY_SPREAD = 100_000.0
_OVERLOAD = re.compile(r"exceeds maximum queue size|timeout|timed out|unavailable", re.IGNORECASE)
_WARNING = re.compile(r"warning|delayed|fail|error|thread", re.IGNORECASE)

Verdict = Literal["ok", "disagrees", "unstable", "late", "overload", "refused", "failed"]
# Measuring again would tell nothing new.
FINAL: tuple[Verdict, ...] = ("ok", "disagrees", "late", "overload", "refused")


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """Window length, windows tried, allowed spread of three windows in percent; `min_requests`
    widens the windows of an open loop until three of them hold that many."""

    window_ms: int
    trials: int
    stability_percent: float
    min_requests: int = 0

    def window_for(self, point: Point) -> int:
        """Milliseconds of -p for a point."""
        if point.load.kind == "concurrency" or not self.min_requests:
            return self.window_ms
        needed_s = self.min_requests / point.load.level / MERGED_WINDOWS / WINDOW_STRETCH
        return max(self.window_ms, math.ceil(needed_s * 1000))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One point's result; latencies in milliseconds over the merged stable windows. `achieved`:
    share of the asked rate that was really sent, 1 in a closed loop. `backlog`: requests that were
    due in the windows of an open loop, less those answered in them."""

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
    stages_us: dict[str, dict[str, float]]

    @property
    def trusted(self) -> bool:
        """The tool's own figure agrees with ours within 2 %."""
        return self.disagreement <= DISAGREEMENT

    @property
    def verdict(self) -> Verdict:
        if self.achieved < LEAST_ACHIEVED:
            return "late"
        if self.backlog > max(3, BACKLOG_SHARE * self.requests):
            return "overload"
        return "ok" if self.trusted else "disagrees"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What running a point gave: a verdict, its figures where it has any, the last argv, the tool's
    warnings, and the reason where there are no figures."""

    verdict: Verdict
    command: tuple[str, ...]
    measured: Measured | None = None
    warnings: tuple[str, ...] = ()
    reason: str = ""

    @property
    def stable(self) -> bool:
        return self.verdict in ("ok", "disagrees")

    def as_dict(self) -> dict[str, Any]:
        """Figures for a manifest; without a stable result there is no throughput and no latency."""
        told: dict[str, Any] = {
            "verdict": self.verdict,
            "stable": self.stable,
            "trusted": self.verdict == "ok",
            "warnings": list(self.warnings),
        }
        if self.reason:
            told["reason"] = self.reason
        if self.measured is not None and self.stable:
            told |= asdict(self.measured)
        elif self.measured is not None:
            told |= {"achieved": self.measured.achieved, "backlog": self.measured.backlog}
        return told


def command_line(
    analyzer: PerfAnalyzer, url: str, point: Point, settings: LoadSettings
) -> list[str]:
    """The argv of one point (pure)."""
    command = [
        str(analyzer.path),
        *("-m", "rank"),
        *("-u", url),
        *("-i", "grpc"),
        *("-b", "1"),
        *("--input-data", INPUT_FILE),
    ]
    spread = settings.stability_percent
    if point.load.kind == "concurrency":
        level = int(point.load.level)
        command += ["--concurrency-range", str(level)]
        command += ["--warmup-request-count", str(2 * level)]
    else:
        # Poisson arrivals differ from window to window by nature: the schedule that was kept and
        # the backlog decide instead of the tool's spread.
        command += ["--request-intervals", SCHEDULE_FILE, "-a"]
        spread = ANY_SPREAD
    return [
        *command,
        *("-p", str(settings.window_for(point))),
        *("-r", str(settings.trials)),
        *("-s", f"{spread:g}"),
        *("-f", CSV_FILE),
        "--verbose-csv",
        *("--profile-export-file", EXPORT_FILE),
    ]


def run_point(
    analyzer: PerfAnalyzer,
    url: str,
    point: Point,
    settings: LoadSettings,
    data: dict[str, Any],
    folder: Path,
) -> Outcome:
    """Run one point inside `folder`, which keeps input, output, CSVs and the compressed export.

    An unstable point is tried once more with windows twice as long and then stays `unstable`; a
    tool that was killed is started once more. Raises SweepError when the tool fails otherwise,
    writes no row or does not end in time.
    """
    outcome = _try_point(analyzer, url, point, settings, data, folder)
    if outcome.verdict == "unstable":
        wider = replace(
            settings, window_ms=2 * settings.window_ms, min_requests=2 * settings.min_requests
        )
        outcome = _try_point(analyzer, url, point, wider, data, folder)
    return outcome


def _try_point(
    analyzer: PerfAnalyzer,
    url: str,
    point: Point,
    settings: LoadSettings,
    data: dict[str, Any],
    folder: Path,
) -> Outcome:
    (folder / INPUT_FILE).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    window_ms = settings.window_for(point)
    schedule: list[int] = []
    if point.load.kind == "rate":
        span_s = settings.trials * window_ms * 2 * WINDOW_STRETCH / 1000
        count = max(16, math.ceil(point.load.level * span_s))
        schedule = arrivals_us(point.load.level, count, f"{point.name}")
        (folder / SCHEDULE_FILE).write_text("\n".join(map(str, schedule)) + "\n")
    command = command_line(analyzer, url, point, settings)
    limit_s = 60 + settings.trials * window_ms * 2.4 / 1000
    environment = {**os.environ, **analyzer.environment}
    for _ in range(KILLED_TRIES):
        status, printed = _run(command, folder, environment, limit_s)
        if status >= 0:
            break
    (folder / OUTPUT_FILE).write_text(printed, encoding="utf-8")
    warnings = tuple(line.strip() for line in printed.splitlines() if _WARNING.search(line))

    def ended(verdict: Verdict, reason: str = "", measured: Measured | None = None) -> Outcome:
        return Outcome(
            verdict=verdict,
            command=tuple(command[1:]),
            measured=measured,
            warnings=warnings,
            reason=reason,
        )

    export = folder / EXPORT_FILE
    if status == UNSTABLE_STATUS:
        export.unlink(missing_ok=True)
        return ended("unstable", "the tool found no three windows alike")
    if status < 0:
        return ended("failed", f"perf_analyzer was killed by signal {-status}, twice")
    if status != 0:
        if point.load.kind == "rate" and _OVERLOAD.search(printed):
            return ended("refused", "the server refused requests at this rate")
        raise SweepError(
            f"perf_analyzer ended with status {status} at {point.name}\n{_tail(printed)}",
            "is the server up and ready? The lines above are the tool's own",
        )
    try:
        measured = read_result(folder, point, window_ms, schedule)
    except SweepError as error:
        raise SweepError(f"{error.message}\n{_tail(printed)}", error.hint) from error
    with gzip.open(folder / f"{EXPORT_FILE}.gz", "wb") as stream:
        stream.write(export.read_bytes())
    export.unlink()
    reasons = {
        "late": f"only {measured.achieved:.1%} of the asked rate was sent",
        "overload": f"{measured.backlog} more requests came than were answered",
        "disagrees": f"the tool's own figure differs by {measured.disagreement:.1%}",
    }
    return ended(measured.verdict, reasons.get(measured.verdict, ""), measured)


def read_result(
    folder: Path, point: Point, window_ms: int, schedule: list[int] | None = None
) -> Measured:
    """Figures of a finished point from its export, its CSV and its stage CSVs. `schedule` holds the
    gaps in us that an open loop was to keep.

    Raises SweepError when a file or the row is missing, or no request ended in the windows.
    """
    export = _read_json(folder / EXPORT_FILE)
    latencies, begin, end = merged_requests(export)
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
        backlog=due_requests(export, schedule, begin, end) - len(latencies) if schedule else 0,
        stages_us=_stages(folder),
    )


def kept_share(export: dict[str, Any], schedule: list[int]) -> float:
    """Share of the asked rate that was sent: what the schedule's gaps between the first and the
    last request were to take, over what they took. Above 1 is early by rounding."""
    sent = sorted(request["timestamp"] for request in export["experiments"][0]["requests"])
    if len(sent) < 2:
        return 1.0
    # The tool waits one gap before its first request, and starts over at the end of the list.
    gaps = [schedule[index % len(schedule)] for index in range(1, len(sent))]
    return float(sum(gaps) * 1000 / (sent[-1] - sent[0]))


def due_requests(export: dict[str, Any], schedule: list[int], begin: int, end: int) -> int:
    """Requests that the schedule wants between two times in ns. The export cannot tell: it lacks
    every request that was not answered."""
    started = min(request["timestamp"] for request in export["experiments"][0]["requests"])
    rounds = math.ceil((end - started) / (sum(schedule) * 1000)) + 1
    gaps = np.tile(np.array(schedule, dtype=np.int64) * 1000, rounds)[1:]
    due = started + np.concatenate([[0], np.cumsum(gaps)])
    return int(((due >= begin) & (due <= end)).sum())


def merged_requests(export: dict[str, Any]) -> tuple[np.ndarray[Any, Any], int, int]:
    """Latencies in ms of the requests that ended inside the last three windows, and the windows'
    begin and end in ns. The export holds all windows; the tool reports the merged last three."""
    experiment = export["experiments"][0]
    borders = experiment["window_boundaries"]
    if len(borders) < 2:
        return np.zeros(0), 0, 0
    begin, end = borders[max(len(borders) - 1 - MERGED_WINDOWS, 0)], borders[-1]
    latencies = [
        (request["response_timestamps"][-1] - request["timestamp"]) / 1e6
        for request in experiment["requests"]
        if request["response_timestamps"] and begin <= request["response_timestamps"][-1] <= end
    ]
    return np.array(latencies), begin, end


def _run(
    command: list[str], folder: Path, environment: dict[str, str], limit_s: float
) -> tuple[int, str]:
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            printed, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise SweepError(
                f"perf_analyzer did not end within {limit_s:.0f} s", "is the server stuck?"
            ) from error
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait(10)
            raise
        return process.returncode, printed


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


def _tail(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.strip().splitlines()[-20:])
