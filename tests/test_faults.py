"""What goes wrong around a ranker, what the user sees of it, and what is not lost. Each row of the
table is a test, here or where it is named; docs/faults.md is the table."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import lmdb
import numpy as np
import pytest
from slmrank.artifacts import ArtifactStore
from slmrank.client.client import RankClient
from slmrank.client.request import build_inputs, rows_of
from slmrank.data.records import Job
from slmrank.errors import ServerError, Unreachable
from slmrank.load.record import read_record, record_path, write_record
from slmrank.load.run import Subject
from slmrank.pipeline.steps import in_order
from slmrank.repository.generate import read_identity
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.triton.status import Status
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.conftest import ROOT, Control, TinyBundle
from tests.serving.test_server import flood

PAGE = ROOT / "docs" / "faults.md"
JOBS = ["job-0", "job-1", "job-2"]


@dataclass(frozen=True)
class Row:
    """One fault: what happens, what the user sees, what is not lost, and its test."""

    fault: str
    seen: str
    kept: str
    test: str


TABLE: list[Row] = []
# Stamps for people and other machines: which version of a catalogue, and when a message was sent.
WALL_CLOCK = {
    "pipeline/follow.py",
    "repository/receive.py",  # the age of what was abandoned
    "store/change_lines.py",
    "store/redis_scores.py",
    "store/redis_writer.py",
}


def fault(what: str, *, seen: str, kept: str) -> Callable[[Any], Any]:
    """Put a test of this file into the table."""

    def add(function: Any) -> Any:
        TABLE.append(Row(what, seen, kept, f"tests/test_faults.py::{function.__name__}"))
        return pytest.mark.slow(function)

    return add


def elsewhere(test: str, what: str, *, seen: str, kept: str) -> None:
    TABLE.append(Row(what, seen, kept, test))


def scores(url: str) -> list[float]:
    with RankClient(url, timeout_s=60, retry_overload=True) as client:
        return [item.score for item in client.score("nurse shift", JOBS)]


def children(pid: int) -> dict[int, str]:
    """Every process below one, with its command line."""
    found: dict[int, str] = {}
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for number in map(int, path.read_text().split()):
            try:
                command = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            found |= {number: command, **children(number)}
    return found


def until(done: Callable[[], Any], limit_s: float = 30) -> Any:
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        found = done()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


def listens(url: str) -> bool:
    host, _, port = url.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def serving(repository: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "slmrank.cli.main", "serve", str(repository)]
    command += ["--grpc-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split("gRPC ")[1].split(",")[0]


@pytest.fixture
def copied(tiny_repository: Path, tmp_path: Path) -> Path:
    """A repository of one's own to damage."""
    target = tmp_path / "repository"
    shutil.copytree(tiny_repository, target)
    return target


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs to mount a small file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, spare: int) -> Path:
    """Take the room of a disk but for `spare` bytes; returns the file that takes it."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    with filler.open("wb") as stream:
        left = free.f_bavail * free.f_frsize - spare
        while left > 0:
            left -= stream.write(b"\0" * min(left, 1 << 20))
    return filler


def without(tiny: TinyBundle, disk: Path, kind: str) -> Path:
    """What the tiny bundle's engine is made from, on a disk, without one kind."""
    target = disk / "artifacts"
    for step in in_order(tiny.bundle.engine):
        if step.kind != kind:
            shutil.copytree(tiny.store.path(step.kind, step.key), target / step.kind / step.key)
    return target


