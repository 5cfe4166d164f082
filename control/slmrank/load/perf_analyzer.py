"""Run perf_analyzer for one point.

One process, one load level, bare file names inside the point's folder (a path in `-f` silently
loses every per-stage CSV), no `--request-count` (it divides by whole seconds waited). Open loop:
our own Poisson schedule, sent asynchronously (the synchronous default waits for answers and hides
the delay).
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import signal
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slmrank.errors import SweepError
from slmrank.load.binary import PerfAnalyzer
from slmrank.load.perf_result import (
    CSV_FILE,
    EXPORT_FILE,
    MERGED_WINDOWS,
    Measured,
    Verdict,
    read_result,
)
from slmrank.load.points import Point, arrivals_us
from slmrank.processes import tied
from slmrank.spec.load import SweepSpec

INPUT_FILE = "input.json"
SCHEDULE_FILE = "arrivals_us.txt"
OUTPUT_FILE = "perf_analyzer.txt"
UNSTABLE_STATUS = 2
# A time window really lasts this much longer than -p.
WINDOW_STRETCH = 1.2
WARM_UP = 2  # requests before, for each that is in flight
SLOWEST_S = 10.0  # one of them, one after the other: 16 of 32 jobs took 84 s on two slow cores
KILLED_TRIES = 2
EMPTY = "no request ended inside a window: raise sweep.window_ms"
EMPTY_TRIES = 3
_EMPTY = re.compile("no valid requests recorded", re.IGNORECASE)
ANY_SPREAD = 100_000.0
_OVERLOAD = re.compile(
    r"exceeds maximum queue size|timeout|timed out|unavailable|overloaded:", re.IGNORECASE
)
_WARNING = re.compile(r"warning|delayed|fail|error|thread", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How points are measured: windows, trials and spread of the spec; `min_requests` and
    `least_ms` widen the windows of an open loop until three of them hold that many, and last that
    long."""

    spec: SweepSpec
    min_requests: int = 0
    least_ms: float = 0.0

    def window_for(self, point: Point) -> int:
        """Milliseconds of -p for a point."""
        if point.load.kind == "concurrency":
            return self.spec.window_ms
        needed_ms = max(1000 * self.min_requests / point.load.level, self.least_ms)
        return max(self.spec.window_ms, math.ceil(needed_ms / MERGED_WINDOWS / WINDOW_STRETCH))

    def schedule_for(self, point: Point) -> list[int]:
        """Microseconds between the arrivals of an open loop: the same at every rate and for every
        server, stretched, so that 95 in 100 pairs of searches of one simulated server lie within 2
        to 16 % where it was 18 to 43 %."""
        merged_s = MERGED_WINDOWS * self.window_for(point) * WINDOW_STRETCH / 1000
        block = max(16, round(point.load.level * merged_s))
        blocks = math.ceil(2 * self.spec.trials / MERGED_WINDOWS)
        seed = f"{self.spec.seed}/{point.cell}/{point.repeat}"
        return arrivals_us(point.load.level, block, blocks, seed)

    def wider(self) -> Measuring:
        """With windows of twice the length."""
        spec = self.spec.model_copy(update={"window_ms": 2 * self.spec.window_ms})
        return Measuring(spec=spec, min_requests=2 * self.min_requests, least_ms=2 * self.least_ms)

    def settings(self, *, closed_loop: bool = False) -> dict[str, Any]:
        """What decides a measurement, for its key; a closed loop counts no requests."""
        names = ("window_ms", "trials", "stability_percent")
        own = {name: getattr(self.spec, name) for name in names}
        if closed_loop:
            return {**own, "min_requests": 0}
        open_loop = {"min_requests": self.min_requests, "least_ms": self.least_ms}
        return {**own, **open_loop, "seed": self.spec.seed}


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
        figures: dict[str, Any] = {
            "verdict": self.verdict,
            "stable": self.stable,
            "warnings": list(self.warnings),
        }
        if self.reason:
            figures["reason"] = self.reason
        if self.measured is not None and self.stable:
            figures |= asdict(self.measured)
        elif self.measured is not None:
            figures |= {"achieved": self.measured.achieved, "backlog": self.measured.backlog}
        return figures


