"""What pydantic found, in a line."""

from __future__ import annotations

from pydantic import ValidationError


def first_fault(error: ValueError, whole: str = "value") -> str:
    """`field: what is wrong with it`; `whole` stands where no field is to blame. Of what pydantic
    did not find: what it says."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"
