"""A real server over a shared store on a real redis-server: filled, switched, killed, followed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slmrank.client.client import RankClient
from slmrank.client.known_answers import compare_known
from slmrank.data.labelled import read_labelled
from slmrank.data.records import Job
from slmrank.engine.known_answers import KNOWN_FILE, read_known
from slmrank.errors import MissingDependencyError, RepositoryError, StoreUnavailable
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.follow import follow_bundle
from slmrank.pipeline.publish import publish
from slmrank.pipeline.steps import Watcher, run
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.reading import change_spec
from slmrank.store.changes import order_of
from slmrank.store.job_store import IDENTITY_FILE, entries_of
from slmrank.store.kafka_topic import PROPERTIES
from slmrank.store.redis_address import parse_address
from slmrank.store.redis_stream import StreamSource
from slmrank.store.redis_writer import RedisWriter
from slmrank.store.registry import open_store
from slmrank.triton.status import Status

from tests.kafka_broker import KafkaBroker
from tests.redis_server import RedisServer

pytestmark = pytest.mark.triton
JOBS = [f"job-{number}" for number in range(12)]
STREAM = "slmrank:jobs:changes"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A server, and the store that it reads."""

    redis: RedisServer
    server: Server
    bundle: Bundle
    url: str
    arguments: list[str]

    def writer(self, store: Any) -> RedisWriter:
        identity = run(self.bundle.summaries, store).figures["identity"]
        return RedisWriter(parse_address(self.url), identity)

    def metrics(self) -> str:
        address = f"http://127.0.0.1:{self.server.ports.metrics}/metrics"
        with urllib.request.urlopen(address, timeout=10) as reply:
            return str(reply.read().decode())


