"""The emitted TensorRT-LLM checkpoint: against NVIDIA's exporter, against transformers, and the
faults that would load silently."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from slmrank.engine.trtllm.checkpoint import CONFIG, WEIGHTS, emit_checkpoint, read_trtllm_config
from slmrank.engine.trtllm.reference import EmittedModel
from slmrank.errors import CheckpointError
from slmrank.model.checkpoint import Checkpoint, open_checkpoint
from slmrank.model.reference import ReferenceScorer
from transformers import AutoModelForCausalLM

from tests.conftest import FAMILIES

RNG = np.random.default_rng(11)
PROMPTS = [RNG.integers(1, 900, length).astype(np.int32) for length in (1, 7, 30, 61)]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def transformers_logits(path: Path) -> torch.Tensor:
    """[N, V] after the last token of PROMPTS, one prompt at a time, in float32."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.stack(
            [model(torch.tensor(one[None].astype(np.int64))).logits[0, -1] for one in PROMPTS]
        )


def difference(checkpoint: Checkpoint, target: Path, dtype: str = "float32") -> float:
    """Largest logit difference between the emitted files and transformers."""
    emit_checkpoint(checkpoint, target, dtype=dtype)
    found = EmittedModel(target).last_logits(PROMPTS)
    return float((found - transformers_logits(checkpoint.path)).abs().max())


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    family=st.sampled_from(FAMILIES),
    kv_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    head_dim=st.sampled_from([8, 16, 24]),
    per_head=st.sampled_from([6, 16, 22]),
    ffn=st.integers(5, 150),
    blocks=st.integers(1, 3),
    tied=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_geometry_computes_what_transformers_computes(
    make_checkpoint: Callable[..., Checkpoint],
    tmp_path_factory: pytest.TempPathFactory,
    family: str,
    kv_heads: int,
    groups: int,
    head_dim: int,
    per_head: int,
    ffn: int,
    blocks: int,
    tied: bool,
    seed: int,
) -> None:
    heads = kv_heads * groups
    # transformers wants the hidden size to be a multiple of the heads; Qwen2 has no own head_dim.
    hidden = heads * (head_dim if family == "qwen2" else per_head)
    checkpoint = make_checkpoint(
        family,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=blocks,
        tie_word_embeddings=tied,
        seed=seed,
    )
    assert difference(checkpoint, tmp_path_factory.mktemp("trt")) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": LLAMA3},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 777.0, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ],
)
def test_biases_and_rotary_scaling_arrive(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path, changes: dict[str, Any]
) -> None:
    checkpoint = make_checkpoint("llama", seed=4, **changes)
    assert difference(checkpoint, tmp_path) < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_weights_are_those_of_torch(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path, dtype: str
) -> None:
    checkpoint = make_checkpoint("qwen3", seed=1)
    emit_checkpoint(checkpoint, tmp_path, dtype=dtype)
    theirs = load_file(str(checkpoint.path / "model.safetensors"))
    ours = load_file(str(tmp_path / WEIGHTS))
    wanted = theirs["model.layers.1.mlp.gate_proj.weight"].to(getattr(torch, dtype))
    assert torch.equal(ours["transformer.layers.1.mlp.fc.weight"], wanted)
    assert read_trtllm_config(tmp_path)["dtype"] == dtype


def modelopt_export(checkpoint: Checkpoint, target: Path) -> dict[str, torch.Tensor]:
    """NVIDIA's exporter on the same model in bfloat16."""
    from modelopt.torch.export import export_tensorrt_llm_checkpoint

    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        export_tensorrt_llm_checkpoint(
            model, "llama", torch.bfloat16, export_dir=target, inference_tensor_parallel=1
        )
    return load_file(str(target / WEIGHTS))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_nvidia_exporter_writes_the_same_bits(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path, family: str, tied: bool
) -> None:
    checkpoint = make_checkpoint(family, intermediate_size=104, tie_word_embeddings=tied, seed=2)
    oracle = modelopt_export(checkpoint, tmp_path / "oracle")
    emit_checkpoint(checkpoint, tmp_path / "ours", dtype="bfloat16")
    ours = load_file(str(tmp_path / "ours" / WEIGHTS))
    assert set(ours) == set(oracle)
    for name, tensor in oracle.items():
        assert ours[name].dtype == tensor.dtype == torch.bfloat16
        assert torch.equal(ours[name], tensor), name
    theirs = json.loads((tmp_path / "oracle" / CONFIG).read_text())
    written = read_trtllm_config(tmp_path / "ours")
    # What the exporter says and we say must agree, but for its float16 logits and its own keys.
    own = {"producer", "logits_dtype", "use_parallel_embedding"}
    common = (theirs.keys() & written.keys()) - own
    assert {"head_size", "norm_epsilon", "intermediate_size", "hidden_act"} <= common
    assert {key: theirs[key] for key in common} == {key: written[key] for key in common}


