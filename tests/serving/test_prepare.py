"""From request to ids: one bad item never fails the request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from slmrank.data.records import Job
from slmrank.errors import InvalidQuery, InvalidRequest, RepositoryError
from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.template import load_tokenizer, template_of
from slmrank.serving.prepare import Preparer, open_preparer
from slmrank.spec.compress import SummarizeSpec
from slmrank.spec.model import PromptSpec
from slmrank.store.job_store import Entry
from slmrank.store.registry import open_store
from slmrank.summarize.registry import SUMMARIZERS
from slmrank.summarize.summarizer import Fitting, summarize_entries
from slmrank.tokens import Ids
from slmrank.triton.config import MAX_TEXT_CHARACTERS
from slmrank.triton.status import Status

JOB = Job(
    job_id="known",
    title="Nurse",
    location="Reno",
    description="Our team likes coffee. Cares for patients. Works at night.",
)
PLACE = Job(job_id="place", title=" ", location="Reno", description="")


@pytest.fixture
def preparer(tokenizer_folder: Path, tmp_path: Path) -> Preparer:
    encoder = PromptEncoder(
        load_tokenizer(tokenizer_folder),
        template_of(PromptSpec()),
        max_item_tokens=40,
        max_query_tokens=30,
    )
    fitting = Fitting(spec=SummarizeSpec(budget_tokens=16), jobs=[JOB], encode=encoder.bodies)
    summarizer = SUMMARIZERS.get("salience").fit(fitting)
    store = open_store("lmdb:", tmp_path, write=True)
    known, place = summarize_entries([JOB, PLACE], summarizer, encoder)
    long = Entry(summary="", ids=encoder.body("w " * 90), source_tokens=90, summary_tokens=90)
    store.put({"known": ("a", known), "long": ("b", long), "place": ("c", place)})
    return Preparer(encoder, store, summarizer, max_items=8)


def test_statuses_and_lengths(preparer: Preparer) -> None:
    ids = [b"known", b"unknown", b"", b"known", b"long", b"x", b""]
    texts = [b"", b"", b" ", b"given text", b"", b"\xff\xfe", "\u3000\u00a0".encode()]
    prepared = preparer.prepare(b"nurse", ids, None, texts)
    assert [Status(one) for one in prepared.status] == [
        Status.OK,
        Status.UNKNOWN_JOB,
        Status.EMPTY,
        Status.OK,
        Status.TRUNCATED,
        Status.NOT_UTF8,
        Status.EMPTY,
    ]
    scored = [Status(one).scored for one in prepared.status]
    assert [length > 0 for length in prepared.item_lengths] == scored
    assert prepared.item_lengths.sum() == len(prepared.item_ids)


def test_a_given_text_wins_over_the_stored_one(preparer: Preparer) -> None:
    stored = preparer.prepare(b"nurse", [b"known"])
    given = preparer.prepare(b"nurse", [b"known"], None, [b"another text here"])
    assert not np.array_equal(stored.item_ids, given.item_ids)


@pytest.mark.parametrize("job", [JOB, PLACE])
def test_a_job_sent_by_its_fields_is_the_stored_one(preparer: Preparer, job: Job) -> None:
    fields = json.dumps(job.model_dump(exclude={"job_id"})).encode()
    stored = preparer.prepare(b"nurse", [job.job_id.encode()])
    sent = preparer.prepare(b"nurse", [b"x"], [fields])
    assert Status(sent.status[0]) is Status(stored.status[0]) is Status.OK
    assert sent.item_ids.tolist() == stored.item_ids.tolist()
    both = preparer.prepare(b"nurse", [job.job_id.encode()] * 2, [b"", fields])
    assert both.item_lengths[0] == both.item_lengths[1] > 0


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"{", Status.BAD_JOB),
        (b"[]", Status.BAD_JOB),
        (b'{"title": 4}', Status.BAD_JOB),
        (b'{"salary": "x"}', Status.BAD_JOB),
        (b'{"title": "\\ud800"}', Status.BAD_JOB),
        (b"[" * 100_000, Status.BAD_JOB),
        (b'{"title": " "}', Status.EMPTY),
        (b'{"location": " ", "description": "\\u3000"}', Status.EMPTY),
        (b"\xff{}", Status.NOT_UTF8),
    ],
)
def test_fields_that_are_no_job(preparer: Preparer, fields: bytes, status: Status) -> None:
    prepared = preparer.prepare(b"nurse", [b"known", b"known"], [fields, b""])
    assert [Status(one) for one in prepared.status] == [status, Status.OK]
    assert prepared.item_lengths[0] == 0


def test_a_huge_text_is_cut_before_it_is_tokenised(
    preparer: Preparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = PromptEncoder.bodies

    def bodies(self: PromptEncoder, texts: Sequence[str]) -> list[Ids]:
        seen.extend(len(text) for text in texts)
        return original(self, texts)

    monkeypatch.setattr(PromptEncoder, "bodies", bodies)
    prepared = preparer.prepare(b"nurse", [b""], None, [b"word " * 400_000])
    assert Status(prepared.status[0]) is Status.TRUNCATED
    assert seen == [MAX_TEXT_CHARACTERS]
    assert prepared.item_lengths[0] == 40


@pytest.mark.parametrize(
    ("query", "ids", "texts", "text"),
    [
        (b"\xc3\x28", [b"known"], None, "not UTF-8: byte 0 is 0xc3"),
        (b" ", [b"known"], None, "empty"),
        (b"q", [b"a"] * 9, None, "9 jobs, the limit is 8"),
        (b"q", [b"a", b"b"], [b"t"], "1 job_text for 2 job_id"),
    ],
)
def test_bad_requests(
    preparer: Preparer, query: bytes, ids: list[bytes], texts: list[bytes] | None, text: str
) -> None:
    kind = InvalidRequest if "job" in text else InvalidQuery
    with pytest.raises(kind, match=text):
        preparer.prepare(query, ids, None, texts)


def test_summaries_of_another_code_are_told_and_of_another_form_refused(
    tiny_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "1"
    shutil.copytree(tiny_repository / "prepare" / "1", folder)
    open_preparer(folder, 8)
    assert capsys.readouterr().err == ""
    for name, refused in (("code", False), ("body_form", True)):
        with closing(open_store("lmdb:", folder, write=True)) as store:
            store.set_identity({**store.identity(), name: "of before"})
        if refused:
            with pytest.raises(RepositoryError, match="another body_form, code"):
                open_preparer(folder, 8)
        else:
            open_preparer(folder, 8)
            assert "made by another slmrank" in capsys.readouterr().err
