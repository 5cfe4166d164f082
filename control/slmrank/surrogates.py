"""Characters that a text of somebody else may hold and that are not to be written as they are: half
a surrogate pair, which JSON and a broken client may hold, has no UTF-8 form, and control characters
move a terminal's cursor, write its title or its owner's clipboard."""

from __future__ import annotations

import re

# C0 but tab and line end, DEL, C1, and what turns the direction of the text behind it.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def without_surrogates(text: str) -> str:
    """The text with a question mark for each half."""
    return text.encode("utf-8", "replace").decode()


def for_terminal(text: str) -> str:
    """The text with a replacement character for each half and each control character."""
    return _CONTROL.sub("\ufffd", without_surrogates(text))
