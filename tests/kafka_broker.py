"""A broker of librdkafka's own mock cluster, in a process of its own: the real protocol over a
socket of this machine, with consumer groups, and topics that are made when they are written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
from confluent_kafka import Producer
producer = Producer({"bootstrap.servers": "none:1", "test.mock.num.brokers": 1, "log_level": 0})
(broker,) = producer.list_topics(timeout=30).brokers.values()
print(f"{broker.host}:{broker.port}", flush=True)
input()
"""


class KafkaBroker:
    """Messages are kept until `kill`."""

    def __init__(self) -> None:
        pytest.importorskip("confluent_kafka", reason="needs confluent-kafka (extra kafka)")
        command = [sys.executable, "-c", PROGRAM]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address

    def send(self, topic: str, messages: Sequence[tuple[str, bytes | None]], **how: Any) -> None:
        """Write (key, content) pairs, in order."""
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.address})
        for key, content in messages:
            producer.produce(topic, content, key, **how)
        assert producer.flush(30) == 0

    def read(self, topic: str) -> list[Any]:
        """All messages of a topic."""
        from confluent_kafka import Consumer, TopicPartition

        settings = {"bootstrap.servers": self.address, "group.id": "reader"}
        with Consumer(settings) as consumer:
            found = consumer.list_topics(topic, timeout=30).topics[topic].partitions
            ends = {
                one: consumer.get_watermark_offsets(TopicPartition(topic, one))[1] for one in found
            }
            consumer.assign([TopicPartition(topic, one, 0) for one in found])
            return consumer.consume(sum(ends.values()), 30)

    def properties(self, folder: Path) -> Path:
        """Settings of a member of a group. The broker forgets a group that is empty only at the
        end of a session: short ones."""
        path = folder / "client.properties"
        path.write_text("session.timeout.ms=3000\nheartbeat.interval.ms=500\n")
        return path

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
