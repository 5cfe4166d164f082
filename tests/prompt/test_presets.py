# ruff: noqa: RUF001
"""Presets of public rerankers: the ids, and so the scores, of the code in their model cards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slmrank.errors import SpecError
from slmrank.model.checkpoint import open_checkpoint
from slmrank.model.decoder import pad_rows, score_items
from slmrank.model.reference import load_model
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.quality import plan_quality
from slmrank.pipeline.steps import run
from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.template import load_tokenizer, template_of
from slmrank.spec.model import BaseSpec, PromptSpec, wording
from slmrank.spec.reading import parse_spec
from tokenizers import Tokenizer

from tests.conftest import Control, TinyBundle, write_own_data

Ids = list[int]
TASK = "Given a web search query, retrieve relevant passages that answer the query"


def qwen3_card(tokenizer: Tokenizer, query: str, document: str) -> Ids:
    """As in the card of Qwen/Qwen3-Reranker-0.6B: prefix and suffix apart, the rest at once."""
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    text = f"<Instruct>: {TASK}\n<Query>: {query}\n<Document>: {document}"
    ids: Ids = []
    for part in (prefix, text, suffix):
        ids += tokenizer.encode(part, add_special_tokens=False).ids
    return ids


def mxbai_code(tokenizer: Tokenizer, query: str, document: str) -> Ids:
    """As mixedbread's own package makes them: five parts, each apart."""
    task = (
        "You are a search relevance expert who evaluates how well documents match search queries. "
        "For each query-document pair, carefully analyze the semantic relationship between them, "
        "then provide your binary relevance judgment (0 for not relevant, 1 for relevant)."
        "\nRelevance:"
    )
    system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    parts = [
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        f"query: {query}",
        "\n",
        f"document: {document}",
        "\n",
        task,
        "<|im_end|>\n<|im_start|>assistant\n",
    ]
    return [one for part in parts for one in tokenizer.encode(part, add_special_tokens=False).ids]


def plain(tokenizer: Tokenizer, query: str, document: str) -> Ids:
    text = f"Does the job match the search?\nSearch: {query}\n{document}\nMatch:"
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


THEIRS: dict[str, Callable[[Tokenizer, str, str], Ids]] = {
    "qwen3-reranker": qwen3_card,
    "mxbai-rerank-v2": mxbai_code,
}
REAL = [
    ("c++", "Senior C++ developer (m/f/d)\nAustin, TX\nYou write C++17. Pay: $45/hr!"),
    ("nurse, night shift?", "Nurse II\n- 12-hour nights;\n- wages 30%+"),
    ("软件工程师", "招聘软件工程师。地点：上海"),
    ("développeur·se Java", "Développeur Java – CDI, 40 k€"),
    ("plumber's helper 2.0...", '"Helper" wanted: (no experience)'),
    ("R", "R\n\n\nStatistics, R, SQL 100 000 rows"),
]
TEXT = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=60).map(
    lambda text: " ".join(text.split()) or "x"
)


def encoder_for(tokenizer: Tokenizer, preset: str) -> PromptEncoder:
    spec = wording(BaseSpec(preset=preset), PromptSpec())  # type: ignore[arg-type]
    return PromptEncoder(tokenizer, template_of(spec), max_item_tokens=512, max_query_tokens=400)


def ours(encoder: PromptEncoder, query: str, document: str) -> Ids:
    item = encoder.item(encoder.body(document))
    assert not item.truncated
    return [*encoder.prefix(query).tolist(), *item.ids.tolist()]


@pytest.mark.parametrize("preset", THEIRS)
def test_ids_are_those_of_the_model_card(qwen_tokenizer: Path, preset: str) -> None:
    tokenizer = load_tokenizer(qwen_tokenizer)
    encoder = encoder_for(tokenizer, preset)

    def alike(query: str, document: str) -> None:
        tokenizer.encode_special_tokens = False
        expected = THEIRS[preset](tokenizer, query, document)
        assert ours(encoder, query, document) == expected

    for query, document in REAL:
        alike(query, document)
    postings = json.loads((Path(__file__).parent / "texts.json").read_text(encoding="utf-8"))
    for query in postings["queries"]:
        for text in postings["jobs"]:
            alike(query, text)
    given(TEXT, TEXT)(alike)()


