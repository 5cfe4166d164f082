"""Changes from a topic of Kafka (or what speaks its protocol), read as one of a consumer group."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field

from slmrank.errors import SpecError, StoreUnavailable, needs
from slmrank.store.changes import REJECTED_SUFFIX, Delivery, order_of
from slmrank.validation import first_fault

if TYPE_CHECKING:
    from confluent_kafka import Message, TopicPartition

ANSWER_S = 10.0
JOIN_S = 30.0
# A question to every partition's leader, so not for each batch.
LAG_S = 2.0
LOST = {
    "ILLEGAL_GENERATION",
    "UNKNOWN_MEMBER_ID",
    "REBALANCE_IN_PROGRESS",
    "STALE_MEMBER_EPOCH",
    "FENCED_MEMBER_EPOCH",
    "_STATE",
    "_NO_OFFSET",
}
PROPERTIES = "SLMRANK_KAFKA_PROPERTIES"
FORM = "write kafka://HOST:9092[,HOST:9092]/TOPIC[?group=NAME]"
MOST_REJECTED = 900_000


class KafkaTopic(BaseModel):
    """`kafka://HOST:PORT,HOST:PORT/TOPIC?group=NAME`. Passwords and TLS stand in a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    brokers: str = Field(pattern=r"^[^/@\s,]+:\d+(,[^/@\s,]+:\d+)*$")
    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,240}$")
    group: str = Field(pattern=r"^\S{1,200}$")

    @property
    def ports(self) -> list[int]:
        return sorted({int(one.rpartition(":")[2]) for one in self.brokers.split(",")})


def parse_topic(place: str, group: str) -> KafkaTopic:
    """A url without its scheme, and the group where it names none. Raises SpecError that says what
    is wrong with it."""
    address, _, query = place.removeprefix("//").partition("?")
    if "@" in address:  # not shown
        raise SpecError(
            "the brokers of kafka: stand behind a user or a password",
            f"{FORM}; write both into a file of client properties, which {PROPERTIES} names",
        )
    brokers, _, topic = address.partition("/")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        return KafkaTopic.model_validate(
            {"brokers": brokers, "topic": topic, "group": group, **options}
        )
    except ValueError as error:
        fault = first_fault(error)
    raise SpecError(f"kafka:{place.partition('?')[0]} is no topic: {fault}", FORM)


