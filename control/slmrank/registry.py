"""Named implementations of one seam; an unknown name is answered with the known ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Generic, TypeVar

from slmrank.errors import SpecError
from slmrank.plugins import LOCK, load_plugins

Kind = TypeVar("Kind")


class Registry(Generic[Kind]):
    """`what` names the seam in messages; `load` registers the built-in ones on first use."""

    def __init__(self, what: str, load: Callable[[], None]) -> None:
        self._what = what
        self._load = load
        self._loaded = False
        self._known: dict[str, Kind] = {}

    def register(self, name: str, kind: Kind) -> None:
        self._known[name] = kind

    def names(self) -> list[str]:
        self._ready()
        return list(self._known)

    def get(self, name: str) -> Kind:
        """Raises SpecError that lists the known names."""
        self._ready()
        if name not in self._known:
            near = difflib.get_close_matches(name, self._known, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(self._known)
            raise SpecError(f"there is no {self._what} {name!r}{meant}", f"known: {known}")
        return self._known[name]

    def _ready(self) -> None:
        with LOCK:
            if self._loaded:
                return
            self._loaded = True
            try:
                # A plugin replaces a built-in one of its name, whichever is loaded first.
                plugins = dict(self._known)
                self._load()
                self._known |= plugins
                load_plugins()
            except BaseException:  # what asks again must hear of it again
                self._loaded = False
                raise