def command_line(analyzer: PerfAnalyzer, url: str, point: Point, measuring: Measuring) -> list[str]:
    """The argv of one point (pure)."""
    command = [str(analyzer.path), "-m", "rank", "-i", "grpc", "-b", "1", "-u", url]
    spread = measuring.spec.stability_percent
    if point.load.kind == "concurrency":
        level = int(point.load.level)
        command += ["--concurrency-range", str(level)]
        command += ["--warmup-request-count", str(WARM_UP * level)]
    else:
        # Poisson arrivals differ from window to window by nature: the schedule that was kept and
        # the backlog decide instead of the tool's spread.
        command += ["--request-intervals", SCHEDULE_FILE, "-a"]
        spread = ANY_SPREAD
    command += ["-p", str(measuring.window_for(point)), "-r", str(measuring.spec.trials)]
    command += ["-s", f"{spread:g}", "--input-data", INPUT_FILE]
    return [*command, "-f", CSV_FILE, "--verbose-csv", "--profile-export-file", EXPORT_FILE]


def run_point(
    analyzer: PerfAnalyzer,
    url: str,
    point: Point,
    measuring: Measuring,
    data: dict[str, Any],
    folder: Path,
) -> Outcome:
    """Run one point inside `folder`, which keeps input, output, CSVs and the compressed export.

    An unstable point is tried once more with windows twice as long and then stays `unstable`, and
    up to three times where no request ended inside a window; a tool that was killed is started once
    more. Raises SweepError when the tool fails otherwise, writes no row or does not end in time.
    """
    (folder / INPUT_FILE).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    for widened in range(EMPTY_TRIES + 1):
        outcome = _try_point(analyzer, url, point, measuring, folder)
        if outcome.verdict != "unstable" or (widened and outcome.reason != EMPTY):
            break
        measuring = measuring.wider()
    return outcome


def _try_point(
    analyzer: PerfAnalyzer, url: str, point: Point, measuring: Measuring, folder: Path
) -> Outcome:
    window_ms = measuring.window_for(point)
    schedule: list[int] = []
    if point.load.kind == "rate":
        schedule = measuring.schedule_for(point)
        (folder / SCHEDULE_FILE).write_text("\n".join(map(str, schedule)) + "\n")
    command = command_line(analyzer, url, point, measuring)
    limit_s = 60 + measuring.spec.trials * window_ms * 2.4 / 1000
    if point.load.kind == "concurrency":
        limit_s += WARM_UP * point.load.level * SLOWEST_S
    environment = {**os.environ, **analyzer.environment}
    for _ in range(KILLED_TRIES):
        status, printed = _run(command, folder, environment, limit_s)
        if status is None or status >= 0:
            break
    (folder / OUTPUT_FILE).write_text(printed, encoding="utf-8")
    warnings = tuple(line.strip() for line in printed.splitlines() if _WARNING.search(line))

    def ended(verdict: Verdict, reason: str = "", measured: Measured | None = None) -> Outcome:
        told = {"command": tuple(command[1:]), "warnings": warnings}
        return Outcome(verdict=verdict, measured=measured, reason=reason, **told)

    export = folder / EXPORT_FILE
    if status is None:
        if point.load.kind == "rate":  # at its end the tool waits for all that is under way
            return ended("overload", f"requests were still waiting after {limit_s:.0f} s")
        raise SweepError(
            f"perf_analyzer did not end within {limit_s:.0f} s", "is the server stuck?"
        )
    if status == UNSTABLE_STATUS:
        export.unlink(missing_ok=True)
        return ended("unstable", "the tool found no three windows alike")
    if status > 0 and _EMPTY.search(printed):
        return ended("unstable", EMPTY)
    if status < 0:
        return ended("failed", f"perf_analyzer was killed by signal {-status}, twice")
    if status != 0:
        if refusal := next(filter(_OVERLOAD.search, printed.splitlines()), None):
            said = refusal.rpartition("had error: ")[2].strip()
            return ended("refused", f"the server refused requests at this load: {said}")
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


def _run(
    command: list[str], folder: Path, environment: dict[str, str], limit_s: float
) -> tuple[int | None, str]:
    """Exit status, None where it did not end in time, and what was printed."""
    with subprocess.Popen(
        tied(command),  # a server at --url would be loaded on
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
        except subprocess.TimeoutExpired:
            process.kill()
            printed, _ = process.communicate()
            return None, printed
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait(10)
            raise
        return process.returncode, printed


def _tail(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.strip().splitlines()[-20:])