@pytest.fixture(scope="module")
def shared(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    redis = RedisServer(tmp_path_factory.mktemp("redis"))
    # A deadline for a machine whose cores are shared; what 50 ms do is tested with the reader.
    url = redis.url(deadline_ms=2000, retry_ms=100, memory_s=0.2)
    bundle = Bundle(change_spec(tiny.bundle.spec, {"summarize": {"store": url}}))
    assert bundle.summaries.key == tiny.bundle.summaries.key
    repository = run(bundle.repository, tiny.store).path
    assert not list(repository.rglob("*.mdb"))
    arguments = [
        str(tiny.spec),
        "--artifacts",
        str(tiny.artifacts),
        "--set",
        f"summarize.store={url}",
    ]
    with Server(repository, ANY_PORTS) as server:
        yield Shared(redis=redis, server=server, bundle=bundle, url=url, arguments=arguments)
    redis.kill()


@pytest.fixture
def filled(shared: Shared, tiny: Any) -> Shared:
    """Published, where no test before has done it."""
    writer = shared.writer(tiny.store)
    if not writer.client.exists(writer._keys.current):
        publish(shared.bundle, tiny.store)
    return shared


def scores(client: RankClient) -> list[float]:
    answer = client.score("nurse shift", JOBS)
    assert [one.status for one in answer] == [Status.OK] * len(JOBS)
    return [one.score for one in answer]


@pytest.mark.long
def test_it_is_filled_while_the_server_runs(
    shared: Shared, tiny_server: Server, control: Any
) -> None:
    with RankClient(shared.server.url) as client, RankClient(tiny_server.url) as embedded:
        before = client.score("nurse shift", [*JOBS, "gone"])
        assert {one.status for one in before} == {Status.STORE_UNAVAILABLE}
        assert all(np.isnan(one.score) for one in before)
        assert 'slmrank_items_total{status="store_unavailable"} 13' in shared.metrics()
        assert "slmrank_store_up 0" in shared.metrics()
        done = control("publish", *shared.arguments, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["jobs"] == 40
        time.sleep(0.2)
        assert scores(client) == scores(embedded)
        assert client.score("nurse", ["gone"])[0].status is Status.UNKNOWN_JOB
    told = shared.metrics()
    assert "slmrank_store_up 1" in told
    assert 'slmrank_store_lookups_total{from="store"} 13' in told
    failures = next(one for one in told.splitlines() if one.startswith("slmrank_store_failures"))
    assert float(failures.split()[-1]) >= 1


def test_an_embedded_store_is_not_published(tiny: Any, control: Any) -> None:
    done = control("publish", tiny.spec, "--artifacts", tiny.artifacts)
    assert done.returncode == 2
    assert "lies inside each bundle" in done.stderr
    assert "redis://HOST:6379/0" in done.stderr


def asked_meanwhile(url: str, act: Callable[[], None]) -> list[tuple[float, list[Any]]]:
    """(end, items) of requests that one client sends while `act` runs."""
    answers: list[tuple[float, list[Any]]] = []
    ended = threading.Event()

    def ask() -> None:
        with RankClient(url) as client:
            while not ended.is_set():
                answers.append((time.monotonic(), list(client.score("nurse shift", JOBS))))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        act()
    finally:
        ended.set()
        asking.join()
    return answers


@pytest.mark.long
@pytest.mark.usefixtures("filled")
def test_every_request_sees_one_version(shared: Shared, tiny: Any, tmp_path: Path) -> None:
    summaries = run(shared.bundle.summaries, tiny.store).path
    writer = shared.writer(tiny.store)
    with closing(open_store("lmdb:", summaries)) as first:
        entries = {job: first.get(job) for job in first.job_ids()}
        second = open_store("lmdb:", tmp_path / "other", write=True)
        # The same jobs with each other's texts: every score is another one.
        names = list(entries)
        moved = dict(zip(names, [entries[name] for name in names[5:] + names[:5]], strict=True))
        second.put({name: (str(place), entry) for place, (name, entry) in enumerate(moved.items())})
        known = []
        for source in (second, first):
            writer.publish(entries_of(source), "v")
            time.sleep(0.25)
            with RankClient(shared.server.url) as client:
                known.append(scores(client))

        def switch() -> None:
            for source in (second, first) * 10:
                writer.publish(entries_of(source), "v")
                time.sleep(0.3)

        answers = asked_meanwhile(shared.server.url, switch)
    assert not np.allclose(*known, atol=1e-3)
    seen = {tuple(round(one.score, 6) for one in items) for _, items in answers}
    assert seen == {tuple(round(one, 6) for one in scores) for scores in known}
    second.close()


@pytest.mark.usefixtures("filled")
def test_a_store_that_is_killed_and_comes_back(shared: Shared) -> None:
    with RankClient(shared.server.url) as client:
        known = scores(client)
    returned = 0.0

    def kill() -> None:
        nonlocal returned
        time.sleep(0.5)
        shared.redis.kill()
        time.sleep(1.5)
        shared.redis.start()
        returned = time.monotonic()
        time.sleep(2.5)

    answers = asked_meanwhile(shared.server.url, kill)
    statuses = [{one.status for one in items} for _, items in answers]
    assert all(len(one) == 1 for one in statuses)
    assert {Status.STORE_UNAVAILABLE} in statuses
    for _, items in answers:
        if items[0].status is Status.OK:
            assert [one.score for one in items] == known
        else:
            assert all(np.isnan(one.score) for one in items)
    late = [items[0].status for ended, items in answers if ended > returned + 2]
    assert late
    assert set(late) == {Status.OK}


@pytest.mark.usefixtures("filled")
def test_changes_reach_the_scores(shared: Shared, tiny: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "control"), "watch", *shared.arguments, "--json"]
    command += ["--metrics-port", str(port)]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    client = shared.writer(tiny.store).client
    jobs = read_labelled(run(shared.bundle.data, tiny.store).path).jobs

    def send(change: Any) -> float:
        raw = change if isinstance(change, str) else json.dumps(change)
        client.xadd(STREAM, {"change": raw})
        return time.monotonic()

    def until(accepted: Callable[[Any], bool]) -> float:
        for _ in range(600):
            (item,) = ranking.score("nurse shift", ["job-1"])
            if accepted(item):
                return time.monotonic()
            time.sleep(0.02)
        raise AssertionError(item)

    changed = jobs["job-1"].model_copy(update={"title": "chief of bakers"})
    with RankClient(shared.server.url) as ranking:
        (before,) = ranking.score("nurse shift", ["job-1"])
        (wanted,) = ranking.score("nurse shift", [replace_id(changed)])
        assert before.score != wanted.score
        send({"job": jobs["job-2"].model_dump()})
        send("{")
        sent = send({"job": changed.model_dump()})
        first = until(lambda item: item.score == wanted.score) - sent  # with the follower's start
        assert first < 60
        sent = send({"delete": "job-1"})
        assert until(lambda item: item.status is Status.UNKNOWN_JOB) - sent < 3
        sent = send({"job": jobs["job-1"].model_dump()})
        assert until(lambda item: item.score == before.score) - sent < 3
    time.sleep(1.1)  # the counters of the last batch
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        told = reply.read().decode()
    assert 'slmrank_watch_changes_total{result="applied"} 4.0' in told
    assert 'slmrank_watch_changes_total{result="rejected"} 1.0' in told
    assert "slmrank_watch_lag 0.0" in told
    assert 'slmrank_watch_delay_seconds_bucket{le="+Inf"} 5.0' in told
    watching.send_signal(signal.SIGTERM)
    out, told = watching.communicate(timeout=30)
    assert watching.returncode == 0, told
    counts = json.loads(out)
    assert (counts["applied"], counts["outdated"], counts["rejected"]) == (4, 0, 1)
    ((_, letter),) = client.xrange(f"{STREAM}.rejected")
    assert letter[b"change"] == b"{"
    assert b"JSON" in letter[b"reason"]


def test_a_follower_says_what_it_waits_for(shared: Shared, tiny: Any) -> None:
    other = replace(
        shared, bundle=Bundle(change_spec(shared.bundle.spec, {"summarize": {"budget_tokens": 24}}))
    )
    follower = follow_bundle(other.bundle, tiny.store, Watcher())
    source = StreamSource(parse_address(shared.url), "not-published", follower.group)
    source._client.xadd("not-published", {"change": json.dumps({"delete": "job-1"})})
    said: list[str] = []

    def told(counts: Any, _: int | None) -> None:
        said.append(counts.failure)
        if len(said) > 2:
            follower.stop()

    with pytest.raises(StoreUnavailable, match="nothing is published"):
        follower.follow(source, told)
    assert "run `control publish` first" in said[0]
    assert source.lag() == 1  # nothing is lost


def replace_id(job: Any) -> Any:
    return job.model_copy(update={"job_id": "sent"})


@pytest.mark.long
@pytest.mark.usefixtures("filled")
def test_changes_as_lines(shared: Shared, tiny: Any, control: Any, tmp_path: Path) -> None:
    lines = tmp_path / "changes.jsonl"
    job = {"job_id": "extra", "title": "pilot", "description": "You fly at night."}
    blank = json.dumps({"job": {"job_id": "job-4", "title": None, "description": " "}})
    given = [json.dumps({"job": job}), '{"job": {}}', "", json.dumps({"delete": "job-3"}), blank]
    lines.write_text("\n".join(given) + "\n")
    done = control("watch", *shared.arguments, "--from", f"jsonl:{lines}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 changes applied, 0 older than what was there, 2 rejected\n"
    letters = (tmp_path / "changes.jsonl.rejected").read_text().splitlines()
    letter, empty = map(json.loads, letters)
    assert (letter["line"], letter["change"]) == (2, '{"job": {}}')
    assert "job_id" in letter["reason"]
    assert (empty["line"], empty["reason"]) == (5, "the job has no text: a server scores none")
    time.sleep(0.3)
    with RankClient(shared.server.url) as client:
        added, gone, kept = client.score("nurse shift", ["extra", "job-3", "job-4"])
    assert (added.status, gone.status) == (Status.OK, Status.UNKNOWN_JOB)
    assert kept.status is Status.OK
    added_back = f"{json.dumps({'job': job})}\n"
    repository = run(shared.bundle.repository, tiny.store).path
    done = control("watch", repository, "--from", "jsonl:-", stdin=added_back)
    assert done.stdout.startswith("1 changes applied"), done.stderr
    future = control("publish", *shared.arguments, "--as-of", "2999-01-01")
    assert (future.returncode, future.stdout) == (2, "")
    assert "lies in the future" in future.stderr
    kept = control("publish", *shared.arguments)
    carried = re.search(r"(\d+) later changes of single jobs were carried over", kept.stdout)
    assert carried is not None
    assert int(carried[1]) >= 2  # these two, and those of tests before
    wrong = control("watch", *shared.arguments, "--from", "kafak")
    assert wrong.returncode == 2
    assert "did you mean 'kafka'" in wrong.stderr


def test_a_repository_of_another_summarizer_is_not_followed(
    shared: Shared, tiny: Any, control: Any, tmp_path: Path
) -> None:
    other = tmp_path / "repository"
    shutil.copytree(run(shared.bundle.repository, tiny.store).path, other)
    path = other / "prepare" / "1" / IDENTITY_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "code": "another"}))
    done = control("watch", other)
    assert done.returncode == RepositoryError.exit_code
    assert "summarises in another way" in done.stderr
    embedded = control("watch", run(tiny.bundle.repository, tiny.store).path)
    assert embedded.returncode == 2
    assert "nothing shares it" in embedded.stderr
    changed = control("watch", other, "--set", "name=x")
    assert "a repository is as it is" in changed.stderr


