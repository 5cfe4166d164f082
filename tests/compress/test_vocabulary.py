"""Vocabulary trimming: the same tokens, the same scores, smaller files."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from slmrank.compress.vocabulary import (
    choose_tokens,
    read_vocabulary,
    same_tokens_share,
    trim_checkpoint,
    trim_tokenizer,
)
from slmrank.data.wording import phrases
from slmrank.errors import CheckpointError
from slmrank.model.checkpoint import Checkpoint, open_checkpoint, write_ranker
from slmrank.model.reference import ReferenceScorer
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.stages.inputs import checkpoint_of
from slmrank.pipeline.steps import run
from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.template import load_tokenizer, template_of
from slmrank.spec.model import PromptSpec
from slmrank.spec.reading import change_spec, load_spec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.conftest import FAMILIES, TinyBundle

WORDS = sorted(
    {word for group in phrases().values() for text in group for word in str(text).split()}
)
TEXTS = [" ".join(random.Random(seed).sample(WORDS, 30)) for seed in range(20)]


def counted(folder: Path, texts: list[str]) -> Counter[int]:
    tokenizer = load_tokenizer(folder)
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(tokenizer.encode(text, add_special_tokens=False).ids)
    return counts


def trimmed(checkpoint: Checkpoint, target: Path, texts: list[str], size: int) -> Checkpoint:
    """`checkpoint` trimmed to what `texts` use, as the pipeline does it."""
    fixed = checkpoint.encoder().fixed_ids.tolist()
    always = [checkpoint.labels.yes, checkpoint.labels.no, *fixed]
    counts = counted(checkpoint.path, texts)
    kept = choose_tokens(read_vocabulary(checkpoint.path), counts, always, size)
    trim_checkpoint(checkpoint.path, target, kept)
    template = checkpoint.template
    return write_ranker(target, template, max_item_tokens=96, max_query_tokens=48)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_texts_inside_the_kept_set_score_the_same(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path, family: str, tied: bool
) -> None:
    before = make_checkpoint(family, tie_word_embeddings=tied, seed=3)
    after = trimmed(before, tmp_path / "after", TEXTS[:10], 704)
    assert after.geometry.vocab_size == 704
    assert same_tokens_share(before, after, PromptEncoder.body, TEXTS[:10]) == 1.0

    def logits(checkpoint: Checkpoint) -> Any:
        encoder = checkpoint.encoder()
        items = [encoder.item(encoder.body(text)).ids for text in TEXTS[:10]]
        prompts = [np.concatenate([encoder.prefix(TEXTS[0][:40]), item]) for item in items]
        return ReferenceScorer(checkpoint).logits(prompts)

    np.testing.assert_array_equal(logits(before), logits(after))


@pytest.mark.parametrize(
    "prefix", ["<search>{query}</search>\n", "[search={query}]:", "Q {query} done\n"]
)
def test_the_template_keeps_its_tokens(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path, prefix: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(make_checkpoint("llama").path, source)
    template = template_of(PromptSpec(prefix=prefix, closing="A match for the search:"))
    before = write_ranker(source, template, max_item_tokens=96, max_query_tokens=48)
    after = trimmed(before, tmp_path / "after", TEXTS[:1], 512)
    assert same_tokens_share(before, after, PromptEncoder.prefix, ["a"]) == 1.0
    names = [
        [load_tokenizer(one.path).id_to_token(int(i)) for i in one.encoder().fixed_ids]
        for one in (before, after)
    ]
    assert names[0] == names[1]


def test_other_texts_still_tokenise_without_loss(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    before = make_checkpoint("llama")
    after = trimmed(before, tmp_path / "after", TEXTS[:1], 512)
    tokenizer = load_tokenizer(after.path)
    for text in [*TEXTS, "naïve café 東京 🙂", "\x00\x7f"]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert max(ids) < 512
        assert tokenizer.decode(ids) == text
    assert same_tokens_share(before, after, PromptEncoder.body, TEXTS) < 1.0
    assert same_tokens_share(before, after, PromptEncoder.prefix, [TEXTS[5][:30]]) < 1.0


@settings(max_examples=40)
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=25),
    size=st.sampled_from([320, 448, 640, 832]),
    corpus=st.integers(0, 19),
)
def test_whatever_uses_only_kept_tokens_tokenises_alike(
    tokenizer_folder: Path, words: list[str], size: int, corpus: int
) -> None:
    vocabulary = read_vocabulary(tokenizer_folder)
    kept = choose_tokens(vocabulary, counted(tokenizer_folder, [TEXTS[corpus]]), [], size)
    assert len(kept) == size
    old = load_tokenizer(tokenizer_folder)
    new = Tokenizer.from_str(json.dumps(trim_tokenizer(vocabulary, kept)))
    text = " ".join(words)
    before, after = old.encode(text), new.encode(text)
    if set(before.ids) <= set(kept.tolist()):
        assert after.tokens == before.tokens
    assert new.decode(after.ids) == text


def test_several_merges_to_one_token_keep_all_their_parts(tmp_path: Path) -> None:
    # As tiktoken vocabularies are converted: one token, more than one way to it.
    vocabulary = {one: index for index, one in enumerate(["a", "b", "c", "ab", "bc", "abc", "ca"])}
    merges = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c"), ("c", "a")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = read_vocabulary(tmp_path)
    kept = choose_tokens(read, {vocabulary["abc"]: 5}, [], 6)
    assert kept.tolist() == [0, 1, 2, 3, 4, 5]
    new = Tokenizer.from_str(json.dumps(trim_tokenizer(read, kept)))
    for text in ("abc", "abcab", "bcabc"):
        assert new.encode(text).tokens == tokenizer.encode(text).tokens
    assert (tokenizer.encode("ca").tokens, new.encode("ca").tokens) == (["ca"], ["c", "a"])


def test_special_tokens_keep_their_meaning(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(["<|late|>"])
    late = tokenizer.token_to_id("<|late|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|late|>", special_tokens=[("<s>", 1), ("<|late|>", late)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = read_vocabulary(tmp_path)
    kept = choose_tokens(vocabulary, counted(tmp_path, TEXTS[:1]), [], 384)
    new = Tokenizer.from_str(json.dumps(trim_tokenizer(vocabulary, kept)))
    assert new.get_vocab_size() == 384
    assert new.encode(TEXTS[0]).tokens == tokenizer.encode(TEXTS[0]).tokens
    assert new.encode("<|late|>").tokens == ["<s>", "<|late|>", "<|late|>"]


def test_a_token_without_an_embedding_row_is_refused(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(make_checkpoint("llama").path, source)
    path = source / "tokenizer.json"
    loaded = json.loads(path.read_text())
    late = {**loaded["added_tokens"][0], "id": 960, "content": "<|late|>"}
    loaded["added_tokens"].append(late)
    path.write_text(json.dumps(loaded))
    kept = choose_tokens(read_vocabulary(source), {}, [], 512)
    with pytest.raises(CheckpointError, match="row 960 is asked for"):
        trim_checkpoint(source, tmp_path / "after", kept)


def test_ids_in_the_configs_follow(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(make_checkpoint("llama").path, source)
    config = json.loads((source / "config.json").read_text())
    tokenizer = load_tokenizer(source)
    last = tokenizer.token_to_id("<|end|>")
    config |= {"eos_token_id": [last, 899], "bos_token_id": last, "pad_token_id": 899}
    (source / "config.json").write_text(json.dumps(config))
    settings_path = source / "tokenizer_config.json"
    loaded = json.loads(settings_path.read_text())
    loaded["added_tokens_decoder"] = {str(last): {"content": "<|end|>", "special": True}}
    settings_path.write_text(json.dumps(loaded))
    after = trimmed(open_checkpoint(source), tmp_path / "after", TEXTS[:1], 512)
    written = json.loads((after.path / "config.json").read_text())
    new_id = load_tokenizer(after.path).token_to_id("<|end|>")
    assert written["eos_token_id"] == [new_id]
    assert written["bos_token_id"] == new_id
    assert written["pad_token_id"] is None
    assert written["vocab_size"] == 512
    decoder = json.loads((after.path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert list(decoder) == [str(new_id)]
    rows = load_file(str(after.path / "model.safetensors"))["model.embed_tokens.weight"]
    assert rows.shape == (512, 64)


def test_too_few_tokens_and_other_tokenizers_are_refused(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint("llama")
    with pytest.raises(CheckpointError) as caught:
        choose_tokens(read_vocabulary(checkpoint.path), {}, [], 128)
    assert "128 is too small" in str(caught.value)
    assert "at least 320" in caught.value.hint
    with pytest.raises(CheckpointError, match="is not below the vocabulary"):
        choose_tokens(read_vocabulary(checkpoint.path), {}, [], 960)
    other = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="is WordLevel, only plain BPE"):
        read_vocabulary(tmp_path)


@pytest.mark.slow
def test_the_pipeline_trims_once_and_everything_follows(tiny: TinyBundle, tmp_path: Path) -> None:
    import yaml

    spec = yaml.safe_load(tiny.spec.read_text()) | {"trim": {"tokens": 704}}
    path = tiny.spec.parent / "trimmed.yaml"
    path.write_text(yaml.safe_dump(spec))
    bundle = Bundle(load_spec(path))
    made = run(bundle.trimmed, tiny.store)
    figures = made.figures
    assert (figures["tokens_before"], figures["tokens_after"]) == (960, 704)
    assert figures["parameters_before"] - figures["parameters_after"] == 256 * 64
    assert 0.8 < figures["jobs_tokenised_alike"] <= 1
    served = checkpoint_of(run(bundle.final, tiny.store))
    assert served.geometry.vocab_size == 704
    assert bundle.final.key != tiny.bundle.final.key
    other = Bundle(change_spec(bundle.spec, {"engine": {"target": "trtllm-engine"}}))
    engine = run(other.engine, tiny.store)
    config = json.loads((engine.path / "checkpoint" / "config.json").read_text())
    assert config["vocab_size"] == 704
