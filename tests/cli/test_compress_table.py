"""`control compress-table` on the tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from slmrank.cli.compress_table import trained_on
from slmrank.errors import SpecError
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.compress_table import OWN_RANKER, PASS_TOKENS, plan_compress_table
from slmrank.spec.reading import change_spec, load_spec

from tests.conftest import Control, TinyBundle

CHANGES = ("--set", "summarize.learn_jobs=4", "--artifacts")


@pytest.mark.long
@pytest.mark.slow
def test_every_summarizer_is_measured_against_full_text(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    arguments = ("--methods", "lead,salience,ranker", "--budgets", "10,16", "--own-ranker")
    arguments += ("--scorer", "finetuned", "--out", tmp_path)
    command = ("compress-table", tiny.spec, *CHANGES, tiny.artifacts, *arguments)
    done = control(*command, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = found["rows"]
    assert [(row["method"], row["budget"]) for row in rows] == [
        ("full text", None),
        ("full text, trained on it", None),
        *((method, budget) for method in ("lead", "salience", "ranker") for budget in (10, 16)),
    ]
    full, own, *short = rows
    assert own["quality"]["prompt_tokens"] == full["quality"]["prompt_tokens"]
    assert own["quality"]["mean_abs_dp"] > 0
    assert full["quality"]["delta_ndcg10"] is None
    for row in short:
        assert 0 < row["removed"] < 1
        assert row["quality"]["prompt_tokens"] < full["quality"]["prompt_tokens"]
        assert row["quality"]["mean_abs_dp"] > 0
        assert row["quality"]["pairs"] == full["quality"]["pairs"]
    for narrow, wide in zip(short[::2], short[1::2], strict=True):
        assert narrow["removed"] > wide["removed"]
    assert Path(found["page"]).parent == tmp_path
    page, text = (next(tmp_path.glob(f"*.{kind}")).read_text() for kind in ("html", "md"))
    for part in ("full text", "salience", "ranker", "removed"):
        assert part in page
        assert part in text
    assert next(tmp_path.glob("*.png")).read_bytes().startswith(b"\x89PNG")
    data = Bundle(load_spec(tiny.spec)).data.key
    assert found["provenance"]["data"] == data
    assert "engine" not in found["provenance"]
    assert "summarize.learn_jobs=4" in found["provenance"]["spec"]
    again = control(*command)
    assert "ranker" in again.stdout
    assert "made in" not in again.stderr


def test_what_a_ranker_was_trained_on_is_told(tiny: TinyBundle) -> None:
    spec = tiny.bundle.spec
    assert "summaries of method salience with 40 tokens" in trained_on(spec, "finetuned")
    full = change_spec(spec, {"finetune": {"text": "full", "text_tokens": 300}})
    assert trained_on(full, "finetuned") == "trained on full texts of 300 tokens"
    assert trained_on(spec.model_copy(update={"finetune": None}), "finetuned") == "not trained here"


def test_the_twin_reads_full_texts_in_passes_that_fit(tiny: TinyBundle) -> None:
    cells = plan_compress_table(tiny.bundle, "finetuned", ["lead"], [8], "own", own_ranker=True)
    twin = next(cell for cell in cells if cell.method == OWN_RANKER)
    own, other = (
        cell.step.inputs["checkpoint"].settings
        for cell in (twin, next(cell for cell in cells if cell.budget == 8))
    )
    assert (own["text"], own["tokens_at_once"]) == ("full", PASS_TOKENS)
    assert (other["text"], other["tokens_at_once"]) == ("summary", None)
    assert own["steps"] == other["steps"]


def test_a_ranker_that_is_not_trained_has_no_twin(tiny: TinyBundle) -> None:
    bundle = Bundle(tiny.bundle.spec.model_copy(update={"finetune": None}))
    with pytest.raises(SpecError, match="trains nothing"):
        plan_compress_table(bundle, "finetuned", ["lead"], [8], "own", own_ranker=True)


def test_an_adapter_of_summaries_is_not_laid_on_the_twin(tiny: TinyBundle, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).touch()
    taught = {"adapter": str(tmp_path), "lora": None}
    bundle = Bundle(change_spec(tiny.bundle.spec, {"recover": taught}))
    plan_compress_table(bundle, "finetuned", ["lead"], [8], "own", own_ranker=True)
    with pytest.raises(SpecError, match="was trained for another ranker"):
        plan_compress_table(bundle, "engine", ["lead"], [8], "own", own_ranker=True)


@pytest.mark.long
@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    command = ("compress-table", tiny.spec, "--artifacts", tmp_path)
    for wrong, words in (
        (("--methods", "leed"), "did you mean 'lead'"),
        (("--budgets", "36,many"), "no list of whole numbers"),
        (("--budgets", "4"), "at least 8"),
        (("--on", "nowhere"), "no evaluation set 'nowhere'"),
    ):
        done = control(*command, *wrong)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
