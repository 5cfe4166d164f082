"""Summarizers by name; others are added with `SUMMARIZERS.register(name, kind)`."""

from __future__ import annotations

from pathlib import Path

from slmrank.prompt.encoder import PromptEncoder
from slmrank.registry import Registry
from slmrank.spec.compress import SummarizeSpec
from slmrank.summarize.summarizer import FITTED_FOLDER, Summarizer, SummarizerKind


def _built_in() -> None:
    from slmrank.summarize.generative import GenerativeKind
    from slmrank.summarize.lead import LeadKind, whole, without_stop_words
    from slmrank.summarize.ranker import RankerKind
    from slmrank.summarize.salience import SalienceKind

    SUMMARIZERS.register("salience", SalienceKind())
    SUMMARIZERS.register("lead", LeadKind("lead", whole))
    SUMMARIZERS.register("stopwords", LeadKind("stopwords", without_stop_words))
    SUMMARIZERS.register("ranker", RankerKind())
    SUMMARIZERS.register("generative", GenerativeKind())


SUMMARIZERS: Registry[SummarizerKind] = Registry("summarizer", _built_in)


def load_summarizer(folder: Path, spec: SummarizeSpec, encoder: PromptEncoder) -> Summarizer:
    """The summarizer that was fitted into a folder: an artifact, or a repository's stage."""
    return SUMMARIZERS.get(spec.method).load(folder / FITTED_FOLDER, spec, encoder.bodies)
