"""Sources of changes by url, which is `kind:place`; others are added with
`SOURCES.register(kind, open)`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from slmrank.errors import SpecError
from slmrank.registry import Registry
from slmrank.store.change_lines import LinesSource
from slmrank.store.changes import REJECTED_SUFFIX, ChangeSource
from slmrank.store.kafka_topic import TopicSource, parse_topic
from slmrank.store.redis_address import parse_address
from slmrank.store.redis_stream import StreamSource

# (place, url of the shared store, whether to wait for more at the end) -> the open source
Opening = Callable[[str, str, bool], AbstractContextManager[ChangeSource]]


def open_source(url: str, store_url: str, *, follow: bool) -> AbstractContextManager[ChangeSource]:
    """Raises SpecError for a url that names none, StoreUnavailable when it does not answer."""
    kind, _, place = url.partition(":")
    return SOURCES.get(kind)(place, store_url, follow)


@contextlib.contextmanager
def _stream(name: str, store_url: str, _follow: bool) -> Iterator[ChangeSource]:
    address = parse_address(store_url)
    yield StreamSource(address, name or f"slmrank:{address.catalogue}:changes")


@contextlib.contextmanager
def _topic(place: str, _store_url: str, _follow: bool) -> Iterator[ChangeSource]:
    with contextlib.closing(TopicSource(parse_topic(place))) as source:
        yield source


@contextlib.contextmanager
def _lines(name: str, _store_url: str, follow: bool) -> Iterator[ChangeSource]:
    if name == "-":
        yield LinesSource(sys.stdin.buffer, Path(f"stdin{REJECTED_SUFFIX}"), follow=False)
        return
    path = Path(name)
    if not path.is_file():
        raise SpecError(
            f"jsonl:{name}: there is no such file", "name a file of JSON lines, or - for stdin"
        )
    with path.open("rb") as stream:
        yield LinesSource(stream, path.with_name(path.name + REJECTED_SUFFIX), follow=follow)


def _built_in() -> None:
    for kind, opening in (("redis-stream", _stream), ("kafka", _topic), ("jsonl", _lines)):
        SOURCES.register(kind, opening)


SOURCES: Registry[Opening] = Registry("source of changes", _built_in)
