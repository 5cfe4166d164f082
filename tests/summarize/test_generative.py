"""The summarizer that a language model writes: reward, training with TRL for real, serving."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from slmrank.client.client import RankClient
from slmrank.data.labelled import read_labelled
from slmrank.data.records import Job
from slmrank.errors import DataError, SpecError
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, open_checkpoint
from slmrank.model.probability import probability
from slmrank.model.reference import ReferenceScorer
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.catalogue import SummaryWorker, kit_of_bundle
from slmrank.pipeline.steps import run
from slmrank.pipeline.summarizer_page import draw_history, read_history
from slmrank.prompt.template import job_text
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.compress import GenerativeSpec, SummarizeSpec
from slmrank.spec.reading import change_spec
from slmrank.summarize.generative import (
    ASKED,
    TITLE_TOKENS,
    GenerativeKind,
    _forbid_runs,
    request_of,
    served_text,
    without_controls,
)
from slmrank.summarize.held_out import CLIP, FrozenRanker, Judged, Reward, divergence
from slmrank.summarize.new_words import new_words, new_words_share, without_new_words
from slmrank.summarize.policy import warm_up_examples
from slmrank.summarize.registry import load_summarizer

from tests.conftest import Control, TinyBundle

GENERATIVE = {
    "jobs": 6,
    "held_out": 3,
    "queries": 2,
    "source_tokens": 24,
    "tokens": 10,
    "item_tokens": 128,
    "warm_up_epochs": 1,
    "steps": 3,
    "steps_per_generation": 2,
    "batch_size": 4,
    "samples": 4,
}
SUMMARIZE = {
    "method": "generative",
    "budget_tokens": 12,
    "learn_jobs": 4,
    "generative": GENERATIVE,
}


def test_the_divergence_is_that_of_two_answers() -> None:
    full = np.array([0.8, 0.5, 0.2, 0.0])
    assert divergence(full, full).tolist() == [0.0] * 4
    assert divergence(np.array([0.5]), np.array([0.8])) == pytest.approx(
        0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2)
    )
    # The opposite of what the posting says costs much, and no more than that.
    worst = divergence(np.array([1.0]), np.array([0.0]))[0]
    assert worst == divergence(np.array([1 - CLIP]), np.array([CLIP]))[0]
    assert worst == pytest.approx(4.503, abs=1e-3)


def test_settings_decide_the_model_that_they_train_and_no_other(
    tiny: TinyBundle, tmp_path: Path
) -> None:
    def keys(**summarize: object) -> tuple[str, str]:
        bundle = Bundle(change_spec(tiny.bundle.spec, {"summarize": summarize}))
        return bundle.summarizer.key, bundle.first_ranker.key

    other = GENERATIVE | {"steps": 4}
    assert keys(method="generative") == keys(method="generative", generative={"steps": 120})
    first, second = keys(**SUMMARIZE), keys(**SUMMARIZE | {"generative": other})
    assert first[0] != second[0]
    assert first[1] == second[1] == keys(budget_tokens=12)[1]
    assert keys(generative=other) == keys()
    # What was trained before is known by the model, which lies in a folder of its own.
    policy = tmp_path / "summarizer" / "policy"
    policy.mkdir(parents=True)
    found = set()
    for content in ("a", "b"):
        (policy / "model.safetensors").write_text(content)
        found.add(keys(method="generative", fitted=str(tmp_path))[0])
    # What is asked for is another than what is left as it was trained.
    asked = {"new_words": True}
    found.add(keys(method="generative", fitted=str(tmp_path), generative=asked)[0])
    assert len(found) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("in_float32")
def test_the_reward_is_what_the_reference_scorer_says(tiny: TinyBundle) -> None:
    folder = run(tiny.bundle.finetuned, tiny.store).path / CHECKPOINT_FOLDER
    job = Job(job_id="a", title="welder", description="Welds beams and paints walls. " * 20)
    queries, summaries = ["welder", "nurse"], ["welds beams", "paints"]
    ranker = FrozenRanker(folder, 128, "cpu")
    found = ranker.divergences(job, queries, summaries)
    checkpoint = open_checkpoint(folder)
    encoder, scorer = checkpoint.encoder(128), ReferenceScorer(checkpoint)

    def p(query: str, text: str) -> np.ndarray:
        item = encoder.item(encoder.body(job_text(job, text))).ids
        return probability(scorer.logits([np.concatenate([encoder.prefix(query), item])]))

    for place, summary in enumerate(summaries):
        each = [divergence(p(one, summary), p(one, job.description))[0] for one in queries]
        assert found[place] == pytest.approx(np.mean(each), abs=1e-6)
    # The posting's own answer is asked for once.
    assert ranker.divergences(job, queries, summaries[::-1])[::-1] == pytest.approx(found)


def test_words_that_the_posting_does_not_have_are_found() -> None:
    job = Job(job_id="a", title="Nurse", description="Cares for patients, by night.")
    assert new_words(job, "Nurse: patient care in Paris") == ["in", "Paris"]
    assert without_new_words(job, "Nurse: patient care in Paris") == "Nurse: patient care"
    assert without_new_words(job, "") == ""
    job = Job(
        job_id="b", description="We write C# and ASP.NET. \u770b\u8b77\u5e2b\u3092\u52df\u96c6"
    )
    assert new_words(job, "C++ C# .NET c") == ["C++"]
    assert new_words_share([(job, "C++ C#"), (job, "C#"), (job, " ")]) == 0.25
    assert new_words_share([(job, "")]) is None
    # Of a text without spaces, what the posting has stays.
    assert (
        without_new_words(job, "\u770b\u8b77\u5e2b\u52df\u96c6 welder")
        == "\u770b\u8b77\u5e2b\u52df\u96c6"
    )
    assert without_new_words(job, "\u770b\u8b77\u7d4c\u9a13") == "\u770b\u8b77"
    # A cut may leave one character, and marks between what stays are no words.
    assert new_words(job, "\u770b\u8b77\u5e2b\u3002\u52df") == []
    assert without_new_words(job, "\u770b\u8b77\u3002\u7d4c\u9a13") == "\u770b\u8b77\u3002"


def test_the_warm_start_writes_words_that_it_reads() -> None:
    """Summaries of the whole posting taught it to make up half of their words."""
    text = " ".join(f"w{number}" for number in range(60))
    judged = Judged(job=Job(job_id="a", description=text), queries=(), source_tokens=60)
    spec = GenerativeSpec(source_tokens=16, tokens=12)

    def encode(texts: Sequence[str]) -> list[Any]:
        return [np.zeros(len(one.split())) for one in texts]

    def last(text: str, tokens: int) -> str:
        return " ".join(text.split()[-tokens:])

    [one] = warm_up_examples([judged], spec, last, encode)
    assert one["completion"] == " " + " ".join(f"w{number}" for number in range(6, 16))
    assert set(one["completion"].split()) <= set(one["prompt"].split())


def test_where_nothing_is_left_the_posting_begins() -> None:
    """The reward judged an empty text where stores and servers have the description's start."""
    job = Job(job_id="a", title="Nurse", description="Cares for patients, by night.")
    spec = GenerativeSpec(new_words=False)

    def encode(texts: Sequence[str]) -> list[Any]:
        return [np.zeros(len(text.split())) for text in texts]

    for written in ("", "Great opportunity!"):
        assert served_text(job, written, spec, 3, encode) == "Cares for patients,"
    assert served_text(job, "night patients", spec, 3, encode) == "night patients"


