"""Steps: made once, in order, again only when what decides them changed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from slmrank.artifacts import ArtifactStore
from slmrank.errors import ArtifactError, MissingDependencyError
from slmrank.pipeline import steps
from slmrank.pipeline.steps import Making, Step, in_order, own_work, pending, run

CALLS: list[str] = []


def writes(name: str, content: Callable[[], str]) -> Callable[[Making], None]:
    def make(making: Making) -> None:
        CALLS.append(name)
        (making.draft.path / "file").write_text(content())

    return make


def chain(content: Callable[[], str] = lambda: "same", setting: int = 1) -> Step:
    first = Step(
        kind="first", title="1", settings={"s": setting}, make=writes("first", content), code=()
    )  # fmt: skip
    middle = Step(
        kind="middle", title="2", settings={}, code=(), make=writes("middle", lambda: "m"),
        inputs={"first": first},
    )  # fmt: skip
    return Step(
        kind="last", title="3", settings={}, code=(), make=writes("last", lambda: "l"),
        inputs={"middle": middle, "first": first},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _clear() -> None:
    CALLS.clear()


def test_inputs_first_and_once(tmp_path: Path) -> None:
    step = chain()
    assert [one.kind for one in in_order(step)] == ["first", "middle", "last"]
    run(step, ArtifactStore(tmp_path))
    assert CALLS == ["first", "middle", "last"]
    run(step, ArtifactStore(tmp_path))
    assert len(CALLS) == 3


def test_an_input_that_is_made_again_meanwhile_is_not_mixed(tmp_path: Path) -> None:
    """Another process's `--force`: a repository held files of two engines, with a manifest."""
    store, content = ArtifactStore(tmp_path), ["old"]
    first = chain(lambda: content[0]).inputs["first"]

    def reads(making: Making) -> None:
        (making.draft.path / "file").write_bytes(
            (making.inputs["first"].path / "file").read_bytes()
        )
        content[0] = "new"
        run(first, store, force=True)

    step = Step(
        kind="mixed", title="4", settings={}, code=(), make=reads, inputs={"first": first}
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="was made again meanwhile"):
        run(step, store)
    assert store.find("mixed", step.key) is None


def test_a_change_is_seen_across_what_was_cleaned_away(tmp_path: Path) -> None:
    """A ranker was trained again, the recovered one deleted for its size: the old engine stayed."""
    store, content = ArtifactStore(tmp_path), ["old"]
    before = chain(lambda: content[0])
    last = replace(before, inputs={"middle": before.inputs["middle"]})
    run(last, store)
    shutil.rmtree(store.path("middle", last.inputs["middle"].key))
    assert pending(last, store) == []
    content[0] = "new"
    run(before.inputs["first"], store, force=True)
    assert [one.kind for one in pending(last, store)] == ["middle", "last"]
    run(last, store)
    assert pending(last, store) == []


def test_a_file_that_changes_while_it_is_read_is_not_kept_as_the_old_one(tmp_path: Path) -> None:
    store, held = ArtifactStore(tmp_path), ["a", "a", "b", "a", "b"]
    step = replace(
        chain().inputs["first"], settings={"file": "a"}, again=lambda: {"file": held.pop()}
    )
    for made in ([], ["first"]):
        with pytest.raises(ArtifactError, match="was changed since"):
            run(step, store)
        assert made == CALLS
    assert store.find("first", step.key) is None
    run(step, store)


def test_a_changed_setting_makes_everything_behind_it_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    a, b = run(chain(), store), run(chain(setting=2), store)
    assert a.key != b.key
    assert CALLS == ["first", "middle", "last"] * 2


def test_a_finished_target_does_not_need_its_inputs(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    run(chain(), store)
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "middle")
    run(chain(), store)
    assert len(CALLS) == 3


