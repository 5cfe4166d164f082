"""How people write occupation names: singular, without catalogue tails, in natural order."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import yaml

_KEEP = {"sales", "news", "glass", "business", "process", "series", "press", "gas", "waste"}
_TAILS = re.compile(r",? (Except|Including|Not) .*$|, (All Other|General|Other)$|--.*$")


@cache
def phrases() -> dict[str, list[str]]:
    """The wording of postings and queries by slot name."""
    text = (Path(__file__).parent / "phrases.yaml").read_text(encoding="utf-8")
    loaded: dict[str, list[str]] = yaml.safe_load(text)
    return loaded


def singular(noun: str) -> str:
    """The singular of an English plural as occupation titles use it."""
    low = noun.lower()
    if low.endswith("men"):
        return noun[:-3] + "man"
    if low in _KEEP or low.endswith("ss") or not low.endswith("s"):
        return noun
    if low.endswith("ies"):
        return noun[:-3] + "y"
    if low.endswith(("sses", "ches", "shes", "xes")):
        return noun[:-2]
    return noun[:-1]


def person_title(title: str) -> str:
    """An O*NET title as a person would write it: 'Special Education Teachers, Secondary School'
    becomes 'Secondary School Special Education Teacher'."""
    head = _TAILS.sub("", title)
    parts = [part.strip() for part in head.split(",") if part.strip()]
    name = parts[0]
    listed = [part.removeprefix("and ") for part in parts[1:] if part.startswith("and ")]
    if listed and singular(name) == name:
        # "Atmospheric, Earth, Marine, and Space Sciences Teachers": the noun stands at the end.
        name = listed[0]
    left = name.split(" and ")[0]
    if left != name and singular(left) != left:
        name = left
    subject, of, rest = name.partition(" of ")
    name = singular(subject) + of + rest
    if len(parts) == 2 and not parts[1].startswith("and "):
        name = f"{parts[1]} {name}"
    return name


def lower_first(sentence: str) -> str:
    """The sentence as a clause: first letter lowered unless it starts an abbreviation."""
    if len(sentence) > 1 and sentence[1].isupper():
        return sentence
    return sentence[:1].lower() + sentence[1:]