def test_a_longer_summary_earns_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(texts: Sequence[str]) -> list[Any]:
        return [np.zeros(len(text.split())) for text in texts]

    monkeypatch.setattr("slmrank.summarize.held_out.FrozenRanker", lambda *_: None)
    fitting: Any = SimpleNamespace(encode=encode, ranker=Path("unread"), device="cpu")
    job = Job(job_id="a", title="Nurse", description="Cares for patients, by night.")
    judged = Judged(job=job, queries=("nurse",), source_tokens=5)
    reward = Reward(fitting, GenerativeSpec())
    found = reward.brevity(judged, ["", "patients", "Cares for patients"])
    assert found == pytest.approx([-0.4 * (tokens / 5) ** 2 for tokens in (0, 1, 3)])
    half = Reward(fitting, GenerativeSpec(length_weight=0.2))
    assert half.brevity(judged, ["by night"]) == pytest.approx([-0.2 * (2 / 5) ** 2])


def test_a_trained_model_is_used_as_it_was_trained_but_for_what_is_asked(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "model.safetensors").write_text("")
    settings = GenerativeSpec(source_tokens=24).settings()
    (policy / "history.json").write_text(json.dumps({"settings": settings}))
    for generative in (None, {"new_words": False}):
        spec = SummarizeSpec.model_validate({"method": "generative", "generative": generative})
        loaded = GenerativeKind().load(tmp_path, spec, lambda texts: [])
        assert loaded.spec.source_tokens == 24
        assert loaded.spec.new_words is (generative is None)
        # In a server or a worker too, which get the section as JSON.
        again = SummarizeSpec.model_validate_json(spec.carried())
        assert GenerativeKind().load(tmp_path, again, lambda texts: []).spec == loaded.spec
        # As a spec is written out too, where it has what was fitted.
        whole = spec.model_copy(update={"fitted": tmp_path})
        written = SummarizeSpec.model_validate(whole.model_dump(mode="json"))
        assert written.generative_settings() == whole.generative_settings()