Tensors = dict[str, torch.Tensor]


def _swap(first: str, second: str) -> Callable[[Tensors], None]:
    def mutate(tensors: Tensors) -> None:
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return mutate


def _swap_q_and_k(tensors: Tensors) -> None:
    name = "transformer.layers.0.attention.qkv.weight"
    fused = tensors[name]
    tensors[name] = torch.cat([fused[64:128], fused[:64], fused[128:]])


def _drop_q_norm(tensors: Tensors) -> None:
    for kind in ("q", "k"):
        for block in range(3):
            del tensors[f"transformer.layers.{block}.attention.{kind}_layernorm.weight"]


def _unit_q_norm(tensors: Tensors) -> None:
    tensors["transformer.layers.0.attention.q_layernorm.weight"].fill_(1.0)


MUTATIONS: Mapping[str, Callable[[Tensors], None]] = {
    "gate and up swapped": _swap(
        "transformer.layers.0.mlp.fc.weight", "transformer.layers.0.mlp.gate.weight"
    ),
    "norms swapped": _swap(
        "transformer.layers.1.input_layernorm.weight", "transformer.layers.1.post_layernorm.weight"
    ),
    "blocks swapped": _swap(
        "transformer.layers.0.attention.dense.weight", "transformer.layers.1.attention.dense.weight"
    ),
    "q and k swapped": _swap_q_and_k,
    "q- and k-norm dropped": _drop_q_norm,
    "q-norm weight lost": _unit_q_norm,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_wrong_mapping_changes_the_logits(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path, mutation: str
) -> None:
    # As many key/value heads as heads, so that q and k have the same shape and can be swapped.
    checkpoint = make_checkpoint("qwen3", num_key_value_heads=4, head_dim=16, seed=7)
    assert difference(checkpoint, tmp_path) < 1e-5
    tensors = load_file(str(tmp_path / WEIGHTS))
    MUTATIONS[mutation](tensors)
    save_file(tensors, str(tmp_path / WEIGHTS))
    found = EmittedModel(tmp_path).last_logits(PROMPTS)
    assert float((found - transformers_logits(checkpoint.path)).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rotary_base", 5e5),
        ("head_size", None),
        ("norm_epsilon", 1e-2),
        ("num_key_value_heads", None),
    ],
)
def test_every_wrong_config_value_changes_the_logits_or_fails(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path, key: str, value: Any
) -> None:
    checkpoint = make_checkpoint("qwen3", seed=7)
    emit_checkpoint(checkpoint, tmp_path, dtype="float32")
    config = read_trtllm_config(tmp_path)
    config[key] = config[key] // 2 if value is None else value
    (tmp_path / CONFIG).write_text(json.dumps(config))
    try:
        found = EmittedModel(tmp_path).last_logits(PROMPTS)
    except RuntimeError:
        return
    assert float((found - transformers_logits(checkpoint.path)).abs().max()) > 1e-3


