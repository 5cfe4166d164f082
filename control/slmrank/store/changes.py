"""Changes of single jobs, and what a source of them does.

A source delivers every change at least once. Each has an order, which grows; the store applies one
only where it has seen nothing newer of that job, so that a repeated or a late one changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slmrank.data.records import Job
from slmrank.errors import DataError
from slmrank.validation import first_fault

FIELD = "change"
REJECTED_SUFFIX = ".rejected"


class Change(BaseModel):
    """One message: `{"job": {...}}` for a new or changed job, or `{"delete": "JOB_ID"}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: Job | None = None
    delete: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one(self) -> Change:
        if (self.job is None) == (self.delete is None):
            raise ValueError("must have either job or delete")
        return self

    @property
    def job_id(self) -> str:
        return self.job.job_id if self.job is not None else str(self.delete)


def read_change(raw: bytes) -> Change:
    """Raises DataError that says what is wrong with the message."""
    try:
        return Change.model_validate_json(raw)
    except ValidationError as error:
        raise DataError(
            first_fault(error, "message"), 'send {"job": {...}} or {"delete": "JOB_ID"}'
        ) from error


def order_of(milliseconds: int, number: int = 99_999_999) -> str:
    """The order of the number-th change of a millisecond; orders compare as texts."""
    return f"{milliseconds:015d}-{number:08d}"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A message as a source gave it. `sent_ms`: when it was written there, Unix time."""

    token: str
    order: str
    sent_ms: int
    raw: bytes


class ChangeSource(Protocol):
    """Where changes come from; errors are StoreUnavailable."""

    def take(self, most: int, wait_s: float) -> list[Delivery]:
        """The next messages, in order; none after `wait_s`."""

    def reject(self, delivery: Delivery, reason: str) -> None:
        """Keep a message that cannot be applied where a person finds it."""

    def done(self, deliveries: Sequence[Delivery]) -> None:
        """These need not be delivered again."""

    def lag(self) -> int | None:
        """Messages that wait; None where nobody knows."""

    @property
    def ended(self) -> bool:
        """There will be no more."""
