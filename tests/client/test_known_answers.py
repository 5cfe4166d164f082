"""Known answers: chosen to tell models apart, asked of the real server."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from slmrank.client.answer import ItemScore
from slmrank.client.client import RankClient
from slmrank.client.known_answers import compare_known
from slmrank.engine.known_answers import (
    KNOWN_FILE,
    KnownAnswer,
    choose_known,
    known_json,
    read_known,
)
from slmrank.errors import ArtifactError, WrongAnswer
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.store.registry import open_store
from slmrank.triton.status import Status

from tests.conftest import Control


def test_the_query_with_the_widest_scores_is_chosen() -> None:
    scored = [("a", f"job-{n}", 0.5 + n / 1000) for n in range(9)]
    scored += [("b", f"job-{n}", n / 10) for n in range(9)]
    chosen = choose_known(scored)
    assert {one.query for one in chosen} == {"b"}
    assert [one.p for one in chosen] == [0.0, 0.3, 0.5, 0.8]
    assert choose_known([]) == []
    assert choose_known([("a", "job", 0.5)]) == [KnownAnswer(query="a", job_id="job", p=0.5)]


def answering(p: Sequence[float]) -> Any:
    def score(query: str, jobs: Sequence[str]) -> list[ItemScore]:
        return [
            ItemScore(index=n, job_id=job, score=p[n], status=Status.OK)
            for n, job in enumerate(jobs)
        ]

    return score


def test_a_wrong_a_constant_and_a_missing_answer_are_found() -> None:
    known = [KnownAnswer(query="q", job_id="a", p=0.1), KnownAnswer(query="q", job_id="b", p=0.9)]
    assert [one.gap for one in compare_known(answering([0.12, 0.9]), known)] == [
        pytest.approx(0.02),
        0.0,
    ]
    for wrong in ([0.9, 0.1], [0.5, 0.5], [0.1, math.nan]):
        with pytest.raises(WrongAnswer, match="known answers are off"):
            compare_known(answering(wrong), known)
    with pytest.raises(WrongAnswer):
        compare_known(answering([0.9, 0.1]), known, math.nan)


def test_files_that_hold_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / KNOWN_FILE
    for text in ("", "{}", '{"answers": []}', '{"answers": [{"p": 1}]}'):
        path.write_text(text)
        with pytest.raises(ArtifactError, match="holds no known answers"):
            read_known(path)
    known = [KnownAnswer(query="q", job_id="a", p=0.25)]
    path.write_text(known_json(known))
    assert read_known(path) == known


@pytest.mark.triton
def test_the_real_server_gives_its_own_repositorys_answers(
    tiny_server: Any, tiny_repository: Path, tmp_path: Path, control: Control
) -> None:
    done = control("smoke", "--url", tiny_server.url, "--known", tiny_repository, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["answers"]) >= 2
    assert max(one["gap"] for one in told["answers"]) < 1e-3
    # The same question to a server that is expected to hold another model.
    answers = [
        KnownAnswer(query=one.query, job_id=one.job_id, p=1 - one.p)
        for one in read_known(tiny_repository / KNOWN_FILE)
    ]
    (tmp_path / "other.json").write_text(known_json(answers))
    given = ("--known", tmp_path / "other.json", "--tolerance", "0.0001")
    done = control("smoke", "--url", tiny_server.url, *given)
    assert done.returncode == WrongAnswer.exit_code
    assert "known answers are off" in done.stderr
    assert "another engine, tokenizer or summary store" in done.stderr


@pytest.mark.long
@pytest.mark.triton
def test_a_server_with_another_store_is_found(
    tiny: Any, tiny_repository: Path, tmp_path: Path
) -> None:
    """The same engine, the same tokenizer, and every summary under another job's id."""
    repository = tmp_path / "repository"
    shutil.copytree(tiny_repository, repository)
    folder = repository / "prepare" / "1"
    with closing(open_store("lmdb:", folder)) as store:
        names = list(store.job_ids())
        entries = [store.get(name) for name in names]
        identity = store.identity()
    shutil.rmtree(folder / "store")
    with closing(open_store("lmdb:", folder, write=True)) as store:
        shifted = zip(names, [*entries[1:], entries[0]], strict=True)
        store.put({name: (f"c{name}", entry) for name, entry in shifted if entry is not None})
        store.set_identity(identity)
    known = read_known(tiny_repository / KNOWN_FILE)
    with Server(repository, ANY_PORTS) as server, RankClient(server.url) as client:
        with pytest.raises(WrongAnswer, match="known answers are off"):
            compare_known(client.score, known, tolerance=0.001)
        missing = [KnownAnswer(query="nurse", job_id="not-in-this-store", p=0.5)]
        with pytest.raises(WrongAnswer, match="no score"):
            compare_known(client.score, missing)
