"""What pydantic found, in a line."""

from __future__ import annotations

from pydantic import ValidationError


def first_fault(error: ValidationError, whole: str = "value") -> str:
    """`field: what is wrong with it`; `whole` stands where no field is to blame."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"
