"""Where tensors lie: nothing is made away from the model, and bfloat16 only where it is fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from slmrank.errors import MissingDependencyError, SpecError
from slmrank.model import placement
from slmrank.model.decoder import LoadedRanker, pack_rows, pad_rows, score_items
from slmrank.model.placement import Placement, choose_placement
from slmrank.model.reference import load_model
from torch.nn import functional

META = Placement(device="meta")
ROWS = [np.arange(1, 4), np.arange(1, 9)]


def test_a_forward_pass_stays_where_the_model_is(make_checkpoint: Callable[..., Any]) -> None:
    """On `meta` every tensor made on another device is an error."""
    loaded = load_model(make_checkpoint("qwen3"))
    ranker = LoadedRanker(network=loaded.network.to("meta"), labels=loaded.labels, placement=META)
    prefixes, items = pad_rows(ROWS, META), pad_rows(ROWS, META)
    with torch.device("cpu"):
        logits = score_items(ranker, prefixes, items, META.tensor([0, 1]))
    assert logits.device.type == "meta"
    assert logits.shape == (2,)
    packing = pack_rows(items, META)
    assert {one.device.type for one in (packing.gather, packing.scatter, packing.last)} == {"meta"}


def test_paddings_are_a_matter_of_the_cpu() -> None:
    assert pad_rows(ROWS, META).ids.shape == (2, 8)
    assert pad_rows([np.arange(1, 10)], Placement()).ids.shape == (1, 16)
    assert pad_rows([np.arange(1, 10)], META).ids.shape == (1, 9)
    assert len(pack_rows(pad_rows(ROWS, Placement()), Placement()).gather) == 64
    assert len(pack_rows(pad_rows(ROWS, META), META).gather) == 11


@pytest.mark.parametrize(("size", "keeps_all_pairs"), [(48, True), (1024, False)])
def test_long_items_are_trained_without_their_pairs_of_tokens_in_memory(
    size: int, keeps_all_pairs: bool
) -> None:
    states = torch.ones(1, 1, size, 8, requires_grad=True)
    with Placement().trained_attention(size):
        mixed = functional.scaled_dot_product_attention(states, states, states)
    assert mixed.grad_fn is not None
    assert ("FlashAttention" not in mixed.grad_fn.name()) == keeps_all_pairs


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu1", ""])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=f"device '{name}' is unknown"):
        choose_placement(name)


def test_a_gpu_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(MissingDependencyError, match="torch sees 0 NVIDIA GPUs"):
        choose_placement("cuda:0")
    assert choose_placement("auto").device == "cpu"


@pytest.mark.parametrize(
    ("seen", "local", "asked", "chosen"),
    [
        (2, "1", "cuda", "cuda:1"),
        (2, "1", "auto", "cuda:1"),
        (2, "1", "cuda:0", "cuda:0"),
        (1, "", "auto", "cuda:0"),
        (2, None, "cuda", "cuda:0"),
    ],
)
def test_each_process_of_a_launcher_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, seen: int, local: str | None, asked: str, chosen: str
) -> None:
    """`cuda` was the first one in all of them; some launchers show each process one alone."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(placement, "has_bfloat16", lambda kind: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_RANK", local)
    assert choose_placement(asked).device == chosen


def test_more_processes_than_gpus_are_refused_unless_each_sees_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(placement, "has_bfloat16", lambda kind: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(MissingDependencyError, match="torch sees 1 NVIDIA GPUs"):
        choose_placement("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert choose_placement("cuda").device == choose_placement("auto").device == "cuda:0"


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_is_used_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(placement, "has_bfloat16", lambda kind: fast)
    chosen = choose_placement("cpu", "bfloat16")
    assert chosen.dtype == ("bfloat16" if fast else "float32")
    with chosen.mixed_precision():
        product = torch.ones(4, 4) @ torch.ones(4, 4)
    assert product.dtype == (torch.bfloat16 if fast else torch.float32)
