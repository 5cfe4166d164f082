"""A summarizer of somebody else, in this one file, that needs a trained ranker to be fitted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from slmrank.client.client import RankClient
from slmrank.code_hash import code_hash
from slmrank.data.labelled import read_labelled
from slmrank.data.records import Job
from slmrank.model.checkpoint import open_checkpoint
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import in_order, run
from slmrank.plugins import VARIABLE
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.compress import SummarizeSpec
from slmrank.spec.reading import change_spec
from slmrank.summarize.registry import SUMMARIZERS
from slmrank.summarize.summarizer import Encode, Fitting, Summary, identity_of


@dataclass(frozen=True)
class FirstWords:
    """The first words of a description; how many was asked of the ranker."""

    words: int
    encode: Encode

    def identity(self) -> dict[str, Any]:
        return {"method": "first-words", "words": self.words}

    def summarize(self, jobs: Sequence[Job]) -> list[Summary]:
        made = []
        for job in jobs:
            text = " ".join(job.description.split()[: self.words])
            sizes = [len(ids) for ids in self.encode([text, job.description])]
            made.append(Summary(text=text, tokens=sizes[0], source_tokens=sizes[1]))
        return made

    def save(self, folder: Path) -> None:
        (folder / "words.json").write_text(json.dumps(self.words))


class FirstWordsKind:
    needs_ranker = True

    def fit(self, fitting: Fitting) -> FirstWords:
        assert fitting.ranker is not None
        layers = open_checkpoint(fitting.ranker).geometry.layers
        return FirstWords(layers + fitting.spec.options["more"], fitting.encode)

    def load(self, folder: Path, spec: SummarizeSpec, encode: Encode) -> FirstWords:
        return FirstWords(json.loads((folder / "words.json").read_text()), encode)


SUMMARIZERS.register("first-words", FirstWordsKind())


def test_its_code_is_part_of_what_its_summaries_are(tiny: Any) -> None:
    """A plugin that was edited kept the summaries of before under a new key."""
    checkpoint = open_checkpoint(run(tiny.bundle.base, tiny.store).path / "checkpoint")
    encoder = checkpoint.encoder()
    identity = identity_of("t", encoder, FirstWords(3, encoder.bodies))
    assert identity["code"] == code_hash(__name__)
    assert identity["words"] == 3


@pytest.mark.long
@pytest.mark.triton
def test_it_is_fitted_with_a_ranker_and_serves_new_jobs(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, __file__)
    change = {"summarize": {"method": "first-words", "options": {"more": 4}}}
    bundle = Bundle(change_spec(tiny.bundle.spec, change))
    # The ranker that fits it is the one of the default summaries; then it trains one of its own.
    kinds = [step.kind for step in in_order(bundle.repository)]
    assert kinds.count("finetuned") == 2
    assert bundle.summarizer.inputs["ranker"].key == tiny.bundle.finetuned.key
    made = run(bundle.repository, tiny.store)
    jobs = read_labelled(run(bundle.data, tiny.store).path).jobs
    with Server(made.path, ANY_PORTS) as server, RankClient(server.url) as client:
        by_id = client.score("nurse", list(jobs)[:9])
        by_fields = client.score("nurse", list(jobs.values())[:9])
    assert [one.score for one in by_id] == [one.score for one in by_fields]
    figures = run(bundle.summarizer, tiny.store).figures
    assert figures["identity"]["words"] == 3 + 4


def test_an_unknown_summarizer_is_told_the_known_ones(tiny: Any, control: Any) -> None:
    done = control("summarize", tiny.spec, "--set", "summarize.method=saliense")
    assert done.returncode == 2
    assert "did you mean 'salience'" in done.stderr
