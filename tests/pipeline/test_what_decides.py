"""What keys hold, and what they leave out: an hour of training hangs on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from slmrank.data.records import Job, LabelledSet, Pair
from slmrank.errors import CheckpointError, DataError, ParityError, SpecError
from slmrank.evaluate.metrics import Interval
from slmrank.model.checkpoint import read_geometry
from slmrank.pipeline import score_step as module
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.score_step import score_step, timed_scores
from slmrank.pipeline.stages.summaries import _require_short_queries
from slmrank.pipeline.steps import Runner, Watcher, run
from slmrank.spec.reading import change_spec, load_spec
from slmrank.summarize.generative import GenerativeKind
from slmrank.train import sft

from tests.conftest import TinyBundle


def changed(tiny: TinyBundle, **sections: Any) -> Bundle:
    return Bundle(change_spec(tiny.bundle.spec, sections))


def test_where_losses_go_and_how_often_a_state_is_kept_trains_nothing_again(
    tiny: TinyBundle,
) -> None:
    quiet = {"logger": "tensorboard", "checkpoint_every": 3}
    other = changed(tiny, finetune=quiet, recover=quiet)
    assert other.recovered.key == tiny.bundle.recovered.key
    assert changed(tiny, finetune={"seed": 9}).finetuned.key != tiny.bundle.finetuned.key


def test_what_a_logger_wrote_stays(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lay in the working folder, which goes when the training is done."""
    start = sft.start_processes

    def logging(placement: Any, spec: Any, logs: Path) -> Any:
        logs.mkdir(parents=True)
        (logs / "events").write_text("loss")
        return start(placement, spec, logs)

    monkeypatch.setattr(sft, "start_processes", logging)
    logged = changed(tiny, finetune={"steps": 2, "seed": 41}).finetuned
    run(logged, tiny.store)
    assert (tiny.artifacts / "logs" / f"finetuned-{logged.key}" / "events").is_file()


def test_a_card_beside_an_adapter_decides_nothing(tiny: TinyBundle, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (adapter / name).write_text("{}")

    def key() -> str:
        return changed(tiny, finetune={"adapter": str(adapter)}).finetuned.key

    before = key()
    (adapter / "README.md").write_text("another card")
    assert key() == before
    (adapter / "adapter_model.safetensors").write_text("{ }")
    assert key() != before
    # Nor does it matter from where the same folder is named.
    shutil.copytree(adapter, tmp_path / "moved")
    moved = changed(tiny, finetune={"adapter": str(tmp_path / "moved")})
    assert moved.finetuned.key == key()


def test_what_reads_full_texts_is_pruned_and_calibrated_on_them(tiny: TinyBundle) -> None:
    full = changed(
        tiny,
        finetune={"text": "full", "text_tokens": 64},
        recover={"text": "full", "teacher_text": "full"},
    )
    assert full.pruned.settings["full_tokens"] == 1024
    assert full.engine.settings["full_tokens"] == 1024
    assert "full_tokens" not in tiny.bundle.pruned.settings


def test_a_query_that_no_prompt_takes_is_told_before_training(tiny: TinyBundle) -> None:
    encoder = tiny.bundle.spec.wording and _encoder(tiny)
    jobs = {"a": Job(job_id="a", description="x")}
    long = Pair(query="nurse " * 400, job_id="a", grade=1)
    short = Pair(query="nurse", job_id="a", grade=1)
    _require_short_queries(LabelledSet(jobs=jobs, pairs={"train": [short]}), encoder)
    with pytest.raises(DataError, match="tokens, the limit is"):
        _require_short_queries(LabelledSet(jobs=jobs, pairs={"test": [short, long]}), encoder)


def _encoder(tiny: TinyBundle) -> Any:
    from slmrank.pipeline.stages.inputs import checkpoint_of

    return checkpoint_of(run(tiny.bundle.base, tiny.store)).encoder()


@pytest.mark.slow
def test_a_rate_of_another_machine_is_measured_again(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(tiny.store, Watcher(), "cpu")
    step = score_step(tiny.bundle, "finetuned")
    first = timed_scores(step, runner)
    assert timed_scores(step, runner).manifest == first.manifest
    elsewhere = {**first.figures["measured_on"], "processor": "another"}
    elsewhere.pop("device")
    monkeypatch.setattr(module, "what_computes", lambda: dict(elsewhere))
    before = (first.path / "manifest.json").stat().st_mtime_ns
    again = timed_scores(step, runner)
    assert (again.path / "manifest.json").stat().st_mtime_ns > before
    assert again.digest == first.digest


@pytest.mark.slow
def test_weights_by_token_are_not_used_under_another_tokenizer(tiny: TinyBundle) -> None:
    ranker = {"method": "ranker", "learn_jobs": 3}
    fitted = run(changed(tiny, summarize=ranker).summarizer, tiny.store)
    again = {**ranker, "fitted": str(fitted.path)}
    assert run(changed(tiny, summarize=again).summarizer, tiny.store).path.is_dir()
    with pytest.raises(DataError, match="fitted with another tokenizer"):
        run(changed(tiny, summarize=again, trim={"tokens": 704}).summarizer, tiny.store)


def test_a_trained_writer_is_used_as_it_was_trained(tmp_path: Path, tiny: TinyBundle) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "model.safetensors").write_bytes(b"")
    settings = {"source_tokens": 96, "new_words": False}
    (policy / "history.json").write_text(json.dumps({"settings": settings}))
    spec = change_spec(tiny.bundle.spec, {"summarize": {"method": "generative"}}).summarize
    own = GenerativeKind().load(tmp_path, spec, lambda _: []).spec
    assert (own.source_tokens, own.new_words) == (96, False)


def test_a_teacher_of_no_steps_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: x\ndata: {source: onet}\nfinetune: {adapter: a, steps: 0, teacher: t}\n")
    with pytest.raises(SpecError, match="0 steps learn nothing from a teacher"):
        load_spec(path)


def test_attention_in_a_window_is_refused(make_model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make_model("qwen2"), folder)
    read_geometry(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "use_sliding_window": True}))
    with pytest.raises(CheckpointError, match="sliding-window"):
        read_geometry(folder)
    rotary = {**(config.get("rope_parameters") or {}), "rope_type": "longrope"}
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": rotary}))
    with pytest.raises(CheckpointError, match="longrope"):
        read_geometry(folder)


