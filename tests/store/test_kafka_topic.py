"""A topic as a source of changes: who takes what, what is kept, and what is said when it is away."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slmrank.errors import DataError, SpecError, StoreUnavailable
from slmrank.store.changes import Delivery, order_of, read_change
from slmrank.store.kafka_topic import (
    PROPERTIES,
    KafkaTopic,
    TopicSource,
    parse_topic,
    read_properties,
)
from slmrank.store.sources import Reading, open_source

from tests.kafka_broker import KafkaBroker

READING = Reading(store_url="redis://localhost:6379/0", group="own")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    broker = KafkaBroker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PROPERTIES, str(broker.properties(tmp_path_factory.mktemp("kafka"))))
        yield broker
    broker.kill()


def gone(number: int) -> tuple[str, bytes]:
    job_id = f"job-{number}"
    return job_id, json.dumps({"delete": job_id}).encode()


def source_of(broker: KafkaBroker, topic: str) -> contextlib.closing[TopicSource]:
    return contextlib.closing(
        TopicSource(parse_topic(f"//{broker.address}/{topic}", f"of-{topic}"))
    )


def take_all(source: TopicSource, most: int = 64) -> list[Delivery]:
    taken: list[Delivery] = []
    until = time.monotonic() + 60
    while (found := source.take(most, 1.0)) or (source.lag() or 0) > len(taken):
        taken += found
        assert time.monotonic() < until
    return taken


@pytest.mark.long
@pytest.mark.slow
def test_every_message_once_more_until_it_is_done(broker: KafkaBroker) -> None:
    broker.send("twice", [gone(number % 7) for number in range(100)])
    with source_of(broker, "twice") as source:
        first = take_all(source)
        assert len({one.token for one in first}) == len(first) == 100
    with source_of(broker, "twice") as source:
        assert {one.token for one in take_all(source)} == {one.token for one in first}
        source.done(first[:0])
        source.done(first)
    broker.send("twice", [gone(1)])
    with source_of(broker, "twice") as source:
        (last,) = take_all(source)
        assert read_change(last.raw).job_id == "job-1"
        source.done([last])
        source._looked_s = -10.0
        assert source.lag() == 0


@pytest.mark.long
@pytest.mark.slow
def test_orders_follow_the_partition_whatever_the_producers_clocks_say(broker: KafkaBroker) -> None:
    for stamp in (2_000, 1_000, 3_000):
        broker.send("clocks", [("job-1", str(stamp).encode())], timestamp=stamp)
    with source_of(broker, "clocks") as source:
        taken = take_all(source)
        source.done(taken)
    assert [one.raw for one in taken] == [b"2000", b"1000", b"3000"]
    assert [one.sent_ms for one in taken] == [2000, 1000, 3000]
    assert [one.order for one in taken] == [order_of(2000, 0), order_of(2000, 1), order_of(3000, 2)]
    # And whoever takes the partition over goes on with its clock.
    broker.send("clocks", [("job-1", b"later")], timestamp=1_500)
    with source_of(broker, "clocks") as source:
        (last,) = take_all(source)
    assert (last.raw, last.order) == (b"later", order_of(3000, 3))


@pytest.mark.long
@pytest.mark.slow
def test_a_message_without_content_deletes(broker: KafkaBroker) -> None:
    broker.send("compacted", [("job-é", None)])
    with source_of(broker, "compacted") as source:
        (one,) = take_all(source)
    assert read_change(one.raw).delete == "job-é"


@pytest.mark.long
@pytest.mark.slow
def test_a_key_that_is_no_text_deletes_nothing_and_is_rejected(broker: KafkaBroker) -> None:
    broker.send("avro", [(b"\x00\x00\x00\x01\xffjob-4", None)])
    with source_of(broker, "avro") as source:
        (one,) = take_all(source)
    with pytest.raises(DataError):
        read_change(one.raw)


@pytest.mark.long
@pytest.mark.slow
def test_the_end_of_a_transaction_is_nothing_that_waits(broker: KafkaBroker) -> None:
    """`--until-idle` never ended, and the alert stayed on."""
    from confluent_kafka import Producer

    setting = {"bootstrap.servers": broker.address, "transactional.id": "own", "log_level": 0}
    producer = Producer(setting)
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce("whole", b'{"delete": "a"}', "a")
    producer.commit_transaction(20)
    with source_of(broker, "whole") as source:
        taken: list[Delivery] = []
        until = time.monotonic() + 60
        while not taken:
            taken = source.take(64, 1.0)
            assert time.monotonic() < until
        source._looked_s = -10.0
        assert source.lag()  # what is in hand waits
        source.done(taken)
        assert source.take(64, 1.0) == []
        source._looked_s = -10.0
        assert source.lag() == 0


@pytest.mark.long
@pytest.mark.slow
def test_clocks_of_what_is_kept_outlive_a_cooperative_rebalance(
    broker: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = broker.properties(tmp_path).read_text().splitlines()
    lines.append("partition.assignment.strategy=cooperative-sticky")
    (tmp_path / "own.properties").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv(PROPERTIES, str(tmp_path / "own.properties"))
    keys = "abcdefghij"
    broker.send("kept", [(key, b'{"delete": "x"}') for key in keys], timestamp=9_000)
    with source_of(broker, "kept") as staying:
        until = time.monotonic() + 60
        staying.done(take_all(staying))
        before = dict(staying._clocks)
        with source_of(broker, "kept") as joining:
            while len(staying._consumer.assignment()) == len(before):
                staying.take(64, 0.3)
                joining.take(64, 0.3)
                assert time.monotonic() < until
            kept = [one.partition for one in staying._consumer.assignment()]
            assert {staying._clocks.get(partition) for partition in kept} <= {9_000}


@pytest.mark.long
@pytest.mark.slow
def test_what_is_rejected_stands_in_a_topic_of_its_own(broker: KafkaBroker) -> None:
    broker.send("poisoned", [("a", b"{")])
    with source_of(broker, "poisoned") as source:
        (bad,) = take_all(source)
        source.reject(bad, "no JSON")
    (letter,) = broker.read("poisoned.rejected")
    assert letter.value() == b"{"
    assert dict(letter.headers()) == {"id": bad.token.encode(), "reason": b"no JSON"}


@pytest.mark.long
@pytest.mark.slow
def test_two_share_a_topic_and_one_goes_on_alone(broker: KafkaBroker) -> None:
    broker.send("shared", [gone(number) for number in range(40)])
    with source_of(broker, "shared") as staying:
        with source_of(broker, "shared") as leaving:
            until = time.monotonic() + 60
            found: dict[str, list[Delivery]] = {"staying": [], "leaving": []}
            while not all(found.values()):
                for name, one in (("staying", staying), ("leaving", leaving)):
                    found[name] += one.take(1, 0.5)
                assert time.monotonic() < until
            leaving.done(found["leaving"])
        # What the one left unfinished comes to the other.
        seen = {one.token for one in found["staying"] + found["leaving"]}
        while len(seen) < 40:
            seen |= {one.token for one in staying.take(64, 0.5)}
            assert time.monotonic() < until + 60
        staying.done(found["staying"])


@pytest.mark.long
@pytest.mark.slow
def test_brokers_that_are_away_are_named() -> None:
    broker = KafkaBroker()
    broker.send("away", [gone(1)])
    with source_of(broker, "away") as source:
        (one,) = take_all(source)
        broker.kill()
        source._looked_s = -10.0
        with pytest.raises(StoreUnavailable, match=rf"topic away of {broker.address}"):
            source.lag()
        with pytest.raises(StoreUnavailable):
            source.done([one])
    with source_of(broker, "away") as source, pytest.raises(StoreUnavailable) as raised:
        source.take(1, 1.0)
    assert PROPERTIES in raised.value.hint


@pytest.mark.slow
def test_a_topic_that_is_not_there(broker: KafkaBroker) -> None:
    missing = pytest.raises(StoreUnavailable, match="no-such-topic")
    with source_of(broker, "no-such-topic") as source, missing:
        source.take(1, 1.0)


def test_addresses() -> None:
    found = parse_topic("//one:9092,two:9093/jobs.changed?group=ranking", "own")
    assert found == KafkaTopic(brokers="one:9092,two:9093", topic="jobs.changed", group="ranking")
    assert parse_topic("one:9092/jobs", "own").group == "own"


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("//one/jobs", "brokers"),
        ("//one:9092", "topic"),
        ("//user:secret@one:9092/jobs", "brokers"),
        ("//one:9092/jobs?password=secret", "password"),
        ("//one:9092/a topic", "topic"),
        ("", "brokers"),
    ],
)
def test_what_is_no_address(place: str, text: str) -> None:
    with pytest.raises(SpecError, match=text) as raised:
        parse_topic(place, "own")
    assert "kafka://HOST:9092" in raised.value.hint
    assert "secret" not in str(raised.value)


def test_properties_of_the_client(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text("# who we are\nsasl.password = a=b\n\nsecurity.protocol=SASL_SSL\n")
    assert read_properties(str(path)) == {"sasl.password": "a=b", "security.protocol": "SASL_SSL"}
    path.write_text("secret\n")
    with pytest.raises(SpecError, match="line 1 has no =") as raised:
        read_properties(str(path))
    assert "secret" not in str(raised.value)
    with pytest.raises(SpecError, match=PROPERTIES):
        read_properties(str(tmp_path / "none"))
    assert read_properties(None) == {}


@pytest.mark.slow
def test_a_wrong_property_is_named(
    broker: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "client.properties"
    path.write_text("no.such.setting=1\n")
    monkeypatch.setenv(PROPERTIES, str(path))
    with pytest.raises(StoreUnavailable, match=r"no\.such\.setting"):
        source_of(broker, "any")


def test_an_unknown_source_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match="no source of changes 'kafak'; did you mean 'kafka'"):
        open_source("kafak://one:1/topic", READING)
