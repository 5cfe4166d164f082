"""Sources of changes by url, which is `kind:place`; others are added with
`SOURCES.register(kind, open)`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from slmrank.errors import SpecError
from slmrank.registry import Registry
from slmrank.store.change_lines import LinesSource
from slmrank.store.changes import REJECTED_SUFFIX, ChangeSource
from slmrank.store.kafka_topic import TopicSource, parse_topic
from slmrank.store.redis_address import parse_address
from slmrank.store.redis_stream import StreamSource


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Who reads: the url of its shared store, the name of its group, and whether it waits for more
    at the end of what does end."""

    store_url: str
    group: str
    follow: bool = False


Opening = Callable[[str, Reading], AbstractContextManager[ChangeSource]]


def open_source(url: str, reading: Reading) -> AbstractContextManager[ChangeSource]:
    """Raises SpecError for a url that names none, StoreUnavailable when it does not answer."""
    kind, _, place = url.partition(":")
    return SOURCES.get(kind)(place, reading)


@contextlib.contextmanager
def _stream(name: str, reading: Reading) -> Iterator[ChangeSource]:
    address = parse_address(reading.store_url)
    name = name or f"slmrank:{address.catalogue}:changes"
    yield StreamSource(address, name, reading.group)


@contextlib.contextmanager
def _topic(place: str, reading: Reading) -> Iterator[ChangeSource]:
    with contextlib.closing(TopicSource(parse_topic(place, reading.group))) as source:
        yield source


@contextlib.contextmanager
def _lines(name: str, reading: Reading) -> Iterator[ChangeSource]:
    if name == "-":
        # A copy: Python waits at its end for whoever reads its own standard input.
        stdin = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
        yield LinesSource(stdin, Path(f"stdin{REJECTED_SUFFIX}"), follow=False)
        return
    path = Path(name)
    if not path.is_file():
        raise SpecError(
            f"jsonl:{name}: there is no such file", "name a file of JSON lines, or - for stdin"
        )
    with path.open("rb") as stream:
        yield LinesSource(
            stream, path.with_name(path.name + REJECTED_SUFFIX), follow=reading.follow
        )


def _built_in() -> None:
    for kind, opening in (("redis-stream", _stream), ("kafka", _topic), ("jsonl", _lines)):
        SOURCES.register(kind, opening)


SOURCES: Registry[Opening] = Registry("source of changes", _built_in)
