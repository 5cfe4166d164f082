"""Which of the processes of one run this is, as `accelerate launch` and `torchrun` say it.

Read from the environment, so that nothing has to load torch to know who writes files.
"""

from __future__ import annotations

import os


def process_count() -> int:
    """Processes of the run, 1 without a launcher."""
    return max(_number("WORLD_SIZE", 1), 1)


def process_rank() -> int:
    """This process among them; 0 writes."""
    return _number("RANK", 0) if process_count() > 1 else 0


def _number(name: str, default: int) -> int:
    """A variable that is no number is none that a launcher set."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def is_first() -> bool:
    return process_rank() == 0
