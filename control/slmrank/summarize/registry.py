"""Summarizers by name; others are added with `SUMMARIZERS.register(name, kind)`."""

from __future__ import annotations

from slmrank.registry import Registry
from slmrank.summarize.summarizer import SummarizerKind


def _built_in() -> None:
    from slmrank.summarize.extractive import ExtractiveKind

    SUMMARIZERS.register("extractive", ExtractiveKind())


SUMMARIZERS: Registry[SummarizerKind] = Registry("summarizer", _built_in)