def test_the_plain_wording_is_the_whole_prompt_tokenised_at_once(qwen_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(qwen_tokenizer)
    encoder = encoder_for(tokenizer, "plain")
    for query, document in REAL:
        if document[-1].isalnum():  # a mark at the text's end would take the line end with it
            assert ours(encoder, query, document) == plain(tokenizer, query, document)


@pytest.fixture(scope="module")
def reranker(
    make_model: Callable[..., Path], qwen_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model of Qwen3's family with random weights and the real tokenizer, as one has it on
    disk."""
    folder = tmp_path_factory.mktemp("reranker") / "Qwen3-Reranker"
    sizes = {"vocab_size": 151_744, "num_hidden_layers": 2, "max_position_embeddings": 2048}
    shutil.copytree(make_model("qwen3", **sizes), folder)
    shutil.copy2(qwen_tokenizer / "tokenizer.json", folder / "tokenizer.json")
    return folder


def bundle_of(reranker: Path, folder: Path, preset: str = "qwen3-reranker", **more: Any) -> Bundle:
    folder.mkdir(exist_ok=True)
    write_own_data(folder)
    values = {
        "name": "public",
        "data": {"source": "jsonl", "jobs": "jobs.jsonl", "pairs": "pairs.jsonl"},
        "base": {"source": str(reranker), "preset": preset},
        "prompt": {"max_item_tokens": 160},
        "engine": {"openvino": {"precision": "float32"}},
        **more,
    }
    return Bundle(parse_spec(values, folder))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("preset", THEIRS)
def test_scores_are_a_forward_pass_over_the_cards_template(
    reranker: Path, tiny: TinyBundle, tmp_path: Path, preset: str
) -> None:
    bundle = bundle_of(reranker, tmp_path, preset)
    checkpoint = open_checkpoint(run(bundle.finetuned, tiny.store).path / "checkpoint")
    ranker, encoder = load_model(checkpoint), checkpoint.encoder(512)
    tokenizer = load_tokenizer(checkpoint.path)
    prefixes = pad_rows([encoder.prefix(query) for query, _ in REAL], ranker.placement)
    items = [encoder.item(encoder.body(text)).ids for _, text in REAL]
    places = torch.arange(len(REAL))
    with torch.no_grad():
        found = score_items(ranker, prefixes, pad_rows(items, ranker.placement), places)
    yes, no = {"qwen3-reranker": ("yes", "no"), "mxbai-rerank-v2": ("1", "0")}[preset]
    for place, (query, text) in enumerate(REAL):
        tokenizer.encode_special_tokens = False
        ids = torch.tensor([THEIRS[preset](tokenizer, query, text)])
        with torch.no_grad():
            logits = ranker.network(ids).logits[0, -1]
        expected = logits[tokenizer.token_to_id(yes)] - logits[tokenizer.token_to_id(no)]
        assert float(found[place]) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.long
@pytest.mark.slow
def test_a_public_reranker_is_built_as_it_is(
    reranker: Path, tiny: TinyBundle, tmp_path: Path
) -> None:
    bundle = bundle_of(reranker, tmp_path)
    assert bundle.spec.finetune is None
    assert bundle.final is bundle.base
    repository = run(bundle.repository, tiny.store)
    assert np.isfinite(run(bundle.engine, tiny.store).figures["parity"]["mean_abs_dp"])
    assert repository.path.is_dir()
    assert [row for row, _ in plan_quality(bundle, served=False).rows] == [
        "bm25",
        "finetuned",
        "engine",
    ]
    trained = bundle_of(reranker, tmp_path, finetune={"steps": 2})
    assert trained.final.kind == "finetuned"


def test_items_have_room_for_a_long_closing_question(tmp_path: Path) -> None:
    """The default's 128 tokens cut one summary in ten beside mxbai's."""
    data = {"source": "jsonl", "jobs": tmp_path / "jobs", "pairs": tmp_path / "pairs"}
    for preset, tokens in (("mxbai-rerank-v2", 192), ("qwen3-reranker", 128)):
        base = {"source": str(tmp_path), "preset": preset}
        spec = parse_spec({"name": "a", "data": data, "base": base}, tmp_path)
        assert spec.prompt.max_item_tokens == tokens
        assert spec.finetune is None
        own = {"max_item_tokens": 300}
        spec = parse_spec({"name": "a", "data": data, "base": base, "prompt": own}, tmp_path)
        assert spec.prompt.max_item_tokens == 300


@pytest.mark.slow
def test_a_preset_has_its_own_wording_alone(reranker: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"prompt\.yes cannot be set beside base\.preset qwen3"):
        bundle_of(reranker, tmp_path, prompt={"yes": " Yes"})
    with pytest.raises(SpecError, match="Gemma layers"):
        bundle_of(reranker, tmp_path, "bge-reranker-v2-gemma")
    with pytest.raises(SpecError, match="qwen3-reranker"):
        bundle_of(reranker, tmp_path, "qwen4")


@pytest.mark.slow
def test_the_commands_take_a_preset(
    reranker: Path, tiny: TinyBundle, tmp_path: Path, control: Control
) -> None:
    bundle_of(reranker, tmp_path)
    lines = [
        "name: public",
        "data: {source: jsonl, jobs: jobs.jsonl, pairs: pairs.jsonl}",
        f"base: {{source: {reranker}, preset: qwen3-reranker}}",
        "prompt: {max_item_tokens: 160}",
    ]
    (tmp_path / "public.yaml").write_text("\n".join(lines))
    where = ["--artifacts", str(tiny.artifacts)]
    done = control("import", tmp_path / "public.yaml", *where, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["figures"]["labels"] == {"yes": 9693, "no": 2152}