def test_the_judge_is_the_ranker_of_the_spec(tiny: TinyBundle) -> None:
    """Where its own summaries need none, another one was trained for hours, silently."""
    for own in ({"method": "lead"}, {"fitted": str(tiny.artifacts)}):
        bundle = Bundle(change_spec(tiny.bundle.spec, {"summarize": own}))
        if "fitted" in own:
            bundle.__dict__["finetuned"] = tiny.bundle.base
        assert bundle.first_ranker.key == bundle.finetuned.key


def test_without_reinforcement_there_is_a_page() -> None:
    assert draw_history({"log": []}).startswith(b"\x89PNG")


def test_nothing_that_was_written_is_written_again() -> None:
    torch = pytest.importorskip("torch")
    # What stands before `start`, the request, may be said again; what was written may not.
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 4, 5, 7, 1, 4, 5]])
    found = _forbid_runs(3, ids, torch.zeros(1, 9))
    assert [int(place) for place in torch.where(torch.isinf(found[0]))[0]] == [6, 7]
    assert not torch.isinf(_forbid_runs(3, ids[:, :4], torch.zeros(1, 9))).any()
    assert not torch.isinf(_forbid_runs(3, ids[:, :3], torch.zeros(1, 9))).any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps_per_generation": 1}, "(GSPO) has no effect"),
        (
            {"gradient_accumulation_steps": 4},
            "must be above generative.gradient_accumulation_steps",
        ),
        ({"samples": 5}, "must be a multiple of generative.samples 5"),
    ],
)
def test_settings_without_an_effect_are_refused(
    tiny: TinyBundle, change: dict[str, int], words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        change_spec(tiny.bundle.spec, {"summarize": {"generative": change}})
    assert words in str(caught.value)


@pytest.mark.slow
@pytest.mark.triton
def test_three_real_steps_and_what_serves_after_them(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    settings = [f"--set=summarize.{name}={json.dumps(value)}" for name, value in SUMMARIZE.items()]
    command = ("train-summarizer", tiny.spec, *settings, "--artifacts", tiny.artifacts)
    done = control(*command, "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert not re.search(r"examples/s|Warning", done.stderr), done.stderr
    warm, trained = json.loads(done.stdout)["rows"]
    assert (warm["step"], trained["step"]) == (0, 3)
    for stage in (warm, trained):
        assert len(stage["rewards"]) == 3
        assert np.mean(stage["rewards"]) == pytest.approx(
            -stage["divergence"] - stage["length_cost"], abs=1e-6
        )
        assert stage["divergence"] >= 0
        assert stage["length_cost"] > 0
        assert stage["tokens"] <= 11
    page = next(tmp_path.glob("*.html")).read_text()
    assert "warm start (0 steps)" in page
    assert "Before:" in page

    bundle = Bundle(change_spec(tiny.bundle.spec, {"summarize": SUMMARIZE}))
    summarizer = run(bundle.summarizer, tiny.store)
    history = read_history(summarizer.path)
    steps = [one for one in history["log"] if "reward" in one]
    # One sampling feeds two steps: three steps have two samplings.
    assert [one["step"] for one in steps] == [1, 3]
    for one in steps:
        assert one["reward"] == pytest.approx(one["faithfulness"] + one["brevity"], abs=1e-5)
        assert one["faithfulness"] <= 0
        assert one["brevity"] <= 0

    jobs = list(read_labelled(run(bundle.data, tiny.store).path).jobs.values())[:3]
    encoder = open_checkpoint(run(bundle.base, tiny.store).path / CHECKPOINT_FOLDER).encoder()
    found = load_summarizer(summarizer.path, bundle.spec.summarize, encoder)
    together = found.summarize(jobs)
    assert [found.summarize([job])[0] for job in jobs] == together
    assert all(one.tokens <= 12 < one.source_tokens for one in together)
    # A worker of a catalogue has the model in a folder of its own, and loads it when first asked.
    worker = SummaryWorker(kit_of_bundle(bundle, tiny.store), str(tmp_path))
    assert worker._summarizer.summarize(jobs) == together

    repository = run(bundle.repository, tiny.store).path
    with Server(repository, ANY_PORTS) as server, RankClient(server.url) as client:
        stored = client.score("nurse", [job.job_id for job in jobs])
        sent = client.score("nurse", jobs)
    assert [one.score for one in sent] == [one.score for one in stored]


def test_jobs_for_the_held_out_alone_are_too_few(tiny: TinyBundle, tmp_path: Path) -> None:
    """After the ranker was trained for hours, it ended in a bare StopIteration."""
    generative = {**GENERATIVE, "held_out": 500}
    changed = {"summarize": {**SUMMARIZE, "learn_jobs": 500, "generative": generative}}
    bundle = Bundle(change_spec(tiny.bundle.spec, changed))
    with pytest.raises(DataError, match="takes .*: 0 are left to train on"):
        run(bundle.summarizer, tiny.store)


def test_a_folder_without_a_model_is_named(tiny: TinyBundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no model"):
        GenerativeKind().load(tmp_path, tiny.bundle.spec.summarize, lambda texts: [])


def test_a_job_gives_the_model_no_more_than_its_share(make_checkpoint: Any) -> None:
    encode = make_checkpoint().encoder().bodies
    for title in ("senior nurse " * 10_000, "1" * 100_000):
        job = Job(job_id="a", title=title, description="Care for patients. " * 500)
        ids = encode([request_of(job, 24, encode)])[0]
        assert len(ids) <= TITLE_TOKENS + 24 + len(encode([ASKED])[0]) + 2


def test_control_tokens_of_a_posting_are_words(make_checkpoint: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(make_checkpoint().path))
    controls = [one for one in tokenizer.added_tokens_decoder.values() if one.special]
    assert controls
    text = "Care." + "".join(f"{one.content}x" for one in controls) + "<b>bold</b>"
    ids = tokenizer(without_controls(text, tokenizer))["input_ids"]
    assert not set(ids) & set(tokenizer.added_tokens_decoder)
    assert without_controls("Care for <b>patients</b>.", tokenizer) == "Care for <b>patients</b>."
