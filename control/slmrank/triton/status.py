"""Per-item status of a scoring call: the values of the tensor `status` (design.md 5.2)."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Per-item outcome; scores are NaN from UNKNOWN_JOB on."""

    OK = 0
    TRUNCATED = 1
    UNKNOWN_JOB = 2
    EMPTY = 3
    NOT_UTF8 = 4
    BAD_JOB = 5
    BAD_ENTRY = 6  # what the store holds of the job cannot be its ids
    STORE_UNAVAILABLE = 7  # a shared store is down, late or not filled; ask again
    NOT_RANKED = 8  # behind the depth that the load allows; keep the first stage's order
    OTHER = 99  # of a newer server, which this client does not know

    @classmethod
    def _missing_(cls, value: object) -> Status:
        return cls.OTHER

    @property
    def scored(self) -> bool:
        return self < Status.UNKNOWN_JOB

    @property
    def words(self) -> str:
        """Such as `unknown job`."""
        return self.name.lower().replace("_", " ")
