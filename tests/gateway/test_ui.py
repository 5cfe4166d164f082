"""The page over a ranker that is a few lines: its answers, and what a summary kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.data.bm25 import Bm25
from slmrank.data.records import Job
from slmrank.errors import Overloaded, StoreUnavailable
from slmrank.gateway.app import Limits, make_app
from slmrank.gateway.kept import kept_spans
from slmrank.gateway.ui import Shelf, Side, for_this_machine
from slmrank.store.job_store import Entry

from tests.gateway.test_app import LengthRanker, ask_app

JOBS = {
    "a": Job(
        job_id="a",
        title="Night nurse",
        description="Care for patients. Free parking. Give medicine at night.",
    ),
    "nope": Job(
        job_id="nope", title="Nurse", company="Ward & Co", description="Wash <b>dishes</b>."
    ),
    "c": Job(job_id="c", title="Baker", description="Bake bread."),
}


class Summaries:
    """A store in memory."""

    def get(self, job_id: str) -> Entry | None:
        text = {"a": "Care for patients. Give medicine at night."}.get(job_id)
        if text is None:
            return None
        return Entry(summary=text, ids=np.array([1]), summary_tokens=8, source_tokens=11)


def test_a_store_that_is_down_is_named() -> None:
    class Down:
        def get(self, job_id: str) -> Entry | None:
            raise StoreUnavailable(f"no answer for {job_id}", "start it")

    side: Any = Side(name="one", client=LengthRanker(), summaries=Down())  # type: ignore[arg-type]
    shelf = Shelf(sides=[side], jobs=JOBS, index=Bm25(JOBS))
    reply = ask_app(make_app(side.client, Limits(), shelf), "/ui/job?job_id=a")
    assert (reply.status_code, reply.json()["hint"]) == (503, "start it")


def page(path: str, ranker: Any = None, **more: Any) -> Any:
    sides: Any = [Side(name="one", client=ranker or LengthRanker(), summaries=Summaries())]  # type: ignore[arg-type]
    shelf = Shelf(sides=sides, jobs=JOBS, index=Bm25(JOBS), examples=["nurse"], plots={"x": b"png"})
    return ask_app(make_app(sides[0].client, Limits(), shelf), path, **more)


def test_candidates_of_the_first_stage_are_ranked() -> None:
    found = page("/ui/rank?query=night+nurse").json()
    assert [one["job_id"] for one in found["candidates"]] == ["a", "nope"]
    assert found["candidates"][1]["company"] == "Ward & Co"
    (side,) = found["sides"]
    assert [one["job_id"] for one in side["items"]] == ["a", "nope"]
    assert side["items"][1]["status_text"] == "unknown job"
    assert side["items"][1]["score"] is None
    assert side["parts"][0]["times_ms"]["ranker"] == 250.0


def test_a_side_that_fails_says_why_and_a_query_without_a_job_is_no_error() -> None:
    failed = page("/ui/rank?query=nurse", LengthRanker(Overloaded("is full", "wait"))).json()
    assert failed["sides"][0]["error"] == "is full. wait"
    assert page("/ui/rank?query=zzz").json()["sides"][0]["items"] == []


def test_a_job_is_shown_with_what_its_summary_keeps() -> None:
    shown = page("/ui/job?job_id=a").json()
    (side,) = shown["sides"]
    text = shown["job"]["description"]
    kept = [text[start:end] for start, end in side["kept"]]
    assert kept == ["Care for patients", "Give medicine at night"]
    assert (side["summary_tokens"], side["source_tokens"]) == (8, 11)
    assert page("/ui/job?job_id=c").json()["sides"] == []
    missing = page("/ui/job?job_id=z")
    assert missing.status_code == 404
    assert "there is no job z" in missing.json()["detail"]


def test_files_plots_and_what_is_there() -> None:
    index = page("/ui")
    assert index.status_code == 200
    assert "default-src 'self'" in index.headers["content-security-policy"]
    assert "http" not in index.text.replace("http-equiv", "")
    for name in ("page.js", "page.css"):
        assert f"/ui/files/{name}" in index.text
        assert page(f"/ui/files/{name}").status_code == 200
    assert page("/ui/files/..%2Fui.py").status_code == 404
    assert page("/ui/plots/x.png").content == b"png"
    assert page("/ui/plots/y.png").status_code == 404
    about = page("/ui/about").json()
    assert about == {"sides": ["one"], "jobs": 3, "examples": ["nurse"], "plots": ["x"]}


def test_without_a_shelf_there_is_no_page() -> None:
    assert ask_app(make_app(LengthRanker(), Limits()), "/ui").status_code == 404  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "summary", "kept"),
    [
        ("One two three four.", "two three", ["two three"]),
        ("Äpfel und Birnen.\nNüsse auch.", "äpfel UND birnen", ["Äpfel und Birnen"]),
        ("a b c", "z", []),
        ("only", "only", ["only"]),
        ("", "", []),
        ("words", "", []),
    ],
)
def test_kept(text: str, summary: str, kept: list[str]) -> None:
    assert [text[start:end] for start, end in kept_spans(text, summary)] == kept


@given(st.text(max_size=200), st.text(max_size=60))
def test_spans_lie_inside_the_text_in_order(text: str, summary: str) -> None:
    ends = [place for span in kept_spans(text, summary) for place in span]
    assert ends == sorted(ends)
    assert all(0 <= place <= len(text) for place in ends)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost", 200),
        ("[::1]:8080", 200),
        ("[::1]", 200),
        ("attacker.example:8080", 403),
        ("127.0.0.1.attacker.example", 403),
        ("", 403),
    ],
)
def test_another_name_for_this_machine_is_refused(host: str, status: int) -> None:
    sides: Any = [Side(name="one", client=LengthRanker(), summaries=Summaries())]  # type: ignore[arg-type]
    app = make_app(sides[0].client, Limits(), Shelf(sides=sides, jobs=JOBS, index=Bm25(JOBS)))
    reply = ask_app(for_this_machine(app), "/ui/job?job_id=a", headers={"host": host})
    assert reply.status_code == status
    assert ("Night nurse" in reply.text) == (status == 200)