@pytest.mark.long
@pytest.mark.usefixtures("filled")
def test_changes_of_a_kafka_topic(shared: Shared, control: Any, tmp_path: Path) -> None:
    broker = KafkaBroker()
    job = {"job_id": "by-topic", "title": "pilot", "description": "You fly at night."}
    messages = [
        ("by-topic", json.dumps({"job": {**job, "title": "baker"}}).encode()),
        ("by-topic", json.dumps({"job": job}).encode()),
        ("poison", b"{"),
        ("job-4", None),
    ]
    broker.send("changes", messages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PROPERTIES, str(broker.properties(tmp_path)))
        source = f"kafka://{broker.address}/changes?group=test"
        watch = ("watch", *shared.arguments, "--from", source, "--until-idle")
        done = control(*watch)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "3 changes applied, 0 older than what was there, 1 rejected\n"
        again = control(*watch)
        assert again.stdout.startswith("0 changes applied, 0 older")
    (letter,) = broker.read("changes.rejected")
    assert letter.value() == b"{"
    broker.kill()
    time.sleep(0.3)
    with RankClient(shared.server.url) as client:
        added, gone, alike = client.score("nurse shift", ["by-topic", "job-4", Job(**job)])
    assert gone.status is Status.UNKNOWN_JOB
    assert added.score == alike.score


