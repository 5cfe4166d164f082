"""The near end of a peer: its environment, its converted model, its process.

A peer that does not score is stopped by signal: some wait busily for their next message (vLLM's
worker for a second), and would take the cores from whoever is measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers.worker import Request
from process_tree import tree_mib

HERE = Path(__file__).resolve().parent
INSTALL_TIMEOUT_S, CONVERT_TIMEOUT_S, START_TIMEOUT_S, PASS_TIMEOUT_S = 1800, 900, 600, 300


class PeerFault(Exception):
    """A peer that cannot be installed, converted, started or asked, in one line."""


def peer_names() -> list[str]:
    return sorted(path.stem.removeprefix("peer_") for path in HERE.glob("peer_*.py"))


def requirements(script: str) -> list[str]:
    """The packages of a PEP 723 header; none without one."""
    head, found, rest = script.partition("# /// script\n")
    if head or not found:
        return []
    lines = rest.partition("# ///\n")[0].splitlines()
    return list(tomllib.loads("\n".join(line[2:] for line in lines))["dependencies"])


def make_environment(name: str, root: Path) -> Path:
    """The Python of a peer's own virtual environment, made unless it holds the same packages; of a
    peer without packages, this one. Raises PeerFault with pip's last line."""
    wanted = requirements((HERE / f"peer_{name}.py").read_text(encoding="utf-8"))
    if not wanted:
        return Path(sys.executable)
    folder = root / name / "venv"
    python, mark = folder / "bin" / "python", folder / "installed.json"
    if mark.is_file() and json.loads(mark.read_text()) == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _ended([sys.executable, "-m", "venv", str(folder)], root / name / "install.log", 300)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q", *wanted]
    _ended(pip, root / name / "install.log", INSTALL_TIMEOUT_S)
    mark.write_text(json.dumps(wanted))
    return python


class Peer:
    """One peer, running: stopped whenever it is not asked."""

    def __init__(
        self, name: str, root: Path, checkpoint: Path, setting: Mapping[str, int], engine: Path
    ) -> None:
        """Raises PeerFault. `engine` is where our own engine lies."""
        python = make_environment(name, root)
        script, log = HERE / f"peer_{name}.py", root / name / "peer.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        folder = (
            engine if name == "slmrank" else _converted(python, script, checkpoint, root, setting)
        )
        self.name, self._log = name, log
        self._fault: PeerFault | None = None
        self._memory = 0.0
        began = time.monotonic()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [
                    str(python),
                    str(script),
                    "serve",
                    str(checkpoint),
                    str(folder),
                    json.dumps(setting),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env=_environment(setting["threads"]),
            )
        try:
            self.about: dict[str, Any] = self._answer(START_TIMEOUT_S)
        except PeerFault:
            self.close()
            raise
        self.start_s = time.monotonic() - began
        self._signal(signal.SIGSTOP)

    def score(self, requests: Sequence[Request]) -> tuple[float, list[float]]:
        """Seconds and P("yes") of every item. Raises PeerFault, from then on at every call: a late
        answer would be taken for that of the next request."""
        assert self._process.stdin is not None
        if self._fault is not None:
            raise self._fault
        self._signal(signal.SIGCONT)
        try:
            line = json.dumps([asdict(one) for one in requests]) + "\n"
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
            seconds, found = self._answer(PASS_TIMEOUT_S)
        except (BrokenPipeError, PeerFault) as error:
            told = error if isinstance(error, PeerFault) else f"ended: {last_line(self._log)}"
            self._fault, self._memory = PeerFault(str(told)), self.memory_mib()
            self.close()
            raise self._fault from error
        finally:
            self._signal(signal.SIGSTOP)
        return float(seconds), [float(one) for one in found]

    def memory_mib(self) -> float:
        """Resident memory of its processes now, or at its fault."""
        if self._fault is not None:
            return self._memory
        return tree_mib(self._process.pid)

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait(30)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _answer(self, timeout_s: float) -> Any:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            raise PeerFault(f"no answer within {timeout_s:.0f} s: {last_line(self._log)}")
        line = self._process.stdout.readline()
        if not line:
            raise PeerFault(f"ended: {last_line(self._log)}")
        return json.loads(line)


def last_line(log: Path) -> str:
    """What a process said last, for a table's cell."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


def _converted(
    python: Path, script: Path, checkpoint: Path, root: Path, setting: Mapping[str, int]
) -> Path:
    """What the peer made of this checkpoint, made once: named by both scripts and the model."""
    said = [script.read_bytes(), (HERE / "worker.py").read_bytes(), str(checkpoint).encode()]
    key = hashlib.sha256(b"\0".join(said)).hexdigest()[:12]
    name = script.stem.removeprefix("peer_")
    folder = root / name / f"model-{key}"
    if not folder.is_dir():
        work = root / name / "converting"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        command = [str(python), str(script), "convert", str(checkpoint), str(work)]
        _ended([*command, json.dumps(setting)], root / name / "convert.log", CONVERT_TIMEOUT_S)
        work.rename(folder)
    return folder


def _ended(command: list[str], log: Path, timeout_s: float) -> None:
    with log.open("wb") as stream:
        try:
            subprocess.run(
                command,
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                timeout=timeout_s,
                check=True,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerFault(f"{log.stem} took over {timeout_s:.0f} s") from error
        except subprocess.CalledProcessError as error:
            raise PeerFault(f"{log.stem} failed: {last_line(log)}") from error


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