def read_properties(path: str | None) -> dict[str, str]:
    """Settings of the client, as `security.protocol=SASL_SSL` in each line of a file.

    Raises SpecError for a file that is none, or a line without a `=`.
    """
    if not path:
        return {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{PROPERTIES}: {error}", "name a file of client properties") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, equals, value = line.partition("=")
        if line.strip() and not line.lstrip().startswith("#"):
            if not equals:  # the line may be a password: it is not shown
                raise SpecError(f"{path}, line {number} has no =", "write NAME=VALUE")
            found[name.strip()] = value.strip()
    return found


class TopicSource:
    """A topic whose messages have the job's id as key, so that the changes of a job keep their
    order. A message without content deletes the job that its key names, as in compacted topics.

    A message's order is its time, or the latest time before it in its partition: producers whose
    clocks differ do not change the order that the topic has.
    """

    ended = False

    def __init__(self, topic: KafkaTopic) -> None:
        with needs("a topic of Kafka needs confluent-kafka", "kafka"):
            import confluent_kafka
        self._kafka, self.topic = confluent_kafka, topic
        given = read_properties(os.environ.get(PROPERTIES))
        own = {"log_level": "3", **given, "bootstrap.servers": topic.brokers}
        consumer = {
            # A batch may be written by a language model; who died is found by its heartbeats.
            "max.poll.interval.ms": "3600000",
            **own,
            "enable.partition.eof": True,
            "group.id": topic.group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "error_cb": self._failed,
        }
        self._polled: list[Message] = []
        self._fault: Any = None
        self._joined = False
        self._clocks: dict[int, int] = {}
        self._ends: dict[int, int] = {}  # where a partition was read to its end
        self._taken: dict[int, int] = {}  # the last offset of it that was handed out
        self._lag, self._looked_s = 0, -LAG_S
        with self._asking():
            self._producer = confluent_kafka.Producer({**own, "enable.idempotence": True})
            self._consumer = confluent_kafka.Consumer(consumer)
            self._consumer.subscribe([topic.topic], on_assign=self._assigned)

    def take(self, most: int, wait_s: float) -> list[Delivery]:
        with self._asking():
            # What was polled is kept until it is returned: it will not be polled again.
            if not self._polled and (first := self._first(wait_s)) is not None:
                self._polled = [first]
            # `consume` alone would wait for a whole batch; what is there already needs no wait.
            if self._polled and most > len(self._polled):
                self._polled += self._consumer.consume(most - len(self._polled), 0)
        messages, self._polled = self._polled, []
        good = [one for one in messages if one.error() is None]
        own = self._kafka.KafkaError
        for one in messages:
            if (fault := one.error()) is not None and fault.code() == own._PARTITION_EOF:
                self._ends[one.partition() or 0] = one.offset() or 0
        for fault in filter(None, [one.error() for one in messages]):
            # Taken too long over a batch: the group gave the partitions away, and gives them again.
            passing = (own._MAX_POLL_EXCEEDED, own._PARTITION_EOF)
            if not good and fault.code() not in passing:
                raise self._unavailable(fault)
        return [self._delivery(one) for one in good]

    def reject(self, delivery: Delivery, reason: str) -> None:
        faults: list[Any] = []
        with self._asking():
            self._producer.produce(
                f"{self.topic.topic}{REJECTED_SUFFIX}",
                delivery.raw[:MOST_REJECTED],  # the producer's limit is below the brokers'
                headers={"id": delivery.token, "reason": reason[:1000]},
                on_delivery=lambda fault, _message: faults.append(fault),
            )
            left = self._producer.flush(ANSWER_S)
        if left or any(faults):
            raise self._unavailable(next(filter(None, faults), "no answer"))

    def done(self, deliveries: Sequence[Delivery]) -> None:
        next_offsets: dict[int, int] = {}
        for one in deliveries:
            partition, offset = (int(part) for part in one.token.split("-"))
            next_offsets[partition] = offset + 1
        # With the clock, from which the next member goes on.
        offsets = [
            self._kafka.TopicPartition(
                self.topic.topic, partition, offset, str(self._clocks.get(partition, 0))
            )
            for partition, offset in next_offsets.items()
        ]
        with self._asking():
            try:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            except self._kafka.KafkaException as failure:
                # The partitions are another member's now, which takes these once more.
                if failure.args[0].name() not in LOST:
                    raise

    def lag(self) -> int | None:
        if time.monotonic() - self._looked_s < LAG_S:
            return self._lag
        with self._asking():
            partitions = self._consumer.assignment()
            committed = self._consumer.committed(partitions, timeout=ANSWER_S)
            self._lag = 0
            for one in committed:
                ends = self._consumer.get_watermark_offsets(one, timeout=ANSWER_S)
                low, high = ends if ends is not None else (0, 0)
                # What a transaction wrote at its end takes an offset and is no message.
                is_read = self._ends.get(one.partition, -1) >= high
                taken = self._taken.get(one.partition)
                if not is_read or (taken is not None and taken >= one.offset):
                    self._lag += high - max(low, one.offset)
        self._looked_s = time.monotonic()
        return self._lag

    def close(self) -> None:
        """Leave the group, so that the others go on at once."""
        self._consumer.close()

    def _assigned(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self._joined = True
        committed = consumer.committed(partitions, timeout=ANSWER_S) if partitions else []
        # Only the new ones, where a member keeps what it has (cooperative assignment).
        self._clocks.update({one.partition: int(one.metadata or 0) for one in committed})
        for one in committed:
            self._ends.pop(one.partition, None)
            self._taken.pop(one.partition, None)
        self._looked_s = -LAG_S

    def _first(self, wait_s: float) -> Message | None:
        """A message, or None when the group has given this member its share and nothing waits."""
        until = time.monotonic() + JOIN_S
        self._fault = None
        while (message := self._consumer.poll(wait_s)) is None and not self._joined:
            if self._fault is not None or time.monotonic() > until:
                raise self._unavailable(self._fault or "the group's coordinator did not answer")
        return message

    def _failed(self, fault: Any) -> None:
        self._fault = fault

    def _delivery(self, message: Message) -> Delivery:
        partition, offset = message.partition() or 0, message.offset() or 0
        self._taken[partition] = offset
        sent_ms = max(0, message.timestamp()[1])
        clock = self._clocks[partition] = max(sent_ms, self._clocks.get(partition, 0))
        raw = message.value()
        if raw is None:
            raw = message.key() or b""
            with contextlib.suppress(UnicodeDecodeError):  # else no job of ours: it is rejected
                raw = json.dumps({"delete": raw.decode()}).encode()
        return Delivery(
            token=f"{partition}-{offset}",
            order=order_of(clock, offset % 100_000_000),
            sent_ms=sent_ms,
            raw=raw,
        )

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except self._kafka.KafkaException as error:
            raise self._unavailable(error.args[0]) from error

    def _unavailable(self, fault: Any) -> StoreUnavailable:
        text = fault.str() if isinstance(fault, self._kafka.KafkaError) else str(fault)
        return StoreUnavailable(
            f"the topic {self.topic.topic} of {self.topic.brokers}: {text}",
            f"are the brokers running, does the topic exist? TLS and passwords stand in the file "
            f"that {PROPERTIES} names",
        )
