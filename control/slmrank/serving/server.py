"""Run tritonserver over a repository: start, wait until `rank` answers, stop cleanly."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TextIO
from urllib.request import urlopen

import grpc
from tritonclient import grpc as triton

from slmrank.engine.trtllm.backend_config import BACKEND, ENGINE_PATH
from slmrank.errors import ServerError
from slmrank.repository.generate import check_repository
from slmrank.serving.admission import SWITCH, Board, board_path
from slmrank.serving.child import Child, fault_lines
from slmrank.serving.locate import locate_tritonserver
from slmrank.serving.ports import claim_port, in_url, numeric, of_evhtp, reach_directly
from slmrank.triton.config import ENSEMBLE, ModelConfig

START_TIMEOUT_S = 180.0
# How long running requests may take after SIGTERM, and how much longer the process may.
DRAIN_S = 10
STOP_MARGIN_S = 10
QUIET_EVERY_S = 0.02
STAGES_EVERY_S = 1.0
# Whoever reaches the port may score, and read health, configuration and statistics. What changes
# models, maps memory or writes files needs the key of this variable, and is closed without one.
CLOSED = "model-repository,shared-memory,trace,logging"
# HTTP is off unless asked for: nothing of ours calls it, and probes need its health alone.
CLOSED_TO_PROBES = f"{CLOSED},inference,metadata,model-config,statistics"
Http = Literal["off", "health", "all"]
KEY_VARIABLE = "SLMRANK_SERVER_KEY"


@dataclass(frozen=True, kw_only=True)
class Ports:
    """TCP ports of the server; 0 picks a free one. `http` is used where HTTP is on."""

    grpc: int = 8001
    http: int = 8000
    metrics: int = 8002


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """PEM files for gRPC. With `clients`, callers must show a certificate that one of these
    authorities signed."""

    certificate: Path
    key: Path
    clients: Path | None = None

    def arguments(self, http: Http) -> list[str]:
        """tritonserver's flags. Raises ServerError for a file that is not there, or with scoring
        over HTTP."""
        if http == "all":
            raise ServerError(
                "HTTP has no TLS: whoever reaches its port would score past the certificates",
                'take http="health" (--http health), or put a proxy with TLS before it',
            )
        for path in (self.certificate, self.key, self.clients):
            if path is not None and not path.is_file():
                raise ServerError(f"{path} is not a file", "give a PEM file")
        found = ["--grpc-use-ssl=true", f"--grpc-server-cert={self.certificate}"]
        found.append(f"--grpc-server-key={self.key}")
        if self.clients is not None:
            found += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.clients}"]
        return found


ANY_PORTS = Ports(grpc=0, http=0, metrics=0)


class Server:
    """A tritonserver child process. Use as a context manager, or `start` and `stop`. `measured`: it
    takes what its queue holds, however late the answer (see slmrank.serving.admission). What it
    prints also goes to `echo`, line by line."""

    def __init__(
        self,
        repository: Path,
        ports: Ports | None = None,
        *,
        address: str = "127.0.0.1",
        drain_s: int = DRAIN_S,
        http: Http = "off",
        tls: ServerTls | None = None,
        measured: bool = False,
        echo: TextIO | None = None,
    ) -> None:
        self.repository = repository
        self.http, self.tls, self.measured, self.echo = http, tls, measured, echo
        self.drain_s = drain_s
        self.address = numeric(address)
        self._wanted = ports or Ports()
        self._child: Child | None = None
        self._work: Path | None = None
        self._stages: dict[int, str] = {}

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """`host:port` of the gRPC endpoint."""
        return f"{in_url(self.address)}:{self.ports.grpc}"

    @property
    def _process(self) -> subprocess.Popen[str] | None:
        return self._child.process if self._child is not None else None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start and wait until the ensemble is ready.

        Raises ServerError when a port is taken, a model fails to load (with the server's own log
        lines), the process ends, or the time runs out; nothing is left running then.
        """
        configs = check_repository(self.repository)
        if ENSEMBLE not in configs:
            raise ServerError(
                f"{self.repository} has no model {ENSEMBLE!r}", "make it with `control repo`"
            )
        _require_engines(configs)
        reach_directly(self.address)
        used = {
            name: claim_port(self.address, port, f"--{name}-port")
            for name, port in asdict(self._wanted).items()
            if name != "http" or self.http != "off"
        }
        self.ports = Ports(**{"http": 0, **used})
        if len({*used.values()}) < len(used):
            raise ServerError(
                f"ports {', '.join(map(str, used.values()))}: one is asked for twice",
                "give --grpc-port, --http-port and --metrics-port different numbers",
            )
        self._work = Path(tempfile.mkdtemp(prefix="slmrank-serve-"))
        try:
            self._launch()
            self._wait_ready(timeout_s)
            # Before anybody is told that it is ready: one that ends right then is missed as well.
            self._stages = _stages(self._process.pid) if self._process is not None else {}
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server: up to `drain_s` for what was taken, then SIGTERM; SIGKILL when it is
        still there STOP_MARGIN_S later, and for its stages, which do not notice that."""
        if self._process is not None:
            if self._process.poll() is None:
                ends = time.monotonic() + self.drain_s
                try:
                    self._answer_what_was_taken(self._process, ends)
                finally:  # who waits may be interrupted
                    self._process.send_signal(signal.SIGTERM)
                try:
                    self._process.wait(max(ends - time.monotonic(), 0.0) + STOP_MARGIN_S)
                except subprocess.TimeoutExpired:
                    stages = _stages(self._process.pid)
                    self._process.kill()
                    self._process.wait(STOP_MARGIN_S)
                    for stage in stages:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(stage, signal.SIGKILL)
            board_path(self._process.pid).unlink(missing_ok=True)  # of one that was killed
            self.log()  # waits for what it said at its end
            self._child = None
        if self._work is not None:
            shutil.rmtree(self._work, ignore_errors=True)
            self._work = None

    def _answer_what_was_taken(self, process: subprocess.Popen[str], until: float) -> None:
        """Triton closes all stages at once: a call that is in one fails before the next."""
        path = board_path(process.pid)
        if not path.exists():  # Triton's own limits refuse, or nothing was started yet
            return
        board = Board(path)
        board.leave()
        while not board.quiet(now := time.monotonic()) and now < until and process.poll() is None:
            time.sleep(QUIET_EVERY_S)

    def wait(self) -> int:
        """Block until the server ends; returns its exit status.

        Raises ServerError when the process of a stage has ended: Triton goes on without it, says
        that it is ready, and fails every request.
        """
        if self._process is None:
            raise ServerError("the server is not running", "start it first")
        while True:
            try:
                return self._process.wait(STAGES_EVERY_S)
            except subprocess.TimeoutExpired:
                gone = [name for pid, name in self._stages.items() if not _runs(pid)]
            if gone and self._process.poll() is None:
                raise ServerError(
                    f"the process of stage {gone[0]!r} ended while the server ran\n"
                    + fault_lines(self.log()),
                    "start it again; if the kernel ended it for memory, give it more",
                )

    def log(self) -> str:
        """The last lines that the server printed."""
        return self._child.log() if self._child is not None else ""

    def _launch(self) -> None:
        assert self._work is not None
        installation = locate_tritonserver(self._work)
        key = os.environ.get(KEY_VARIABLE) or secrets.token_urlsafe()
        http = [f"--allow-http={str(self.http != 'off').lower()}"]
        if self.http != "off":
            closed = CLOSED if self.http == "all" else CLOSED_TO_PROBES
            http += [f"--http-address={of_evhtp(self.address)}", f"--http-port={self.ports.http}"]
            http.append(f"--http-restricted-api={closed}:slmrank-key={key}")
        command = [
            str(installation.binary),
            *installation.arguments,
            f"--model-repository={self.repository.resolve()}",
            f"--grpc-address={in_url(self.address)}",
            f"--metrics-address={of_evhtp(self.address)}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-port={self.ports.metrics}",
            f"--exit-timeout-secs={self.drain_s}",
            "--exit-on-error=true",
            "--metrics-config=summary_latencies=true",
            f"--grpc-restricted-protocol={CLOSED}:slmrank-key={key}",
            *http,
            *(self.tls.arguments(self.http) if self.tls is not None else ()),
            # Two servers on one machine must not share the Python backend's memory regions.
            f"--backend-config=python,shm-region-prefix-name=slmrank-{os.getpid()}-{self.ports.grpc}",
        ]
        environment = {**os.environ, **installation.environment}
        if self.measured:
            environment[SWITCH] = "off"
        self._child = Child(command, environment, self.echo)

    def _wait_ready(self, timeout_s: float) -> None:
        assert self._process is not None
        started = time.monotonic()
        with triton.InferenceServerClient(self.url) as client:

            def ready() -> bool:
                if self.tls is None:
                    return bool(client.is_model_ready(ENSEMBLE, client_timeout=2.0))
                # No certificate of ours opens this port. Metrics are served last, when all loaded.
                with urlopen(
                    f"http://{in_url(self.address)}:{self.ports.metrics}/metrics", timeout=2
                ):
                    return True

            while True:
                code = self._process.poll()
                if code is not None:
                    raise ServerError(
                        f"tritonserver ended with status {code} while starting\n"
                        + fault_lines(self.log()),
                        "the lines above are the server's own",
                    )
                try:
                    if ready():
                        return
                except (triton.InferenceServerException, grpc.RpcError, OSError):
                    pass
                if time.monotonic() - started > timeout_s:
                    raise ServerError(
                        f"{ENSEMBLE!r} is not ready after {timeout_s:.0f} s\n"
                        + fault_lines(self.log()),
                        "quieten the machine; `control serve` waits longer with --start-timeout",
                    )
                time.sleep(0.2)


def _require_engines(configs: Mapping[str, ModelConfig]) -> None:
    """Better now than after the server tried: a compiled engine lies outside the repository."""
    for config in configs.values():
        if config.backend != BACKEND:
            continue
        engine = config.parameters[ENGINE_PATH].string_value
        if not (Path(engine) / "rank0.engine").is_file():
            raise ServerError(
                f"the engine {engine} is not on this machine",
                "compile it with `control build SPEC --engines DIR` where its GPU is, and mount "
                f"DIR as {Path(engine).parent.parent}",
            )


def _stages(pid: int) -> dict[int, str]:
    """The stub processes of Python stages below a server, with the model that each runs."""
    found = {}
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, _proc_text(path).split()):
            model = re.search(r"/([^/\0]+)/\d+/model\.py", _proc_text(f"/proc/{child}/cmdline"))
            if model:
                found[child] = model[1]
    return found


def _proc_text(path: str | Path) -> str:
    """A file of /proc; empty when its thread or process ended meanwhile."""
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _runs(pid: int) -> bool:
    # The state stands behind the name, which may hold anything in its brackets.
    stat = _proc_text(f"/proc/{pid}/stat")
    return bool(stat) and stat.rpartition(") ")[2][0] not in "ZX"
