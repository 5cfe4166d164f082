"""The url of a shared store: `redis://HOST:PORT/DB?catalogue=NAME&deadline_ms=50`, or `rediss://`
for TLS. User and password stand in the environment, never in a spec."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from slmrank.errors import SpecError, StoreUnavailable, needs
from slmrank.hashing import hash_value
from slmrank.store.job_store import STORE_AUTHORITY, STORE_PASSWORD, STORE_USER
from slmrank.validation import first_fault

PORT = 6379


class RedisAddress(BaseModel):
    """Where a shared store is, and how patient a reader is with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scheme: Literal["redis", "rediss"]
    host: str = Field(min_length=1)
    port: int = Field(PORT, ge=1, le=65535)
    db: int = Field(0, ge=0)
    catalogue: str = Field("jobs", pattern=r"^[A-Za-z0-9._-]{1,100}$")
    deadline_ms: int = Field(50, ge=1, le=60_000)
    retry_ms: int = Field(250, ge=1, le=60_000)
    memory_mb: int = Field(64, ge=0)
    memory_s: float = Field(1.0, ge=0)
    grace_s: int = Field(600, ge=1)

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.scheme}://{self.host}:{self.port}/{self.db}"


def parse_address(url: str, setting: str = "summarize.store") -> RedisAddress:
    """Raises SpecError that names the setting and what is wrong with its url."""
    if "@" in url.partition("?")[0]:
        raise SpecError(
            f"{setting} has a user or a password in its url",
            f"set {STORE_USER} and {STORE_PASSWORD} in the environment of whoever connects",
        )
    try:
        parts = urlsplit(url)
        options = dict(
            parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        )
        if twice := sorted(set(options) & set(_IN_URL)):
            raise ValueError(f"{twice[0]} stands before the question mark")
        port = {} if parts.port is None else {"port": parts.port}
        place = {"scheme": parts.scheme, "host": parts.hostname or "", **port}
        return RedisAddress.model_validate({**place, "db": parts.path.strip("/") or 0, **options})
    except ValueError as error:
        fault = first_fault(error)
    known = ", ".join(name for name in RedisAddress.model_fields if name not in _IN_URL)
    raise SpecError(
        # Without its options: one may be a password.
        f"{setting} {url.partition('?')[0]!r} is no address of a store: {fault}",
        f"write redis://HOST:{PORT}/0?catalogue=jobs; options: {known}",
    )


_IN_URL = ("scheme", "host", "port", "db")


def connect(address: RedisAddress, *, timeout_s: float) -> Any:
    """A client; nothing is sent yet. Raises MissingDependencyError without the package."""
    with needs(f"the store {address.place} needs the package redis", "redis"):
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    again = (redis.exceptions.ConnectionError, redis.exceptions.ReadOnlyError)
    tls: dict[str, Any] = {
        "ssl": True,
        "ssl_ca_certs": os.environ.get(STORE_AUTHORITY),
        "ssl_check_hostname": True,  # not the default before version 6 of the client
    }
    return redis.Redis(
        host=address.host,
        port=address.port,
        db=address.db,
        username=os.environ.get(STORE_USER),
        password=os.environ.get(STORE_PASSWORD),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # Once, for a connection that the server closed while nobody used it, or whose server is no
        # primary any more: the name may lead to another. What is late is not asked again: the
        # deadline has passed.
        retry=Retry(NoBackoff(), 1, supported_errors=again),
        protocol=2,
        **(tls if address.scheme == "rediss" else {}),
    )


@contextlib.contextmanager
def asking(what: str, hint: str) -> Iterator[None]:
    """The client's errors as StoreUnavailable, with what was asked and the remedy."""
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"{what}: {error}", hint) from error


# A field that no job can have: it holds the identity, and says that the version is whole.
WHOLE = b""


class Keys:
    """The names of one catalogue's summaries of one identity.

    Tokenizer, summarizer and its budget stand in every name, so that a reader cannot find what was
    made for another one; what it finds under `current` names one whole catalogue. The braces keep
    all of them on one node of a cluster, where a script may change them together.
    """

    def __init__(self, catalogue: str, identity: dict[str, Any]) -> None:
        self.namespace = hash_value(identity)[:16]
        self.prefix = f"slmrank:{{{catalogue}:{self.namespace}}}:"
        self.current = f"{self.prefix}current"
        self.seen = f"{self.prefix}seen"
        self.identities = f"slmrank:{catalogue}:identities"

    def version(self, version: str) -> str:
        return f"{self.prefix}v:{version}"