@pytest.mark.long
@pytest.mark.triton
@fault(
    "the server is killed (-9)",
    seen="`control serve` ends with an error and the server's last lines; clients get Unreachable",
    kept="the repository; started again it gives the same scores",
)
def test_the_server_is_killed(tiny_repository: Path) -> None:
    process, url = serving(tiny_repository)
    before = scores(url)
    server = next(
        pid for pid, line in children(process.pid).items() if "--model-repository" in line
    )
    os.kill(server, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == ServerError.exit_code
    assert "tritonserver ended with status -9" in said
    with pytest.raises(Unreachable), RankClient(url, timeout_s=1) as client:
        client.score("nurse", JOBS)
    with Server(tiny_repository, ANY_PORTS) as again:
        assert scores(again.url) == before


@pytest.mark.long
@pytest.mark.triton
@pytest.mark.parametrize("model", ["prepare", "ranker"])
@fault(
    "the process of a stage is killed (-9), as the kernel does when memory ends",
    seen="`control serve` ends and names the stage (Triton alone would go on and fail every "
    "request); clients get Unreachable",
    kept="the repository; started again it gives the same scores; other replicas take the calls",
)
def test_a_stage_is_killed(tiny_repository: Path, tiny_server: Server, model: str) -> None:
    process, url = serving(tiny_repository)
    stage = next(pid for pid, line in children(process.pid).items() if f"/{model}/1/" in line)
    os.kill(stage, signal.SIGKILL)
    assert scores(f"{url},{tiny_server.url}") == scores(tiny_server.url)
    _, said = process.communicate(timeout=60)
    assert process.returncode == ServerError.exit_code
    assert f"the process of stage '{model}' ended" in said
    with pytest.raises(Unreachable), RankClient(url, timeout_s=1) as client:
        client.score("nurse", JOBS)


@pytest.mark.long
@pytest.mark.triton
@fault(
    "`control serve` is killed (-9)",
    seen="clients get Unreachable at once",
    kept="ports are free again: the server ends with it",
)
def test_the_driver_is_killed(tiny_repository: Path) -> None:
    process, url = serving(tiny_repository)
    below = list(children(process.pid))
    assert below
    process.kill()
    process.communicate()
    until(lambda: not listens(url))
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


@pytest.mark.long
@fault(
    "a verb is killed (-9) in its middle, at five random moments",
    seen="nothing; the same command goes on from what was finished",
    kept="every finished artifact; nothing half-made counts as one",
)
def test_a_verb_is_killed_at_random_moments(
    tiny: TinyBundle, tiny_repository: Path, tmp_path: Path, control: Control
) -> None:
    artifacts = tmp_path / "artifacts"
    store = ArtifactStore(artifacts)
    command = [sys.executable, "-m", "slmrank.cli.main", "repo", str(tiny.spec), "--artifacts"]
    rng = random.Random(7)
    finished: dict[str, str] = {}
    for _ in range(5):
        with subprocess.Popen([*command, str(artifacts)], stderr=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(1, 9))
            process.kill()
        made = [
            one
            for kind in ("data", "base", "summaries", "finetuned", "pruned", "engine")
            for one in store.all(kind)
        ]
        now = {one.key: one.manifest["created"] for one in made}
        assert {key: now.get(key) for key in finished} == finished, (
            "something was lost, or made again"
        )
        finished = now
    done = control(*command[3:], artifacts, "--json")
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)["path"]).name == tiny_repository.name


@fault(
    "the disk is full while summaries are written",
    seen="an error that names the disk; exit code not 0",
    kept="what was made before; with room the same command goes on",
)
def test_a_full_disk_for_summaries(
    tiny: TinyBundle, tiny_repository: Path, small_disk: Path, control: Control
) -> None:
    _full_disk(tiny, small_disk, control, "summarize", "summaries", spare=4_096)


@pytest.mark.long
@fault(
    "the disk is full while an engine is built",
    seen="an error that names the disk; exit code not 0",
    kept="what was made before; with room the same command goes on",
)
def test_a_full_disk_for_an_engine(
    tiny: TinyBundle, tiny_repository: Path, small_disk: Path, control: Control
) -> None:
    _full_disk(tiny, small_disk, control, "build", "engine", spare=200_000)