@pytest.mark.usefixtures("filled")
def test_known_answers_hold_whatever_the_store_holds(shared: Shared, tiny: Any) -> None:
    answers = read_known(run(shared.bundle.repository, tiny.store).path / KNOWN_FILE)
    writer = shared.writer(tiny.store)
    later = order_of(time.time_ns() // 1_000_000)
    assert all(writer.change([(one.job_id, later, None) for one in answers]))
    time.sleep(0.3)
    with RankClient(shared.server.url) as client:
        (gone,) = client.score("nurse", [answers[0].job_id])
        assert gone.status is Status.UNKNOWN_JOB
        assert max(one.gap for one in compare_known(client.score, answers)) < 1e-3


@pytest.mark.usefixtures("filled")
def test_a_job_that_cannot_be_summarised_stops_nothing(
    shared: Shared, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmrank.pipeline import follow as module

    original = module.summarize_entries

    def stumbles(jobs: Any, *rest: Any) -> Any:
        if any(job.title == "poison" for job in jobs):
            raise RuntimeError("cannot read it")
        return original(jobs, *rest)

    monkeypatch.setattr(module, "summarize_entries", stumbles)
    follower = follow_bundle(shared.bundle, tiny.store, Watcher())
    source = StreamSource(parse_address(shared.url), "poisoned", "own")
    client = source._client
    for title in ("cook", "poison", "clerk"):
        job = {"job_id": f"a {title}", "title": title, "description": "Works."}
        client.xadd("poisoned", {"change": json.dumps({"job": job})})
    counts = follower.follow(source, until_idle=True)
    assert (counts.applied, counts.rejected) == (2, 1)
    ((_, letter),) = client.xrange(source.dead_letters)
    assert letter[b"reason"] == b"RuntimeError: cannot read it"
    assert source.lag() == 0

    def lacks(jobs: Any, *rest: Any) -> Any:
        if jobs[0].job_id != "first":
            raise MissingDependencyError("no torch", "install it")
        return original(jobs, *rest)

    # A fault of this process is none of the jobs': they wait for one that can.
    client.xadd("poisoned", {"change": json.dumps({"job": job})})
    monkeypatch.setattr(module, "summarize_entries", lacks)
    with pytest.raises(MissingDependencyError):
        follower.follow(source, until_idle=True)
    assert (source.lag(), client.xlen(source.dead_letters)) == (1, 1)
