"""Find a perf_analyzer that runs here.

The wheels' own launcher discards the exit status (always 0, even without a server), so the inner
binary is called. Candidates: `PERF_ANALYZER`, the package perf-analyzer (glibc 2.38), the binary
that tritonclient up to 2.50 installs beside the interpreter, then the PATH. Each is tried with
`--version`; the first that answers is used and named in every result.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from slmrank.errors import MissingDependencyError
from slmrank.hashing import hash_file
from slmrank.machine.facts import installed_version
from slmrank.serving.locate import bundled_libraries

PROBE_TIMEOUT_S = 20
# Needed by the binary of tritonclient 2.50; nvidia-pytriton carries both under mangled names.
_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


@dataclass(frozen=True, kw_only=True)
class PerfAnalyzer:
    """A binary that was seen to start, its environment and its version."""

    path: Path
    version: str
    environment: dict[str, str]


def find_perf_analyzer(work: Path) -> PerfAnalyzer:
    """The first candidate that answers; private library links go into `work`.

    Raises MissingDependencyError that says why each candidate failed.
    """
    environment = {"LD_LIBRARY_PATH": str(_link_libraries(work))}
    reasons = []
    for path, origin in _candidates():
        done = _probe(path, environment)
        if isinstance(done, str):
            reasons.append(f"{path}: {done}")
            continue
        # `--version` prints no version in these builds; the hash tells two binaries apart.
        version = f"{origin}, sha256 {hash_file(path)[:12]}"
        return PerfAnalyzer(path=path, version=version, environment=environment)
    raise MissingDependencyError(
        "no perf_analyzer runs here" + "".join(f"\n  {reason}" for reason in reasons),
        "correct or unset PERF_ANALYZER"
        if os.environ.get("PERF_ANALYZER")
        else "pip install 'tritonclient[grpc]==2.50.0' (glibc below 2.38) or perf-analyzer, or set "
        "PERF_ANALYZER",
    )


def _candidates() -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    named = os.environ.get("PERF_ANALYZER")
    if named:
        return [(Path(named), "PERF_ANALYZER")]
    spec = importlib.util.find_spec("perf_analyzer")
    if spec is not None and spec.origin:
        inner = Path(spec.origin).parent / "bin" / "perf_analyzer"
        found.append((inner, f"perf-analyzer {installed_version('perf-analyzer') or 'unknown'}"))
    beside = Path(sys.executable).parent / "perf_analyzer"
    found.append((beside, f"tritonclient {installed_version('tritonclient') or 'unknown'}"))
    on_path = shutil.which("perf_analyzer")
    if on_path and Path(on_path) != beside:
        found.append((Path(on_path), "PATH"))
    return [(path, origin) for path, origin in found if path.is_file()]


def _probe(path: Path, environment: dict[str, str]) -> str | None:
    """None when the binary starts, else why not. `--version` ends with a usage status."""
    try:
        done = subprocess.run(
            [str(path), "--version"],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            env={**os.environ, **environment},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    printed = done.stdout + done.stderr
    if "Perf Analyzer Version" in printed:
        return None
    return (printed.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _link_libraries(work: Path) -> Path:
    folder = work / "perf_analyzer_libraries"
    folder.mkdir(parents=True, exist_ok=True)
    source = bundled_libraries()
    for name, pattern in _LIBRARIES.items():
        matches = sorted(source.glob(pattern)) if source is not None else []
        link = folder / name
        if matches and not link.is_symlink():
            link.symlink_to(matches[0])
    return folder
