"""What is wrong with a spec, in words: each fault with its key, the file that wrote it, and the
nearest known key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from slmrank.spec.bundle import BundleSpec
from slmrank.spec.engine import OTHER_SECTIONS

# Of data, by source: pydantic puts a union's tag into the place of an error.
UNION: dict[Any, type[BaseModel]] = {
    source: one
    for one in get_args(BundleSpec.model_fields["data"].annotation)
    for source in get_args(one.model_fields["source"].annotation)
}

Place = tuple[int | str, ...]
Layers = Sequence[tuple[str, Mapping[str, Any]]]  # by whose name they go, the last one on top


def explain(error: ValidationError, name: str, layers: Layers) -> tuple[str, str]:
    """All faults in one message, each with the file that wrote it, and a remedy for the first."""
    told: dict[str, list[str]] = {}
    hint = ""
    for fault in error.errors():
        location = fault["loc"]
        tag = _tag_at(location)
        place = location if tag is None else (*location[:tag], *location[tag + 1 :])
        where = ".".join(str(part) for part in place)
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            known = _known_keys(location, tag)
            text = "unknown key" + _nearest(str(place[-1]), known)
            if place == ("extends",):
                text, hint = (
                    "stands in a file, not in --set",
                    hint or "write a file that extends both",
                )
            elif known:
                hint = hint or f"known keys here: {', '.join(sorted(known))}"
        elif fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
            place, known = (*place, "source"), [str(one) for one in UNION]
            where = f"{where}.source"
            given = fault["ctx"].get("tag")
            text = "Field required"
            if given is not None:
                text = f"{given!r} is no source" + _nearest(given, known)
            hint = hint or f"sources are {', '.join(known)}"
        elif fault["type"] == "invalid_key":
            place = (*place[:-1], fault["input"])
            where = ".".join(str(part) for part in place)
            hint = hint or "quote the key: without quotes, yes, no, on and off are no strings"
        elif fault["type"] not in ("value_error", "missing"):  # of the latter, all around it
            shown = repr(fault["input"])
            text = f"{text} (got {shown if len(shown) <= 100 else shown[:97] + '...'})"
        # What is missing, or wrong with several values together, nobody wrote alone.
        alone = fault["type"] not in ("missing", "value_error")
        whose = (label for label, own in reversed(layers) if _writes(own, place, alone))
        told.setdefault(next(whose, name), []).append(f"{where}: {text}" if where else text)
    message = "; ".join(f"{label}: {'; '.join(lines)}" for label, lines in told.items())
    return message, hint or "correct the value; `control spec` shows all keys"


def _writes(values: Any, place: Sequence[int | str], alone: bool) -> bool:
    """Whether a file itself holds the value at a place; a section of several values only where one
    of them `alone` is wrong."""
    for part in place:
        if not isinstance(values, dict):
            return True  # inside of a list that it holds
        if part not in values:
            return False
        values = values[part]
    return alone or not isinstance(values, dict)


def _tag_at(location: Place) -> int | None:
    """Where pydantic wrote the source of a section, behind its name; a set may be called like a
    source."""
    for tag, head in ((1, ("data",)), (3, ("evaluate", "sets"))):
        if location[: len(head)] == head and len(location) > tag and location[tag] in UNION:
            return tag
    return None


def _nearest(given: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _known_keys(location: Place, tag: int | None) -> list[str]:
    """The keys of the section that an unknown one stands in, from the source's on if it has one."""
    inside: Any = BundleSpec if tag is None else UNION[location[tag]]
    for part in location[0 if tag is None else tag + 1 : -1]:
        if part in OTHER_SECTIONS:
            inside = OTHER_SECTIONS[str(part)]
        elif get_origin(inside) is dict:
            inside = get_args(inside)[1]
        elif part in getattr(inside, "model_fields", {}):
            field = inside.model_fields[part].annotation
            options = [field, *get_args(field)]
            inside = next((one for one in options if _is_section(one)), field)
    names = list(getattr(inside, "model_fields", {}))
    if inside is BundleSpec:
        return [*names, "extends"]
    return [*names, *OTHER_SECTIONS] if "trtllm" in names else names


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
