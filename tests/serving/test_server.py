"""The real tritonserver: ready, scoring like the reference, and clear when it cannot start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from slmrank.artifacts import ArtifactStore
from slmrank.client.asked import ItemText
from slmrank.client.client import RankClient
from slmrank.client.request import build_inputs, rows_of
from slmrank.data.labelled import read_labelled
from slmrank.data.records import Job
from slmrank.errors import (
    InvalidQuery,
    MissingDependencyError,
    Overloaded,
    ServerError,
    Unreachable,
)
from slmrank.model.reference import ReferenceScorer
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.stages.inputs import checkpoint_of
from slmrank.pipeline.steps import run
from slmrank.prompt.corpus import stored_bodies
from slmrank.repository.generate import check_repository
from slmrank.serving.locate import locate_tritonserver
from slmrank.serving.ports import in_url, numeric
from slmrank.serving.server import ANY_PORTS, Ports, Server, claim_port, fault_lines
from slmrank.spec.reading import change_spec, load_spec
from slmrank.store.registry import open_store
from slmrank.triton.config import print_config
from slmrank.triton.status import Status
from tritonclient import grpc as triton

from tests.conftest import TinyBundle, write_own_data

pytestmark = pytest.mark.triton
FREE = ANY_PORTS


def test_served_scores_equal_the_reference(tiny: TinyBundle, tiny_server: Server) -> None:
    bundle, store = tiny.bundle, tiny.store
    checkpoint = checkpoint_of(run(bundle.final, store))
    labelled = read_labelled(run(bundle.data, store).path)
    encoder = checkpoint.encoder()
    ids = list(labelled.jobs)[:20]
    with closing(open_store("lmdb:", run(bundle.summaries, store).path)) as summaries:
        items = [encoder.item(body).ids for body in stored_bodies(summaries, ids)]
    prefix = encoder.prefix("nurse shift 3")
    expected = ReferenceScorer(checkpoint).probabilities(
        [np.concatenate([prefix, item]) for item in items]
    )
    with RankClient(tiny_server.url) as client:
        served = client.score("nurse shift 3", ids)
        alone = [client.score("nurse shift 3", [job])[0].score for job in ids[:5]]
    found = np.array([one.score for one in served])
    assert [one.job_id for one in served] == ids
    assert np.abs(found - expected).max() < 1e-3
    assert np.abs(found[:5] - alone).max() < 1e-4
    assert found.std() > 0


def test_every_item_gets_its_status(tiny_server: Server) -> None:
    jobs = [
        "job-1",
        "nowhere",
        "",
        ItemText(text="Job: pilot\nFly planes."),
        ItemText(text="word " * 300, job_id="job-1"),
    ]
    with RankClient(tiny_server.url) as client:
        found = client.score("pilot", jobs)
    wanted = [Status.OK, Status.UNKNOWN_JOB, Status.EMPTY, Status.OK, Status.TRUNCATED]
    assert [one.status for one in found] == wanted
    assert [np.isnan(one.score) for one in found] == [False, True, True, False, False]


def test_a_job_by_its_fields_scores_like_the_stored_one_to_the_bit(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """200 jobs over gRPC, in one call and mixed into one listing."""
    write_own_data(tmp_path, jobs=200)
    values = {
        "name": "fields",
        "data": {"source": "jsonl", "jobs": "jobs.jsonl", "pairs": "pairs.jsonl"},
        "base": {"source": str(make_model("llama"))},
        "prompt": {"max_item_tokens": 96},
        "summarize": {"budget_tokens": 40},
        "finetune": {"steps": 1, "queries_per_step": 1, "items_per_query": 4, "warmup_steps": 0},
        "engine": {"parity": {"max_mean_abs_dp": 0.5, "max_abs_dp": 1, "min_pair_order": 0.51}},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(values))
    bundle, store = Bundle(load_spec(tmp_path / "spec.yaml")), ArtifactStore(tmp_path / "a")
    repository = run(bundle.repository, store).path
    jobs = read_labelled(run(bundle.data, store).path).jobs
    assert len(jobs) == 200
    with Server(repository, FREE) as server, RankClient(server.url) as client:
        by_id = client.score("nurse on a night shift", list(jobs))
        by_fields = client.score("nurse on a night shift", list(jobs.values()))
        mixed = client.score(
            "nurse on a night shift",
            [job if place % 2 else job.job_id for place, job in enumerate(jobs.values())],
        )
    scores = [one.score for one in by_id]
    assert len(set(scores)) > 100
    assert [one.score for one in by_fields] == scores
    assert [one.score for one in mixed] == scores
    assert {one.status for one in by_id} == {one.status for one in by_fields} == {Status.OK}


def test_a_terminals_interrupt_does_not_reach_the_server(tiny_server: Server) -> None:
    assert tiny_server.pid is not None
    assert os.getsid(tiny_server.pid) == tiny_server.pid


def test_long_listings_are_split_and_keep_their_order(tiny_server: Server) -> None:
    jobs = [f"job-{n % 40}" for n in range(23)]
    with RankClient(tiny_server.url) as client:
        whole = client.score("cook", jobs)
        client._asking._identity = {"max_items": "5"}
        split = client.score("cook", jobs)
    assert [one.index for one in split] == list(range(23))
    assert np.allclose([a.score for a in whole], [b.score for b in split], atol=1e-4)


@pytest.mark.parametrize(
    ("query", "text"),
    [("", "query is empty"), ("x" * 2**20, "1048576 bytes"), ("a b " * 60, "tokens")],
)
def test_bad_queries_fail_the_call(tiny_server: Server, query: str, text: str) -> None:
    with RankClient(tiny_server.url) as client, pytest.raises(InvalidQuery, match=text):
        client.score(query, ["job-1"])


def test_invalid_utf8_on_the_wire(tiny_server: Server) -> None:
    with triton.InferenceServerClient(tiny_server.url) as client:
        inputs = []
        for name, values in (("query", [b"ok"]), ("job_id", [b"\xff"]), ("job_text", [b"\xc3("])):
            tensor = triton.InferInput(name, [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([values], dtype=np.object_))
            inputs.append(tensor)
        reply = client.infer("rank", inputs)
        assert reply.as_numpy("status").tolist() == [[Status.NOT_UTF8]]
        inputs[0].set_data_from_numpy(np.array([[b"\xff"]], dtype=np.object_))
        with pytest.raises(triton.InferenceServerException, match="query is not UTF-8"):
            client.infer("rank", inputs)


def test_many_requests_at_once_are_answered_alike(tiny_server: Server) -> None:
    with RankClient(tiny_server.url) as client, ThreadPoolExecutor(8) as pool:
        jobs = [[f"job-{n}" for n in range(1 + k % 8)] for k in range(32)]
        answers = list(pool.map(lambda one: client.score("welder", one), jobs))
    for answer in answers:
        for item, first in zip(answer, answers[7], strict=False):
            assert item.score == pytest.approx(first.score, abs=1e-4)


@pytest.mark.parametrize(
    ("column", "text", "count"), [("job_text", "bread " * 34_000, 45), ("job", "x" * 131_000, 9)]
)
def test_a_request_with_too_much_text_is_refused_at_once(
    tiny_server: Server, column: str, text: str, count: int
) -> None:
    inputs = []
    for name, values in (("query", ["nurse"]), ("job_id", [""] * count), (column, [text] * count)):
        inputs.append(triton.InferInput(name, [1, len(values)], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([values], dtype=np.object_))
    started = time.monotonic()
    with (
        triton.InferenceServerClient(tiny_server.url) as client,
        pytest.raises(triton.InferenceServerException, match="bytes of (text|fields), the limit"),
    ):
        client.infer("rank", inputs)
    assert time.monotonic() - started < 2


def test_the_client_sends_long_jobs_in_as_many_requests_as_they_need(tiny_server: Server) -> None:
    jobs = [Job(job_id=f"new-{n}", title="Baker", description="bread " * 8_000) for n in range(45)]
    with RankClient(tiny_server.url) as client:
        answer = client.score("nurse", jobs)
    assert {item.status for item in answer} == {Status.OK}
    assert [part.start for part in answer.parts] == [0, 21, 42]


def test_the_answer_names_what_answers(tiny: TinyBundle, tiny_server: Server) -> None:
    with RankClient(tiny_server.url) as client:
        told = client.describe()
    assert told["engine"] == tiny.bundle.engine.key
    assert (
        told["tokenizer_hash"] == checkpoint_of(run(tiny.bundle.final, tiny.store)).tokenizer_hash
    )
    assert told["max_items"] == "1000"


def test_each_answer_says_who_gave_it_and_where_the_time_went(tiny_server: Server) -> None:
    with RankClient(tiny_server.url) as client:
        told = client.describe()
        answer = client.score("nurse shift", ["job-1", "job-2"])
    (part,) = answer.parts
    assert (part.start, part.items) == (0, 2)
    assert part.served.items() <= told.items()
    assert {"engine", "checkpoint", "summaries", "prompt_hash", "tokenizer_hash"} <= set(
        part.served
    )
    assert 0 < part.prepare_s < part.total_s
    assert 0 < part.ranker_s < part.total_s
    assert part.prepare_s + part.ranker_s < part.total_s


def test_a_repository_without_the_ensemble_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other" / "1").mkdir(parents=True)
    (tmp_path / "other" / "config.pbtxt").write_text('name: "other" backend: "python"')
    with pytest.raises(ServerError, match="has no model 'rank'"):
        Server(tmp_path, FREE).start()


def test_a_taken_port_is_named(tiny_repository: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port}") as caught:
            Server(tiny_repository, Ports(grpc=port, http=0, metrics=0)).start()
    assert "--grpc-port" in caught.value.hint


def broken_copy(repository: Path, target: Path) -> Path:
    shutil.copytree(repository, target)
    return target


@pytest.mark.long
def test_a_model_that_fails_shows_the_servers_own_lines(
    tiny_repository: Path, tmp_path: Path
) -> None:
    repository = broken_copy(tiny_repository, tmp_path / "r")
    (repository / "ranker" / "1" / "engine" / "items.xml").write_text("<broken")
    server = Server(repository, FREE)
    with pytest.raises(ServerError, match="cannot load the engine") as caught:
        server.start()
    assert "ended with status" in str(caught.value)
    assert server.pid is None


def test_a_server_that_dies_while_starting(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "tritonserver"
    script.write_text("#!/bin/sh\necho 'E0101 cannot allocate memory'\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setenv("TRITONSERVER", str(script))
    with pytest.raises(ServerError, match="status 3 while starting") as caught:
        Server(tiny_repository, FREE).start()
    assert "cannot allocate memory" in str(caught.value)


def test_a_server_that_never_gets_ready_is_stopped(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "tritonserver"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setenv("TRITONSERVER", str(script))
    server = Server(tiny_repository, FREE)
    with pytest.raises(ServerError, match="not ready after 1 s"):
        server.start(timeout_s=1)
    assert server.pid is None


@pytest.mark.long
def test_stop_frees_the_port_and_leaves_no_process(tiny_repository: Path) -> None:
    server = Server(tiny_repository, FREE)
    server.start()
    pid, port = server.pid, server.ports.grpc
    assert pid is not None
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert claim_port("127.0.0.1", port, "--grpc-port") == port


@pytest.mark.long
def test_a_summary_store_of_another_tokenizer_is_refused(
    tiny_repository: Path, tmp_path: Path
) -> None:
    repository = broken_copy(tiny_repository, tmp_path / "r")
    with closing(open_store("lmdb:", repository / "prepare" / "1", write=True)) as store:
        store.set_identity({"tokenizer_hash": "another"})
    with pytest.raises(ServerError, match="written for tokenizer another"):
        Server(repository, FREE).start()


def test_a_dead_server_is_reported_in_time(tiny_server: Server) -> None:
    client = RankClient("127.0.0.1:1", timeout_s=1.0)
    started = time.monotonic()
    with pytest.raises(Unreachable, match="no answer from 127.0.0.1:1"):
        client.score("x", ["a"])
    assert time.monotonic() - started < 5


@pytest.mark.long
def test_serve_stops_cleanly_on_sigterm(
    tiny: TinyBundle, tiny_repository: Path, control: Callable[..., Any]
) -> None:
    import subprocess
    import sys

    command = [str(Path(sys.executable).parent / "control"), "serve", str(tiny_repository)]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "rank is ready: gRPC 127.0.0.1:" in line
        url = line.split("gRPC ")[1].split(",")[0]
        with RankClient(url) as client:
            assert client.score("cook", ["job-2"])[0].status is Status.OK
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with pytest.raises(Unreachable, match="no answer"):
        RankClient(url, timeout_s=0.5).describe()


def overloaded(repository: Path, folder: Path, *, size: int, timeout_s: float) -> Path:
    """The repository with other limits of its door."""
    target = folder / "repository"
    shutil.copytree(repository, target)
    for name in ("prepare", "ranker"):
        config = check_repository(target)[name]
        door = json.dumps({"limit_s": timeout_s, "max_waiting": size})
        config.parameters["admission"].string_value = door
        (target / name / "config.pbtxt").write_text(print_config(config))
    return target


def flood(url: str, requests: int) -> list[tuple[float, str]]:
    """(end, answer) of requests with 900 jobs each, sent at once, without repeats."""
    jobs = [
        ItemText(text=f"Job: nurse {number} works with care day and night") for number in range(900)
    ]
    inputs = build_inputs("nurse shift", rows_of(jobs))
    ended: list[tuple[float, str]] = []

    def ask() -> None:
        with triton.InferenceServerClient(url) as client:
            try:
                client.infer("rank", inputs, client_timeout=60)
                ended.append((time.monotonic(), "ok"))
            except triton.InferenceServerException as error:
                ended.append((time.monotonic(), f"{error.status()} {error.message()}"))

    threads = [threading.Thread(target=ask) for _ in range(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(ended)


def overload_of(url: str) -> Overloaded:
    """What a client is told that asks while the queue is full."""
    jobs = [ItemText(text=f"Job: welder {number} by day and night") for number in range(900)]
    for _ in range(20):
        with ThreadPoolExecutor(17) as pool, RankClient(url) as client:
            flooding = pool.submit(flood, url, 16)
            asked = [pool.submit(client.score, "welder", jobs) for _ in range(8)]
            flooding.result()
            faults = [one.exception() for one in asked]
        found = next((one for one in faults if isinstance(one, Overloaded)), None)
        if found is not None:
            return found
    raise AssertionError("the queue never filled")


@pytest.mark.long
def test_a_full_queue_refuses_at_once_with_a_clear_status(
    tiny_repository: Path, tmp_path: Path
) -> None:
    repository = overloaded(tiny_repository, tmp_path, size=2, timeout_s=30)
    with Server(repository, FREE) as server:
        flood(server.url, 1)
        for _ in range(10):
            ended = flood(server.url, 16)
            refused = [text for _, text in ended if text != "ok"]
            if refused:
                break
        assert refused
        assert len(refused) < 16
        assert all("UNAVAILABLE" in one and "2 requests are waiting" in one for one in refused)
        # A refusal does not wait for the work that is done meanwhile.
        assert ended[-1][1] == "ok"
        told = overload_of(server.url)
        assert told.message == f"{server.url} is overloaded and refused the request: " + (
            "2 requests are waiting, the limit is 2"
        )
        assert "add replicas" in told.hint
        # Nothing is left behind: the next request is answered.
        assert flood(server.url, 1)[0][1] == "ok"
        page = Path(f"/dev/shm/slmrank-pace-{os.stat('/proc/self/ns/pid').st_ino}-{server.pid}")
        assert page.is_file()
    assert not page.exists()


@pytest.mark.long
def test_what_would_wait_too_long_is_refused_when_it_comes(
    tiny_repository: Path, tmp_path: Path
) -> None:
    repository = overloaded(tiny_repository, tmp_path, size=64, timeout_s=0.02)
    with Server(repository, FREE) as server:
        flood(server.url, 1)
        # Until a request had to wait: how many do at once is the machine's to say.
        for _ in range(10):
            refused = [text for _, text in flood(server.url, 24) if text != "ok"]
            if refused:
                break
        assert refused
        assert all("UNAVAILABLE" in one and "the objective is 20 ms" in one for one in refused)
        assert flood(server.url, 1)[0][1] == "ok"


@pytest.mark.long
def test_deferrable_requests_wait_for_others_and_are_refused_before_them(tiny: TinyBundle) -> None:
    # One request in each execution: requests that are joined are answered together.
    own = {"max_batch_size": 1, "deferrable_queue_size": 2, "queue_timeout_us": 60_000_000}
    changes = {"repository": own}
    bundle = Bundle(change_spec(tiny.bundle.spec, changes))
    jobs = [ItemText(text=f"Job: nurse {number} works by day and night") for number in range(500)]
    with Server(run(bundle.repository, tiny.store).path, FREE) as server:

        def ask(deferrable: bool) -> float | None:
            with RankClient(server.url, timeout_s=120) as client:
                try:
                    client.score("nurse shift", jobs, deferrable=deferrable)
                except Overloaded:
                    return None
            return time.monotonic()

        started = time.monotonic()
        ask(False)
        alone_s = time.monotonic() - started
        with ThreadPoolExecutor(20) as pool:
            # Six callers without a pause, so that one of the others always waits.
            streams = [pool.submit(lambda: [ask(False) for _ in range(6)]) for _ in range(6)]
            time.sleep(2 * alone_s)
            deferred = [pool.submit(ask, True) for _ in range(14)]
            others = [at for stream in streams for at in stream.result()]
            answered = [one.result() for one in deferred]
    assert None not in others
    assert None in answered
    # Most of the others were asked after these, and answered before them.
    first = min(at for at in answered if at is not None)
    assert sum(at < first for at in others if at is not None) > len(others) / 2


def test_fault_lines_prefer_faults() -> None:
    log = "I1 fine\nE1234 bad thing\nI2 fine\n"
    assert fault_lines(log) == "  | E1234 bad thing"
    assert fault_lines("a\nb\n") == "  | a\n  | b"


def test_a_wrong_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONSERVER", str(tmp_path / "none"))
    with pytest.raises(MissingDependencyError, match="is not an executable file"):
        locate_tritonserver(tmp_path)


def test_addresses_by_number() -> None:
    assert [numeric(one) for one in ("localhost", "0.0.0.0", "::1", "[::1]")] == [
        "127.0.0.1",
        "0.0.0.0",
        "::1",
        "::1",
    ]
    assert [in_url(one) for one in ("127.0.0.1", "::1")] == ["127.0.0.1", "[::1]"]
    with pytest.raises(ServerError, match="is no address"):
        numeric("no such name")


@pytest.mark.long
@pytest.mark.triton
@pytest.mark.parametrize("address", ["localhost", "::1"])
def test_metrics_listen_where_the_server_does(tiny_repository: Path, address: str) -> None:
    """Of a name they listened at 255.255.255.255, and no IPv6 address could be served."""
    with Server(tiny_repository, ANY_PORTS, address=address) as server:
        with RankClient(server.url) as client:
            assert len(client.score("nurse", ["job-1"])) == 1
        place = server.url.rpartition(":")[0]
        with urllib.request.urlopen(f"http://{place}:{server.ports.metrics}/metrics") as reply:
            assert b"nv_inference" in reply.read()