def _full_disk(
    tiny: TinyBundle, disk: Path, control: Control, verb: str, kind: str, spare: int
) -> None:
    artifacts = without(tiny, disk, kind)
    filler = fill(disk, spare)
    command = (verb, tiny.spec, "--artifacts", artifacts)
    done = control(*command)
    assert done.returncode not in (0, None)
    assert re.search(r"[Nn]o space left|disk", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert ArtifactStore(artifacts).all(kind) == []
    filler.unlink()
    assert control(*command).returncode == 0
    assert len(ArtifactStore(artifacts).all(kind)) == 1


@fault(
    "the disk is full while a measured point is kept",
    seen="an error; exit code not 0",
    kept="the points before it; the sweep goes on from there",
)
def test_a_full_disk_for_a_point(small_disk: Path) -> None:
    store = ArtifactStore(small_disk)
    with store.create("point", "before", {}) as draft:
        draft.figures["items_per_s"] = 5.0
    filler = fill(small_disk, 0)
    with pytest.raises(OSError, match="No space left"), store.create("point", "after", {}) as draft:
        (draft.path / "raw.json").write_bytes(b"x" * 10_000)
    assert [one.key for one in store.all("point")] == ["before"]
    filler.unlink()
    with store.create("point", "after", {}):
        pass
    assert {one.key for one in store.all("point")} == {"before", "after"}


@fault(
    "the disk is full while the sweep's record is written",
    seen="an error; exit code not 0",
    kept="the record of before, whole; its points, from which it is written again",
)
def test_a_full_disk_for_a_record(tiny_repository: Path, small_disk: Path) -> None:
    store, identity = ArtifactStore(small_disk), read_identity(tiny_repository)
    subject = Subject(identity=identity, versions={}, tool="")
    write_record(store, subject)
    path = record_path(store.root, identity)
    before = path.read_bytes()
    filler = fill(small_disk, 0)
    with pytest.raises(OSError, match="No space left"):
        write_record(store, subject)
    assert path.read_bytes() == before
    assert read_record(path)["points"] == []
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    filler.unlink()


@fault(
    "the artifacts cannot be written",
    seen="an error that names the file and the cause",
    kept="everything; what is already made is found and used",
)
def test_artifacts_that_are_read_only(
    tiny: TinyBundle, tiny_repository: Path, small_disk: Path, control: Control
) -> None:
    artifacts = without(tiny, small_disk, "engine")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = control("build", tiny.spec, "--artifacts", artifacts)
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr
    assert "Fix:" in done.stderr
    assert "Traceback" not in done.stderr
    found = control("finetune", tiny.spec, "--artifacts", artifacts, "--json")
    assert found.returncode == 0, found.stderr


@pytest.mark.long
@pytest.mark.triton
@fault(
    "the summary store is not there when the server starts",
    seen="the server does not start; the error names the folder",
    kept="nothing is served with other summaries",
)
def test_a_store_that_is_missing(copied: Path) -> None:
    (store,) = copied.glob("prepare/1/*/data.mdb")
    store.unlink()
    with pytest.raises(ServerError, match="no summary store at"):
        Server(copied, ANY_PORTS).start()


@pytest.mark.long
@pytest.mark.triton
@fault(
    "entries of the store are damaged",
    seen="status `bad entry` for these jobs",
    kept="the scores of all other jobs of the request",
)
def test_entries_that_are_damaged(copied: Path, tiny_server: Server) -> None:
    (data,) = copied.glob("prepare/1/*/data.mdb")
    copy = data.parent.with_name("whole")
    shutil.copytree(data.parent, copy)
    environment = lmdb.open(str(copy), max_dbs=4)
    jobs, ids = (environment.open_db(name) for name in (b"jobs", b"ids"))
    broken = {
        b"job-1": b"\x01\x02\x03",
        b"job-3": b"",
        b"job-4": np.array([3, 10**6], "<i4").tobytes(),
        b"job-5": np.array([-4], "<i4").tobytes(),
    }
    with environment.begin(write=True) as writing:
        for job, value in broken.items():
            writing.put(writing.get(job, db=jobs), value, db=ids)
    environment.close()
    shutil.rmtree(data.parent)
    (copy / "lock.mdb").unlink(missing_ok=True)
    copy.rename(data.parent)
    asked = [f"job-{number}" for number in range(7)]
    with Server(copied, ANY_PORTS) as server, RankClient(server.url) as client:
        found = client.score("nurse shift", asked)
    with RankClient(tiny_server.url) as client:
        whole = client.score("nurse shift", asked)
    for item, expected in zip(found, whole, strict=True):
        if item.job_id.encode() in broken:
            assert item.status is Status.BAD_ENTRY
        else:
            assert item.score == pytest.approx(expected.score, abs=1e-4)


@pytest.mark.long
@pytest.mark.triton
@fault(
    "an engine's file was cut",
    seen="the server does not start and shows its own line; `control verify` names the file",
    kept="nothing is served with half of the weights",
)
def test_an_engine_that_was_cut(copied: Path, control: Control) -> None:
    weights = copied / "ranker/1/engine/items.bin"
    whole = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ServerError, match="cannot load the engine"):
        Server(copied, ANY_PORTS).start()
    done = control("verify", copied)
    assert done.returncode != 0
    assert "items.bin" in done.stderr + done.stdout


