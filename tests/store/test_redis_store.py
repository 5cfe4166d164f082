"""The shared store on a real server: versions, grace, changes, and every way to be unavailable."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from slmrank.errors import SpecError, StoreUnavailable
from slmrank.spec.repository import CacheSpec
from slmrank.store.changes import order_of
from slmrank.store.job_store import STORE_PASSWORD, Entry, JobStore, entries_of
from slmrank.store.redis_address import RedisAddress, parse_address
from slmrank.store.redis_reader import RedisReader
from slmrank.store.redis_scores import check_place
from slmrank.store.redis_stream import StreamSource
from slmrank.store.redis_writer import RedisWriter
from slmrank.store.registry import embedded_url, open_store, open_writer

from tests.redis_server import RedisServer

IDENTITY = {"tokenizer_hash": "t", "kind": "lead", "budget_tokens": 40}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    yield running
    running.kill()


numbers = itertools.count()


@pytest.fixture
def url(server: RedisServer) -> str:
    """A catalogue of its own per test."""
    return server.url(catalogue=f"jobs-{next(numbers)}", grace_s=1, memory_s=0)


@pytest.fixture
def made(tmp_path: Path) -> Callable[[Mapping[str, list[int]]], JobStore]:
    """An embedded store with these ids."""

    def make(jobs: Mapping[str, list[int]]) -> JobStore:
        store = open_store("lmdb:", tmp_path / str(next(numbers)), write=True)
        entries = {
            job_id: (
                job_id,
                Entry(
                    summary="s",
                    ids=np.array(ids, dtype=np.int32),
                    summary_tokens=1,
                    source_tokens=1,
                ),
            )
            for job_id, ids in jobs.items()
        }
        store.put(entries)
        return store

    return make


def reader_of(url: str, identity: dict[str, Any] = IDENTITY) -> RedisReader:
    return RedisReader(url, identity)


def writer_of(url: str, identity: dict[str, Any] = IDENTITY) -> RedisWriter:
    return RedisWriter(parse_address(url), identity)


def looked_up(reader: RedisReader, *job_ids: str) -> list[list[int] | None]:
    return [None if ids is None else ids.tolist() for ids in reader.ids_many(job_ids)]


def test_what_is_published_is_read(url: str, made: Any) -> None:
    reader, writer = reader_of(url), writer_of(url)
    jobs = {f"job-{n}": [n, 70_000, n] for n in range(2500)} | {"\u00e4/2": [5]}
    done: list[int] = []
    published = writer.publish(entries_of(made(jobs)), "first", done.append)
    assert (published.jobs, published.before, published.carried) == (2501, None, 0)
    assert done == [1000, 2000, 2501]
    assert looked_up(reader, "job-7", "gone", "\u00e4/2", "", "x" * 600, "\ud800") == [
        [7, 70_000, 7],
        None,
        [5],
        None,
        None,
        None,
    ]
    assert reader.identity() == IDENTITY


def test_an_id_that_comes_twice_is_one_job(url: str) -> None:
    batches = [[("a", np.array([1])), ("b", np.array([2]))], [("a", np.array([3]))]]
    published = writer_of(url).publish(batches, "v")
    assert (published.jobs, published.repeated) == (2, 1)
    assert looked_up(reader_of(url), "a", "b") == [[3], [2]]


def test_a_switch_is_seen_by_the_next_request_and_the_old_version_goes(url: str, made: Any) -> None:
    reader, writer = reader_of(url), writer_of(url)
    first = writer.publish(entries_of(made({"a": [1]})), "v")
    assert looked_up(reader, "a") == [[1]]
    second = writer.publish(entries_of(made({"a": [2]})), "v")
    assert second.before == first.version != second.version
    assert looked_up(reader, "a") == [[2]]
    keys = writer._keys
    assert writer.client.exists(keys.version(first.version))
    time.sleep(1.2)
    assert not writer.client.exists(keys.version(first.version))
    assert writer.client.ttl(keys.version(second.version)) == -1


def test_each_request_sees_one_version_while_they_change(server: RedisServer, made: Any) -> None:
    url = server.url(catalogue="switching", memory_s=0.01, grace_s=60, deadline_ms=5000)
    jobs = [f"job-{n}" for n in range(40)]
    versions = [made({job: [version] for job in jobs}) for version in range(4)]
    writer = writer_of(url)
    writer.publish(entries_of(versions[0]), "v")
    ended = threading.Event()

    def switch() -> None:
        for version in itertools.chain.from_iterable(itertools.repeat((1, 2, 3, 0), 10)):
            writer.publish(entries_of(versions[version]), "v")
        ended.set()

    switching = threading.Thread(target=switch)
    switching.start()
    seen, asked = set(), 0
    reader = reader_of(url)
    while not ended.is_set():
        # Some are remembered, the others are not.
        reader.ids_many(jobs[asked % 30 : asked % 30 + 10])
        answer = {tuple(ids) for ids in looked_up(reader, *jobs)}  # type: ignore[arg-type]
        assert len(answer) == 1, answer
        seen |= answer
        asked += 1
    switching.join()
    assert len(seen) == 4
    assert asked > 20
    assert reader.traffic().from_memory > 0


def test_other_tokenizers_and_summarizers_are_never_read(url: str, made: Any) -> None:
    other = {**IDENTITY, "tokenizer_hash": "another"}
    writer_of(url, other).publish(entries_of(made({"a": [1]})), "v")
    reader = reader_of(url)
    with pytest.raises(StoreUnavailable, match="nothing is published for catalogue"):
        looked_up(reader, "a")
    time.sleep(0.3)
    assert writer_of(url).publish(entries_of(made({"a": [2]})), "v", drop_others=True).others == 1
    assert looked_up(reader, "a") == [[2]]
    old = reader_of(url, other)
    assert looked_up(old, "a") == [[1]]
    time.sleep(1.2)
    with pytest.raises(StoreUnavailable):
        looked_up(old, "a")


def test_what_comes_back_within_the_grace_keeps_its_changes(url: str, made: Any) -> None:
    """An older message was applied again, and a deleted job served."""
    other = {**IDENTITY, "tokenizer_hash": "another"}
    ids = np.array([9], dtype=np.int32)
    writer = writer_of(url)
    writer.publish(entries_of(made({"a": [1], "b": [2]})), "v")
    assert writer.change([("a", order_of(5), None)]) == [True]
    writer_of(url, other).publish(entries_of(made({"a": [1]})), "v", drop_others=True)
    assert writer.publish(entries_of(made({"a": [1], "b": [2]})), "v").carried == 1
    time.sleep(1.2)
    assert writer.change([("a", order_of(4), ids)]) == [False]
    assert looked_up(reader_of(url), "a", "b") == [None, [2]]


def test_changes_of_single_jobs(url: str, made: Any) -> None:
    reader, writer = reader_of(url), writer_of(url)
    ids = np.array([9], dtype=np.int32)
    with pytest.raises(StoreUnavailable, match="nothing is published") as caught:
        writer.change([("a", order_of(1), ids)])
    assert (caught.value.exit_code, caught.value.hint) == (5, "run `control publish` first")
    writer.publish(entries_of(made({"a": [1], "b": [2], "c": [3]})), "v")
    at = [order_of(5, number) for number in range(20)]
    assert (
        writer.change([("a", at[3], ids), ("b", at[4], None), ("new", at[11], ids)]) == [True] * 3
    )
    assert looked_up(reader, "a", "b", "c", "new") == [[9], None, [3], [9]]
    # Once more, and an older one after a newer one: nothing changes.
    assert writer.change([("a", at[3], ids), ("b", at[2], ids)]) == [False, False]
    assert looked_up(reader, "a", "b") == [[9], None]
    # A catalogue that holds the first of them, and not the other two.
    again = writer.publish(entries_of(made({"a": [1], "b": [2]})), "v", as_of=at[3])
    assert again.carried == 2
    assert looked_up(reader, "a", "b", "new") == [[1], None, [9]]
    assert writer.publish(entries_of(made({"a": [1]})), "v", as_of=order_of(6)).carried == 0
    assert looked_up(reader, "a", "new") == [[1], None]
    # What the catalogue holds changes nothing when it comes again; what is newer does.
    assert writer.change([("a", at[3], ids), ("new", at[11], ids)]) == [False, False]
    assert writer.change([("a", order_of(7), ids)]) == [True]
    assert looked_up(reader, "a", "new") == [[9], None]
    # Without a moment the catalogue holds nobody's changes.
    assert writer.publish(entries_of(made({"a": [1]})), "v").carried == 1
    assert writer.change([("new", at[11], ids)]) == [True]
    assert looked_up(reader, "a", "new") == [[9], [9]]


def test_it_is_down_and_comes_back(tmp_path: Path, made: Any) -> None:
    own = RedisServer(tmp_path / "own")
    url = own.url(memory_s=0, retry_ms=100)
    reader = reader_of(url)
    writer_of(url).publish(entries_of(made({"a": [1]})), "v")
    assert looked_up(reader, "a") == [[1]]
    own.kill()
    with pytest.raises(StoreUnavailable):
        looked_up(reader, "a")
    started = time.perf_counter()
    with pytest.raises(StoreUnavailable):
        looked_up(reader, "a")  # not asked again so soon
    assert time.perf_counter() - started < 0.05
    assert not reader.traffic().up
    own.start()
    time.sleep(0.15)
    assert looked_up(reader, "a") == [[1]]
    assert reader.traffic().up
    own.kill()


def test_one_that_is_late_costs_the_deadline_and_no_more(tmp_path: Path, made: Any) -> None:
    own = RedisServer(tmp_path / "own")
    url = own.url(memory_s=0, deadline_ms=80, retry_ms=1000)
    reader = reader_of(url)
    writer_of(url).publish(entries_of(made({"a": [1]})), "v")
    looked_up(reader, "a")
    own.pause()
    try:
        started = time.perf_counter()
        with pytest.raises(StoreUnavailable, match="Timeout"):
            looked_up(reader, "a")
        assert 0.07 < time.perf_counter() - started < 1
    finally:
        own.go_on()
        own.kill()


def test_a_version_that_was_evicted_is_not_a_catalogue_without_jobs(url: str, made: Any) -> None:
    reader, writer = reader_of(url), writer_of(url)
    version = writer.publish(entries_of(made({"a": [1]})), "v").version
    assert looked_up(reader, "a") == [[1]]
    writer.client.delete(writer._keys.version(version))
    with pytest.raises(StoreUnavailable, match="is gone"):
        looked_up(reader, "a")


def test_a_version_that_lost_jobs_while_it_was_written_does_not_become_current(
    url: str, made: Any
) -> None:
    reader, writer = reader_of(url), writer_of(url)
    writer.publish(entries_of(made({"a": [1]})), "v")
    ids = np.array([2], dtype=np.int32)

    def batches() -> Iterator[list[tuple[str, Any]]]:
        yield [("a", ids), ("b", ids)]
        (half,) = writer.client.keys(writer._keys.version("half*"))
        writer.client.delete(half)
        yield [("c", ids)]

    with pytest.raises(StoreUnavailable, match="lost jobs while they were published"):
        writer.publish(batches(), "half")
    assert looked_up(reader, "a", "c") == [[1], None]


def test_what_is_published_after_an_eviction_keeps_its_jobs(url: str, made: Any) -> None:
    """Jobs that had been changed in the evicted version were taken for deleted ones."""
    reader, writer = reader_of(url), writer_of(url)
    version = writer.publish(entries_of(made({"a": [1], "b": [2]})), "v").version
    ids = np.array([9], dtype=np.int32)
    assert writer.change([("a", order_of(5), ids)]) == [True]
    writer.client.delete(writer._keys.version(version))
    assert writer.publish(entries_of(made({"a": [1], "b": [2]})), "v").carried == 0
    assert looked_up(reader, "a", "b") == [[1], [2]]
    # The change is lost with it, and comes again.
    assert writer.change([("a", order_of(5), ids)]) == [True]


def test_a_change_waits_where_the_catalogue_is_gone_and_comes_again(url: str, made: Any) -> None:
    """It was told as applied, into a version that nobody reads, and the next publication lost
    it."""
    reader, writer = reader_of(url), writer_of(url)

    def publish() -> str:
        return writer.publish(entries_of(made({"a": [1], "b": [2]})), "v").version

    version = publish()
    gone, new = ("a", order_of(5), None), ("b", order_of(6), np.array([9], np.int32))
    writer.client.delete(writer._keys.version(version))
    with pytest.raises(StoreUnavailable):
        writer.change([gone, new])
    assert not writer.client.exists(writer._keys.version(version))
    publish()
    assert writer.change([gone, new]) == [True, True]
    # Where what names the current version is gone, what was changed must be taken again.
    writer.client.delete(writer._keys.current)
    with pytest.raises(StoreUnavailable):
        writer.change([gone])
    publish()
    assert writer.change([gone]) == [True]
    assert looked_up(reader, "a") == [None]


def test_a_publication_that_fails_leaves_no_half_of_it(url: str, made: Any) -> None:
    """It took the memory that single changes need, for a day."""
    writer = writer_of(url)
    current = writer.publish(entries_of(made({"a": [1]})), "v").version

    def broken() -> Iterator[list[tuple[str, Any]]]:
        yield [("b", np.array([2], dtype=np.int32))]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.publish(broken(), "half")
    left = [key.decode() for key in writer.client.keys(writer._keys.version("*"))]
    assert left == [writer._keys.version(current)]


def test_what_fails_after_the_switch_does_not_deny_it(
    url: str, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = reader_of(url), writer_of(url)
    writer.publish(entries_of(made({"a": [1]})), "v")

    def late(*_: Any, **__: Any) -> Any:
        raise redis.exceptions.TimeoutError("Timeout reading from socket")

    with monkeypatch.context() as patched:
        patched.setattr(writer, "_others", late)
        with pytest.raises(StoreUnavailable, match="is current, but other ones"):
            writer.publish(entries_of(made({"a": [2]})), "v")
    assert looked_up(reader, "a") == [[2]]
    switch = writer._switch

    def switched(*arguments: Any) -> Any:
        switch(*arguments)
        late()

    with monkeypatch.context() as patched:
        patched.setattr(writer, "_switch", switched)
        with pytest.raises(StoreUnavailable, match="is current in .*, whose answer was lost"):
            writer.publish(entries_of(made({"a": [3]})), "v")
        patched.setattr(writer.client, "eval", late)
        with pytest.raises(StoreUnavailable, match="may or may not be current"):
            writer.publish(entries_of(made({"a": [4]})), "v")
    assert looked_up(reader, "a") == [[4]]
    assert writer.client.hkeys(writer._keys.identities) == [writer.namespace.encode()]


def test_a_damaged_entry_is_empty(url: str, made: Any) -> None:
    reader, writer = reader_of(url), writer_of(url)
    version = writer.publish(entries_of(made({"a": [1], "b": [2]})), "v").version
    writer.client.hset(writer._keys.version(version), "a", b"\xff\xff")
    assert looked_up(reader, "a", "b") == [[], [2]]


class Name:
    """A name that leads to one port and then to another; what is connected stays."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.own = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            caller, _ = self._listening.accept()
            server = socket.create_connection(("127.0.0.1", self.port))
            for one, other in ((caller, server), (server, caller)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while some := one.recv(65536):
                other.sendall(some)
        other.close()


def test_a_failover_is_followed_by_who_was_connected(tmp_path: Path, made: Any) -> None:
    """The primary of before goes on as replica, with its connections: nothing was written until the
    process was started again."""
    first, second = RedisServer(tmp_path / "a"), RedisServer(tmp_path / "b")
    try:
        name = Name(first.port)
        url = f"redis://127.0.0.1:{name.own}/0?memory_s=0"
        writer = writer_of(url)
        writer.publish(entries_of(made({"a": [1]})), "v")
        redis.Redis(port=second.port).replicaof("127.0.0.1", str(first.port))
        until = time.monotonic() + 30
        while redis.Redis(port=second.port).dbsize() < redis.Redis(port=first.port).dbsize():
            assert time.monotonic() < until
            time.sleep(0.1)
        redis.Redis(port=second.port).replicaof("no", "one")
        redis.Redis(port=first.port).replicaof("127.0.0.1", str(second.port))
        name.port = second.port
        told = []
        while not told:
            with contextlib.suppress(StoreUnavailable):  # once, of a script that the new one lacks
                told = writer.change([("a", order_of(5), None)])
            assert time.monotonic() < until
        assert told == [True]
    finally:
        first.kill()
        second.kill()


def test_a_password_comes_from_the_environment(
    tmp_path: Path, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = RedisServer(tmp_path / "own")
    own.kill()
    own.start("--requirepass", "secret")
    with pytest.raises(StoreUnavailable, match="Authentication required"):
        writer_of(own.url()).publish(entries_of(made({"a": [1]})), "v")
    monkeypatch.setenv(STORE_PASSWORD, "secret")
    writer_of(own.url()).publish(entries_of(made({"a": [1]})), "v")
    assert looked_up(reader_of(own.url()), "a") == [[1]]
    own.kill()


def test_a_stream_whose_server_came_back_empty_is_followed_again(tmp_path: Path) -> None:
    own = RedisServer(tmp_path / "own")
    source = StreamSource(parse_address(own.url()), "changes", "own")
    assert source.take(9, 0.05) == []
    source._client.flushall()
    assert source.lag() is None
    assert source.take(9, 0.05) == []
    source._client.xadd("changes", {"change": "after"})
    assert [one.raw for one in source.take(9, 0.05)] == [b"after"]
    source._client.xgroup_destroy("changes", "own")
    assert source.lag() is None
    own.kill()


def test_a_stream_is_taken_at_least_once(server: RedisServer, url: str) -> None:
    address = parse_address(url)
    source = StreamSource(address, "changes-of-this-test", "own")
    client = source._client
    for number in range(3):
        client.xadd("changes-of-this-test", {"change": str(number)})
    assert source.lag() == 3
    taken = source.take(2, 0.1)
    assert [one.raw for one in taken] == [b"0", b"1"]
    source.done(taken[:1])
    assert source.lag() == 2
    assert [one.raw for one in source.take(9, 0.1)] == [b"2"]
    assert source.take(9, 0.05) == []
    # Another one takes over what was taken and not finished.
    other = StreamSource(address, "changes-of-this-test", "own")
    client.xclaim("changes-of-this-test", "own", "gone", 0, [taken[1].token], idle=60_000)
    assert [one.raw for one in other.take(9, 0.1)] == [b"1"]
    other.reject(taken[1], "no job")
    ((_, letter),) = client.xrange(other.dead_letters)
    assert letter == {b"id": taken[1].token.encode(), b"reason": b"no job", b"change": b"1"}
    # What summarises in another way reads everything as well.
    another = StreamSource(address, "changes-of-this-test", "another")
    assert [one.raw for one in another.take(9, 0.1)] == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis:", "host"),
        ("redis://h:x/0", "[Pp]ort"),
        ("redis://h/0?deadline_ms=0", "deadline_ms"),
        ("redis://h/0?catalog=jobs", "catalog"),
        ("redis://h/zero", "db"),
        ("redis://h/0?catalogue=a:b", "catalogue"),
        ("redis://[::1:6379/0", "IPv6"),
        ("redis://h/0?host=other", "host stands before"),
        ("redis://h/0?username=u&password=secret", "username"),
    ],
)
def test_urls_that_are_none(url: str, text: str) -> None:
    with pytest.raises(SpecError, match=text) as caught:
        parse_address(url)
    assert "redis://HOST:6379/0" in caught.value.hint
    assert "secret" not in str(caught.value)
    with pytest.raises(SpecError, match=f"repository.cache.place.*{text}"):
        check_place(CacheSpec.model_construct(place=url))


def test_no_password_in_a_spec() -> None:
    with pytest.raises(SpecError, match="user or a password") as caught:
        parse_address("redis://me:secret@h/0")
    assert "secret" not in str(caught.value)
    assert STORE_PASSWORD in caught.value.hint


def test_addresses() -> None:
    assert parse_address("rediss://h:7000/3?memory_s=0.5&catalogue=nl") == RedisAddress(
        scheme="rediss", host="h", port=7000, db=3, catalogue="nl", memory_s=0.5
    )
    assert embedded_url("redis://h/0") == "lmdb:"
    with pytest.raises(SpecError, match="lies inside each bundle"):
        open_writer("lmdb:", {})
    with closing(open_writer("redis://h/0", {})):
        pass
