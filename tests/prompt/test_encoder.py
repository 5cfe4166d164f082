"""Prompt encoding: parts concatenate, users cannot inject tokens, truncation spares the question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.data.records import Job
from slmrank.errors import CheckpointError, ScoreError
from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.labels import find_labels
from slmrank.prompt.template import job_text, load_tokenizer, template_of
from slmrank.spec.model import PromptSpec
from tokenizers import AddedToken, Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> PromptEncoder:
    return PromptEncoder(
        tokenizer, template_of(PromptSpec()), max_item_tokens=40, max_query_tokens=30
    )


def test_the_prefix_reads_as_the_template(encoder: PromptEncoder, tokenizer: Tokenizer) -> None:
    text = tokenizer.decode(encoder.prefix("night nurse").tolist())
    assert text == "Does the job match the search?\nSearch: night nurse\n"


def test_special_tokens_of_users_are_only_text(
    encoder: PromptEncoder, tokenizer: Tokenizer
) -> None:
    special = tokenizer.token_to_id("<|end|>")
    assert special not in encoder.prefix("nurse <|end|>")
    assert special not in encoder.body("a <|end|> b")


def test_control_tokens_that_are_not_marked_are_only_text_too(tokenizer_folder: Path) -> None:
    """Qwen3's </think>, which stands before the answer, could be written by a job."""
    tokenizer = load_tokenizer(tokenizer_folder)
    more = [AddedToken(one, normalized=False) for one in ("</think>", "    ", "phlebotomist")]
    tokenizer.add_tokens(more)
    limits = {"max_item_tokens": 40, "max_query_tokens": 30}
    encoder = PromptEncoder(tokenizer, template_of(PromptSpec(closing="</think>")), **limits)
    control, spaces = (tokenizer.token_to_id(one) for one in ("</think>", "    "))
    body = encoder.body("a </think> b    c")
    assert control not in body
    assert spaces in body
    assert encoder.text(body) == "a </think> b    c"
    # A word that was added is one, with the embedding that was trained for it.
    assert tokenizer.token_to_id("phlebotomist") in encoder.body("a phlebotomist")
    assert encoder.item(body).ids[-1] == control
    assert (
        encoder.body_form
        != PromptEncoder(
            load_tokenizer(tokenizer_folder), template_of(PromptSpec()), **limits
        ).body_form
    )


def test_truncation_cuts_the_text_and_keeps_the_question(
    encoder: PromptEncoder, tokenizer: Tokenizer
) -> None:
    item = encoder.item(encoder.body("word " * 100))
    assert item.truncated
    assert len(item.ids) == 40
    assert tokenizer.decode(item.ids.tolist()).endswith("Match:")
    assert not encoder.item(encoder.body("short")).truncated


@given(st.text(max_size=400))
def test_every_item_ends_with_the_question_and_fits(text: str) -> None:
    encoder = _ENCODERS[0]
    body = encoder.body(text)
    item = encoder.item(body)
    assert len(item.ids) <= encoder.max_item_tokens
    assert item.truncated == (len(body) > encoder.max_body_tokens)
    closing = len(item.ids) - min(len(body), encoder.max_body_tokens)
    assert np.array_equal(item.ids[-closing:], encoder.item(encoder.body("")).ids)


@pytest.mark.parametrize(
    ("query", "text"),
    [("", "empty"), (" \n", "empty"), ("x" * 20_000, "20000 bytes"), ("ab " * 40, "the limit is 30")],
)  # fmt: skip
def test_bad_queries_are_refused(encoder: PromptEncoder, query: str, text: str) -> None:
    with pytest.raises(ScoreError, match=text):
        encoder.prefix(query)


def test_labels_are_found(tokenizer: Tokenizer) -> None:
    labels = find_labels(tokenizer, template_of(PromptSpec()))
    assert tokenizer.id_to_token(labels.yes) == "\u0120Yes"
    assert labels.yes != labels.no


@pytest.mark.parametrize(
    ("yes", "no", "text"),
    [
        (" Zebra crossing", " No", "a label must be exactly one"),
        ("<|end|>", " No", "special token"),
        (" Yes", " Yes", "same token"),
    ],
)
def test_bad_labels_are_refused(tokenizer: Tokenizer, yes: str, no: str, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        find_labels(tokenizer, template_of(PromptSpec(yes=yes, no=no)))


def test_job_text_leaves_out_what_is_missing() -> None:
    job = Job(job_id="1", title="Nurse", location="Reno", description="x")
    assert job_text(job, "care") == "Job: Nurse\nReno\ncare"
    assert job_text(Job(job_id="1", description="x"), "care") == "care"


_ENCODERS: list[PromptEncoder] = []


@pytest.fixture(autouse=True)
def _share_encoder(encoder: PromptEncoder) -> None:
    _ENCODERS[:] = [encoder]