@pytest.mark.long
@pytest.mark.triton
@fault(
    "the engine was made for another OpenVINO",
    seen="the server does not start; the error names the engine",
    kept="the engine; `control build` makes one for this version",
)
def test_an_engine_of_another_openvino(copied: Path) -> None:
    graph = copied / "ranker/1/engine/items.xml"
    text = graph.read_text()
    graph.unlink()
    graph.write_text(re.sub(r'version="opset\d+"', 'version="opset99"', text))
    with pytest.raises(ServerError, match="cannot load the engine"):
        Server(copied, ANY_PORTS).start()


@fault(
    "the clock jumps",
    seen="nothing, but that changes from JSON lines are ordered by it",
    kept="deadlines, pauses and figures: nothing that waits or measures reads the wall clock",
)
def test_the_clock_jumps() -> None:
    """gRPC turns a deadline into its own steady clock when a call starts; the rest is ours."""
    package = ROOT / "control" / "slmrank"
    found = {
        str(path.relative_to(package)): len(
            re.findall(r"\btime\.time\(|time_ns\(", path.read_text())
        )
        for path in package.rglob("*.py")
    }
    assert {name for name, count in found.items() if count} == WALL_CLOCK
    assert sum("time.monotonic()" in path.read_text() for path in package.rglob("*.py")) > 5


@fault(
    "two commands make the same at once",
    seen="one waits for the other",
    kept="one artifact of each kind, whole",
)
def test_two_writers_at_once(tiny: TinyBundle, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    command = [
        sys.executable,
        "-m",
        "slmrank.cli.main",
        "summarize",
        str(tiny.spec),
        "--artifacts",
        str(artifacts),
        "--json",
    ]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert len({json.loads(out)["path"] for out, _ in told}) == 1
    store = ArtifactStore(artifacts)
    assert [len(store.all(kind)) for kind in ("data", "base", "summarizer", "summaries")] == [
        1,
        1,
        1,
        1,
    ]


@pytest.mark.triton
@fault(
    "clients go away in the middle of their requests",
    seen="nothing",
    kept="the answers of everybody else",
)
def test_clients_that_go_away(tiny_server: Server) -> None:
    before = scores(tiny_server.url)
    jobs = [f"job-{number % 40}" for number in range(900)]
    for _ in range(30):
        channel = grpc.insecure_channel(tiny_server.url)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="rank")
        for tensor in build_inputs("nurse shift", rows_of(jobs)):
            request.inputs.append(tensor._get_tensor())
            request.raw_input_contents.append(tensor._get_content())
        call = stub.ModelInfer.future(request)
        time.sleep(0.005)
        channel.close()
        assert call.done()
    # What they asked for is still being worked on, and a request that is joined with others differs
    # in its last bits.
    until = time.monotonic() + 60
    while scores(tiny_server.url) != before and time.monotonic() < until:
        time.sleep(0.5)
    assert scores(tiny_server.url) == before