def test_label_logits_are_those_of_the_reference_scorer(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint("llama", seed=5)
    emit_checkpoint(checkpoint, tmp_path, dtype="float32")
    found = EmittedModel(tmp_path).label_logits(PROMPTS, checkpoint.labels)
    np.testing.assert_allclose(found, ReferenceScorer(checkpoint).logits(PROMPTS), atol=1e-5)


@pytest.fixture
def copied(make_checkpoint: Callable[..., Checkpoint], tmp_path: Path) -> Path:
    """A checkpoint of three blocks that a test may break."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(make_checkpoint("qwen3").path, folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, edit: Callable[[Tensors], None]) -> None:
    tensors = load_file(str(folder / "model.safetensors"))
    edit(tensors)
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})


def refusal(folder: Path, dtype: str = "bfloat16") -> CheckpointError:
    target = folder.parent / "out"
    with pytest.raises(CheckpointError) as caught:
        emit_checkpoint(open_checkpoint(folder), target, dtype=dtype)
    assert caught.value.hint
    assert not (target / CONFIG).exists()
    assert not list(target.glob(".*.tmp")) if target.exists() else True
    return caught.value


def test_blocks_of_different_width_are_refused(copied: Path) -> None:
    def narrow(tensors: Tensors) -> None:
        prefix = "model.layers.1.mlp."
        for name in ("gate_proj", "up_proj"):
            tensors[f"{prefix}{name}.weight"] = tensors[f"{prefix}{name}.weight"][:128].clone()
        down = tensors[f"{prefix}down_proj.weight"]
        tensors[f"{prefix}down_proj.weight"] = down[:, :128].contiguous()

    edit_weights(copied, narrow)
    error = refusal(copied)
    assert "model.layers.1.mlp.gate_proj.weight" in str(error)
    assert "[128, 64]" in str(error)
    assert "one width" in error.hint


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"is_pruned": True}, "is_pruned"),
        ({"is_pruned": False}, "is_pruned"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"rope_parameters": None, "rope_theta": None}, "no rope_theta"),
        ({"rope_theta": 123.0}, "rope_theta 123.0 and"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'yarn' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised"),
        ({"attention_bias": True}, "no output bias"),
        ({"rms_norm_eps": None}, "config.json has no rms_norm_eps"),
        ({"max_position_embeddings": None}, "no max_position_embeddings"),
        ({"model_type": "gemma"}, "gemma model; supported: llama, qwen2, qwen3"),
    ],
)
def test_what_an_engine_would_misread_is_refused(
    copied: Path, changes: dict[str, Any], text: str
) -> None:
    edit_config(copied, **changes)
    assert text in str(refusal(copied))


def test_missing_extra_and_broken_tensors_are_refused(copied: Path) -> None:
    edit_weights(copied, lambda tensors: tensors.update(extra=torch.ones(2)))
    assert "'extra'" in str(refusal(copied))
    edit_weights(
        copied, lambda tensors: (tensors.pop("extra"), tensors["model.norm.weight"].fill_(1e6))
    )
    assert "too large for F16" in str(refusal(copied, "float16"))
    edit_weights(copied, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    assert "not finite" in str(refusal(copied))
    edit_weights(copied, lambda tensors: tensors.pop("model.norm.weight"))
    assert "lacks 1 tensors" in str(refusal(copied))
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    assert "not a usable safetensors file" in str(refusal(copied))


def test_a_tied_model_with_another_head_beside_is_refused(copied: Path) -> None:
    def add_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_weights(copied, add_head)
    emit_checkpoint(open_checkpoint(copied), copied.parent / "fine", dtype="float32")
    edit_weights(copied, lambda tensors: tensors["lm_head.weight"].mul_(2))
    assert "a different lm_head.weight is stored" in str(refusal(copied))


def test_other_number_types_are_refused(copied: Path) -> None:
    edit_weights(
        copied, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64).double()})
    )
    assert "tensors of type F64" in str(refusal(copied))


def test_wrong_label_tokens_are_refused(copied: Path) -> None:
    ranker = json.loads((copied / "ranker.json").read_text())
    ranker["labels"]["yes"] += 1
    (copied / "ranker.json").write_text(json.dumps(ranker))
    assert "label ids" in str(refusal(copied))


def test_a_hugging_face_folder_is_not_taken_for_an_emitted_one(copied: Path) -> None:
    with pytest.raises(CheckpointError, match="no architecture"):
        read_trtllm_config(copied)


# VmHWM, not ru_maxrss: a child inherits the latter from the process that started it.
MEASURE = """
import sys
from pathlib import Path
from slmrank.engine.trtllm.checkpoint import emit_checkpoint
from slmrank.model.checkpoint import open_checkpoint
def peak_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
checkpoint = open_checkpoint(Path(sys.argv[1]))
before = peak_kib()
held = bytearray(int(sys.argv[3]))
emit_checkpoint(checkpoint, Path(sys.argv[2]), dtype="bfloat16")
print(peak_kib() - before, "torch" in sys.modules)
"""


@pytest.mark.long
@pytest.mark.slow
def test_the_peak_memory_is_not_that_of_the_model(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    # 270 MB in float32, the largest tensor 126 MB: far above the pieces of 8 MiB.
    checkpoint = make_checkpoint(
        "llama", hidden_size=2048, intermediate_size=16128, num_hidden_layers=1
    )
    largest = max(path.stat().st_size for path in checkpoint.path.glob("*.safetensors"))
    assert largest > 400e6

    def grown_bytes(held: int) -> int:
        command = [sys.executable, "-c", MEASURE, str(checkpoint.path), str(tmp_path), str(held)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        grown_kib, torch_loaded = done.stdout.split()
        assert torch_loaded == "False"
        return int(grown_kib) * 1024

    assert grown_bytes(0) < 80e6 < 1.3 * 16128 * 2048 * 4
    assert grown_bytes(200_000_000) > 150e6, "the measurement sees nothing"
