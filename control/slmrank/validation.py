"""What pydantic found, in a line; and what no url of a setting may hold."""

from __future__ import annotations

import re

from pydantic import ValidationError


def first_fault(error: ValueError, whole: str = "value") -> str:
    """`field: what is wrong with it`; `whole` stands where no field is to blame. Of what pydantic
    did not find: what it says."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"


# A name before the colon, and no port behind it. Keys of S3 may hold slashes; before an `@` alone
# stand containers (abfss://) and users without a password (hdfs://).
_PASSWORD = re.compile(r"[a-z0-9+.-]+://[^/?@:]*:(?!\d+(/|$))[^?]*@|kafka:(//)?[^/?]*@", re.I)


def holds_password(url: str) -> bool:
    """Whether a url has a password in it, or one of Kafka's a user: it would stand in errors,
    records and manifests."""
    return _PASSWORD.match(url) is not None