def test_nothing_behind_a_current_input_is_made_again(tmp_path: Path) -> None:
    """Cleaning an old input is no reason to train anew what was made from it."""
    store = ArtifactStore(tmp_path)
    before = run(chain(), store)
    shutil.rmtree(tmp_path / "first")
    step = chain()
    last = replace(step, settings={"new": 1}, inputs={"middle": step.inputs["middle"]})
    assert [one.kind for one in pending(last, store)] == ["last"]
    CALLS.clear()
    run(last, store)
    assert CALLS == ["last"]
    assert pending(step, store) == []
    assert [one.kind for one in pending(step, store, force=True)] == ["first", "last"]
    assert run(step, store).digest == before.digest


def test_what_an_input_that_was_made_again_makes_stale_is_made_too(tmp_path: Path) -> None:
    """`middle` is current as long as `first` is missing, and is not any more once that is made."""
    store, contents = ArtifactStore(tmp_path), iter(["once", "again"])
    step = chain(lambda: next(contents))
    run(step, store)
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "last")
    CALLS.clear()
    run(step, store)
    assert CALLS == ["first", "middle", "last"]
    assert pending(step, store) == []


def test_a_later_process_takes_part_by_force_and_waits_for_nothing_that_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, step = ArtifactStore(tmp_path), replace(chain(), together=True)
    made = run(step, store)
    shutil.rmtree(run(chain().inputs["middle"], store).path)
    CALLS.clear()
    monkeypatch.setattr(steps, "is_first", lambda: False)
    assert run(step, store).digest == made.digest
    assert CALLS == []
    monkeypatch.undo()
    run(step, store)
    run(chain().inputs["middle"], store)
    CALLS.clear()
    monkeypatch.setattr(steps, "is_first", lambda: False)
    run(step, store, force=True)
    assert CALLS == ["last"]


def test_an_input_with_new_content_makes_the_target_stale(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    step = chain()
    run(step, store)
    run(chain(lambda: "other").inputs["first"], store, force=True)
    run(step, store)
    # `middle` was made again with the same content, `last` reads `first` itself.
    assert CALLS == ["first", "middle", "last", "first", "middle", "last"]


def test_the_same_content_again_changes_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    step = chain()
    run(step, store)
    run(step.inputs["first"], store, force=True)
    run(step, store)
    assert CALLS == ["first", "middle", "last", "first"]


def test_the_lineage_is_written_down(tmp_path: Path) -> None:
    made = run(chain(), ArtifactStore(tmp_path))
    assert made.manifest["inputs"]["middle"]["kind"] == "middle"
    assert len(made.manifest["inputs"]["middle"]["digest"]) == 16


def test_a_missing_tool_names_the_extra(tmp_path: Path) -> None:
    step = Step(
        kind="x", title="engine", settings={}, code=(), make=writes("x", str), tools=("no-such-tool",),
        extra="local",
    )  # fmt: skip
    with pytest.raises(MissingDependencyError, match="no-such-tool") as caught:
        run(step, ArtifactStore(tmp_path))
    assert "slmrank[local]" in caught.value.hint


def test_what_was_left_of_other_inputs_is_not_gone_on_with(tmp_path: Path) -> None:
    store, seen = ArtifactStore(tmp_path), []

    def breaks_off(making: Making) -> None:
        work = own_work(making)
        seen.append((work / "state").is_file())
        (work / "state").write_text("half")
        if len(seen) < 3:
            raise RuntimeError("killed")

    def last(content: str) -> Step:
        step = chain(lambda: content)
        return replace(step, make=breaks_off)

    for content in ("same", "same", "other"):
        store.find("first", chain().inputs["first"].key)
        shutil.rmtree(tmp_path / "first", ignore_errors=True)
        with contextlib.suppress(RuntimeError):
            run(last(content), store)
    assert seen == [False, True, False]


def test_who_waits_for_another_process_says_so(tmp_path: Path) -> None:
    store, told = ArtifactStore(tmp_path), []

    class Told(steps.Watcher):
        def progress(self, done: int, total: int, note: str = "") -> None:
            told.append(note)
            held.close()

    step = chain().inputs["first"]
    held = contextlib.ExitStack()
    held.enter_context(store.lock(step.kind, step.key))
    run(step, store, Told())
    assert told == ["waiting for it"]