@pytest.mark.long
@pytest.mark.triton
@fault(
    "SIGTERM under load",
    seen="what a server has begun to read is answered (with `deferrable_queue_size`: what the engine "
    "has begun), the rest gets Unreachable; exit code 0",
    kept="no half answer; a client with a second replica does not notice",
)
def test_sigterm_under_load(tiny_repository: Path) -> None:
    process, url = serving(tiny_repository)
    flood(url, 1)
    from concurrent.futures import ThreadPoolExecutor

    texts = [Job(job_id=str(n), title="Nurse", description="Care. " * 300) for n in range(100)]
    with ThreadPoolExecutor(2) as pool, RankClient(url, timeout_s=60) as client:
        # Still in the first stage, which Triton lets nobody leave once it stops.
        long = pool.submit(client.score, "nurse", texts)
        time.sleep(0.1)
        asked = pool.submit(flood, url, 6)
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        assert len(long.result()) == len(texts)
        ended = [text for _, text in asked.result()]
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(ended) == 6
    assert all(
        text == "ok" or "UNAVAILABLE" in text or "available versions" in text for text in ended
    ), ended


elsewhere(
    "tests/load/test_sweep.py::test_a_grid_survives_kill_9_of_tool_and_driver",
    "perf_analyzer is killed (-9) in a sweep, then the sweep itself",
    seen="the tool is started once more; the same command goes on",
    kept="every measured point; none is measured twice",
)
elsewhere(
    "tests/load/test_sweep.py::test_a_server_that_dies_ends_the_sweep_without_a_number",
    "the server dies in a sweep",
    seen="an error, exit code 10",
    kept="the points before it; no number is made up",
)
elsewhere(
    "tests/serving/test_server.py::test_a_summary_store_of_another_tokenizer_is_refused",
    "the store was written for another tokenizer",
    seen="the server does not start; both tokenizers are named",
    kept="nothing is scored with wrong ids",
)
elsewhere(
    "tests/serving/test_server.py::test_a_taken_port_is_named",
    "a port is taken",
    seen="an error that names the port and its flag",
    kept="whoever has it is not disturbed",
)
elsewhere(
    "tests/client/test_replica_set.py::test_a_name_that_moves_is_followed",
    "the name of the replicas gets other addresses",
    seen="nothing",
    kept="calls in flight to the old ones; new calls go to the new ones within 5 s",
)
elsewhere(
    "tests/client/test_replicas.py::test_a_hung_replica_costs_no_more_than_the_hedge_delay",
    "a replica hangs (SIGSTOP)",
    seen="calls that it had take the hedge delay longer",
    kept="every call",
)
elsewhere(
    "tests/serving/test_fuzz.py::test_grpc_answers_every_broken_request",
    "requests whose bytes, shapes or texts are broken",
    seen="an error for the request, or a status for the item",
    kept="the server, and the scores of good items and of good requests beside them",
)

elsewhere(
    "tests/serving/test_shared_store.py::test_a_store_that_is_killed_and_comes_back",
    "the shared store is killed (-9) under load and comes back",
    seen="status `store unavailable`; scores again within 2 s of its return",
    kept="every score is right or there is none; jobs sent by their fields are scored",
)
elsewhere(
    "tests/serving/test_shared_store.py::test_every_request_sees_one_version",
    "catalogues are published again and again under load",
    seen="nothing",
    kept="each request's jobs are all of one catalogue",
)
elsewhere(
    "tests/store/test_redis_store.py::test_one_that_is_late_costs_the_deadline_and_no_more",
    "the shared store hangs (SIGSTOP)",
    seen="status `store unavailable` after the deadline, then at once",
    kept="the time of other requests",
)
elsewhere(
    "tests/serving/test_shared_store.py::test_a_job_that_cannot_be_summarised_stops_nothing",
    "a message of changed jobs cannot be applied",
    seen="it stands with its reason among the rejected",
    kept="every message behind it",
)


def rendered() -> str:
    lines = [
        "# What goes wrong, and what is not lost",
        "",
        "Made from the table in `tests/test_faults.py`; each row is a test on the real parts.",
        "",
        "| | what happens | what you see | what is not lost | test |",
        "|---|---|---|---|---|",
    ]
    for number, row in enumerate(TABLE, start=1):
        file, _, name = row.test.partition("::")
        lines.append(f"| {number} | {row.fault} | {row.seen} | {row.kept} | `{name}` in `{file}` |")
    return "\n".join([*lines, ""])


def test_the_page_is_the_table() -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(rendered())
    assert len(TABLE) >= 24
    assert PAGE.read_text() == rendered()
    for row in TABLE:
        file, _, name = row.test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), row.test
