"""Run perf_analyzer for one point and read back what it measured.

One process, one load level, bare file names inside the point's folder (a path in `-f` silently
loses every per-stage CSV). A point counts only when the inner binary's exit status, the CSV row
and our own recomputation from the exported requests agree.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from control.errors import SweepError
from control.sweep.binary import PerfAnalyzer
from control.sweep.points import Point

CSV_FILE = "latency.csv"
EXPORT_FILE = "profile.json"
INPUT_FILE = "input.json"
OUTPUT_FILE = "perf_analyzer.txt"
UNSTABLE_STATUS = 2
MERGED_WINDOWS = 3
DISAGREEMENT = 0.02


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """Window length, windows tried, allowed spread of three windows in percent."""

    window_ms: int
    trials: int
    stability_percent: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One point's result; latencies in milliseconds over the merged stable windows."""

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
    stages_us: dict[str, dict[str, float]]

    @property
    def trusted(self) -> bool:
        """The tool's own figure agrees with ours within 2 %."""
        return self.disagreement <= DISAGREEMENT

    def as_dict(self) -> dict[str, Any]:
        return {"stable": True, **asdict(self), "trusted": self.trusted}


def command_line(
    analyzer: PerfAnalyzer, url: str, point: Point, settings: LoadSettings
) -> list[str]:
    """The argv of one point (pure)."""
    return [
        str(analyzer.path),
        *("-m", "rank"),
        *("-u", url),
        *("-i", "grpc"),
        *("-b", "1"),
        *("--input-data", INPUT_FILE),
        *("--concurrency-range", str(point.concurrency)),
        *("--warmup-request-count", str(2 * point.concurrency)),
        *("-p", str(settings.window_ms)),
        *("-r", str(settings.trials)),
        *("-s", f"{settings.stability_percent:g}"),
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
) -> Measured | None:
    """Run one point inside `folder`, which keeps input, output, CSVs and the compressed export.

    An unstable point is tried once more with windows twice as long; None when it stays unstable
    (the tool then writes no figures at all). Raises SweepError when the tool fails, writes no row
    or does not end in time.
    """
    measured = _try_point(analyzer, url, point, settings, data, folder)
    if measured is None:
        wider = replace(settings, window_ms=2 * settings.window_ms)
        measured = _try_point(analyzer, url, point, wider, data, folder)
    return measured


def _try_point(
    analyzer: PerfAnalyzer,
    url: str,
    point: Point,
    settings: LoadSettings,
    data: dict[str, Any],
    folder: Path,
) -> Measured | None:
    (folder / INPUT_FILE).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    command = command_line(analyzer, url, point, settings)
    limit_s = 60 + settings.trials * settings.window_ms * 2.4 / 1000
    status, printed = _run(command, folder, {**os.environ, **analyzer.environment}, limit_s)
    (folder / OUTPUT_FILE).write_text(printed, encoding="utf-8")
    if status not in (0, UNSTABLE_STATUS):
        raise SweepError(
            f"perf_analyzer ended with status {status} at {point.name}\n{_tail(printed)}",
            "is the server up and ready? The lines above are the tool's own",
        )
    export = folder / EXPORT_FILE
    if status == UNSTABLE_STATUS:
        export.unlink(missing_ok=True)
        return None
    try:
        measured = read_result(folder, point, settings.window_ms)
    except SweepError as error:
        raise SweepError(f"{error.message}\n{_tail(printed)}", error.hint) from error
    with gzip.open(folder / f"{EXPORT_FILE}.gz", "wb") as stream:
        stream.write(export.read_bytes())
    export.unlink()
    return measured


def read_result(folder: Path, point: Point, window_ms: int) -> Measured:
    """Figures of a finished point from its export, its CSV and its stage CSVs.

    Raises SweepError when a file or the row is missing, or no request ended in the windows.
    """
    latencies, span_s = merged_requests(_read_json(folder / EXPORT_FILE))
    if not len(latencies):
        raise SweepError(
            f"no request of {point.name} ended inside a window",
            "raise sweep.window_ms: one request takes longer than a window",
        )
    rate = len(latencies) / span_s
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
        stages_us=_stages(folder),
    )


def merged_requests(export: dict[str, Any]) -> tuple[np.ndarray[Any, Any], float]:
    """Latencies in ms of the requests that ended inside the last three windows, and their span in
    seconds. The export holds all windows; the tool reports the merged last three."""
    experiment = export["experiments"][0]
    borders = experiment["window_boundaries"]
    if len(borders) < 2:
        return np.zeros(0), 0.0
    begin, end = borders[max(len(borders) - 1 - MERGED_WINDOWS, 0)], borders[-1]
    latencies = [
        (request["response_timestamps"][-1] - request["timestamp"]) / 1e6
        for request in experiment["requests"]
        if request["response_timestamps"] and begin <= request["response_timestamps"][-1] <= end
    ]
    return np.array(latencies), (end - begin) / 1e9


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
