"""The real base model: imported from its package, scored, pruned and compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slmrank.model.checkpoint import Checkpoint, copy_ranker_files, open_checkpoint
from slmrank.model.tensor_files import count_parameters
from slmrank.prompt.corpus import EncodedQuery
from slmrank.shipped import shipped
from slmrank.spec.compress import PruneSpec
from slmrank.spec.reading import change_spec, load_spec

pytestmark = pytest.mark.slow

TEXTS = [
    "Job: Registered Nurse\nGives medication and cares for patients on a hospital ward.",
    "Job: Truck Driver\nDrives a heavy truck between warehouses and unloads goods.",
    "Job: Data Analyst\nAnalyzes sales data and writes reports for management every week.",
    "Job: Pastry Cook\nBakes bread and cakes before dawn in a hotel kitchen.",
]


def queries(checkpoint: Checkpoint) -> list[EncodedQuery]:
    encoder = checkpoint.encoder()
    items = tuple(encoder.item(encoder.body(text)).ids for text in TEXTS)
    return [
        EncodedQuery(
            query=query,
            prefix=encoder.prefix(query),
            items=items,
            job_ids=("a", "b", "c", "d"),
            grades=(4, 0, 0, 0),
            targets=tuple(g / 4 for g in (4, 0, 0, 0)),
        )
        for query in ("night nurse", "long haul driver in Reno", "bake cakes")
    ]


def test_it_is_a_plain_llama_checkpoint_that_speaks_english(smollm2: Checkpoint) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2.path, dtype=torch.float32)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (30, 576)
    assert 134e6 < count_parameters(smollm2.path)["total"] < 135e6
    tokenizer = AutoTokenizer.from_pretrained(smollm2.path)
    text = "The nurse gave the patient some water and asked how she felt in the morning."
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    # Broken rotary permutation or scales give perplexities in the thousands.
    assert float(loss.exp()) < 80


def test_its_own_tokenizer_is_the_one_we_serve(smollm2: Checkpoint) -> None:
    from transformers import AutoTokenizer

    ours = smollm2.encoder()
    theirs = AutoTokenizer.from_pretrained(smollm2.path)
    for text in TEXTS:
        assert ours.body(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.long
def test_the_bfloat16_engine_agrees_with_the_reference(smollm2: Checkpoint, tmp_path: Path) -> None:
    from slmrank.engine.targets.base import Building
    from slmrank.engine.targets.openvino import OpenVinoTarget

    parity = {"max_mean_abs_dp": 0.02, "max_abs_dp": 0.06, "min_pair_order": 0.95}
    change = {"engine": {"openvino": {"precision": "bfloat16"}, "parity": parity}}
    figures = OpenVinoTarget().build(
        Building(
            spec=change_spec(load_spec(shipped("build/demo.yaml")), change),
            checkpoint=smollm2,
            calibration=lambda _: queries(smollm2),
            held_out=queries(smollm2),
            folder=tmp_path,
            report=lambda _: None,
        )
    )
    assert figures["parity"]["pairs"] == 12


@pytest.mark.long
def test_pruning_removes_two_fifths_of_the_layers_and_the_rest_can_be_emitted(
    smollm2: Checkpoint, tmp_path: Path
) -> None:
    import torch
    from slmrank.compress.structured import prune_model
    from slmrank.engine.trtllm.checkpoint import emit_checkpoint
    from slmrank.engine.trtllm.reference import EmittedModel
    from slmrank.model.reference import ReferenceScorer, load_model
    from transformers import AutoModelForCausalLM

    ranker = load_model(smollm2)
    prompts: list[Any] = [
        np.concatenate([one.prefix, item]) for one in queries(smollm2) for item in one.items
    ]
    spec = PruneSpec(intermediate_size=1024, layers=24)
    figures, _ = prune_model(ranker, prompts, spec, lambda *_: None)
    assert figures["layer_parameters_removed"] >= 0.35
    assert figures["mean_relative_error"]["osscar"] < figures["mean_relative_error"]["magnitude"]
    ranker.network.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert sum(p.numel() for p in loaded.parameters()) == figures["parameters_after"]

    # The pruned model as a TensorRT-LLM checkpoint: its forward pass, from the emitted files.
    copy_ranker_files(smollm2.path, tmp_path)
    pruned = open_checkpoint(tmp_path)
    emit_checkpoint(pruned, tmp_path / "trtllm", dtype="float32")
    emitted = EmittedModel(tmp_path / "trtllm")
    found = emitted.last_logits(prompts[:2])
    with torch.no_grad():
        for row, prompt in zip(found, prompts, strict=False):
            wanted = loaded(torch.tensor(prompt[None].astype(np.int64))).logits[0, -1]
            # Its logits reach 80: 1e-5 of that is float32's own noise over 24 blocks.
            assert float((row - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    log_odds = emitted.label_logits(prompts, pruned.labels)
    np.testing.assert_allclose(log_odds, ReferenceScorer(pruned).logits(prompts), atol=1e-5)