def test_an_engine_that_is_refused_does_not_end_a_search(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmrank.compress.search import Choice
    from slmrank.pipeline.compress_search import Search, geometry_of, open_axes

    runner = Runner(tiny.store, Watcher(), "cpu")
    geometry = geometry_of(tiny.bundle, runner)
    given = {"layers": [2], "intermediate_size": [128], "kv_heads": [], "budget_tokens": [20]}
    axes = open_axes(tiny.bundle, geometry, given)
    figures = run(score_step(tiny.bundle, "finetuned"), tiny.store).figures

    def scored(_search: Search, choice: Choice, steps: int, *, in_engine: bool) -> Any:
        if in_engine and choice.layers == 2:
            raise ParityError("engine refused", "raise the tolerance")
        return SimpleNamespace(choice=choice, figures=figures)

    def lost(_search: Search, scores: Any, _reference: Any) -> Interval:
        choice = scores.choice
        loss = 0.02 * (3 - choice.layers) + 1e-4 * (192 - choice.intermediate_size)
        return Interval(value=loss, low=loss, high=loss)

    monkeypatch.setattr(Search, "_score", scored)
    monkeypatch.setattr(Search, "_loss", lost)
    monkeypatch.setattr(Search, "_reference", lambda _self: None)
    said: list[str] = []
    search = Search(
        bundle=tiny.bundle,
        on="elsewhere",
        axes=axes,
        geometry=geometry,
        max_loss=1.0,
        candidates=9,
        rounds=1,
        steps=2,
        runner=runner,
        report=said.append,
    )
    found = search.run()
    assert any("engine refused" in line for line in said)
    assert found.tried
    assert all(one.choice.layers != 2 for one in found.tried)
    # What is not pruned was not trained for this.
    size = (geometry.layers, geometry.intermediate_size, geometry.kv_heads)
    for one in found.tried:
        choice = one.choice
        pruned = (choice.layers, choice.intermediate_size, choice.kv_heads) != size
        assert one.steps == (2 if pruned else 0)
