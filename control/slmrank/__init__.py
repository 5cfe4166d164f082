"""Serve a small language model as a search ranker: what a program calls.

The command `control` makes and serves bundles; this is the client side of it, with what it takes
and gives. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from slmrank.client.aio import AsyncRankClient
    from slmrank.client.answer import Answer, ItemScore, Part, rank_order
    from slmrank.client.asked import ItemText
    from slmrank.client.client import RankClient
    from slmrank.client.replicas import Tls
    from slmrank.data.records import Job, Pair
    from slmrank.errors import (
        ControlError,
        DeadlineExceeded,
        InvalidQuery,
        InvalidRequest,
        Overloaded,
        ScoreError,
        ServerFault,
        Unreachable,
    )
    from slmrank.triton.status import Status

__all__ = [
    "Answer",
    "AsyncRankClient",
    "ControlError",
    "DeadlineExceeded",
    "InvalidQuery",
    "InvalidRequest",
    "ItemScore",
    "ItemText",
    "Job",
    "Overloaded",
    "Pair",
    "Part",
    "RankClient",
    "ScoreError",
    "ServerFault",
    "Status",
    "Tls",
    "Unreachable",
    "__version__",
    "rank_order",
]


# Where these are; loaded on first use: `import slmrank` costs nothing.
_MODULES = (
    *("errors", "triton.status", "data.records", "client.asked", "client.replicas"),
    *("client.answer", "client.client", "client.aio"),
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        found = getattr(importlib.import_module(f"slmrank.{module}"), name, None)
        if found is not None:
            return found
    raise AttributeError(f"module 'slmrank' has no attribute {name!r}")
