"""Summarizers by name; others are added with `SUMMARIZERS.register(name, kind)`."""

from __future__ import annotations

from slmrank.registry import Registry
from slmrank.summarize.summarizer import SummarizerKind


def _built_in() -> None:
    from slmrank.summarize.lead import LeadKind, whole, without_stop_words
    from slmrank.summarize.ranker import RankerKind
    from slmrank.summarize.salience import SalienceKind

    SUMMARIZERS.register("salience", SalienceKind())
    SUMMARIZERS.register("lead", LeadKind("lead", whole))
    SUMMARIZERS.register("stopwords", LeadKind("stopwords", without_stop_words))
    SUMMARIZERS.register("ranker", RankerKind())


SUMMARIZERS: Registry[SummarizerKind] = Registry("summarizer", _built_in)
