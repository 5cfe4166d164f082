"""Half a surrogate pair, which JSON and a broken client may hold, has no UTF-8 form."""

from __future__ import annotations


def without_surrogates(text: str) -> str:
    """The text with a question mark for each half."""
    return text.encode("utf-8", "replace").decode()
