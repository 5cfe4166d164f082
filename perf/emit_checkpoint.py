"""Emit a TensorRT-LLM checkpoint: ours beside NVIDIA's exporter, on the same random weights.

    python perf/emit_checkpoint.py --out perf/results/emit_checkpoint.json

Equal tensors are shown first; then seconds and extra memory (growth of the process's peak resident
set, from VmHWM: ru_maxrss is inherited from the parent), each run in a fresh process, alternating.
Needs slmrank[train,quantize].
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

GEOMETRIES = {"375M": (20, 1536), "596M": (28, 3072)}
OURS = """
import sys, time
from pathlib import Path
from slmrank.engine.trtllm.checkpoint import emit_checkpoint
from slmrank.model.checkpoint import open_checkpoint
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
checkpoint = open_checkpoint(Path(sys.argv[1]))
before, started = peak(), time.perf_counter()
emit_checkpoint(checkpoint, Path(sys.argv[2]), dtype="bfloat16")
print("RESULT", time.perf_counter() - started, peak() - before)
"""
THEIRS = """
import sys, time, warnings
warnings.simplefilter("ignore")
import torch
from modelopt.torch.export import export_tensorrt_llm_checkpoint
from transformers import AutoModelForCausalLM
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
before, started = peak(), time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
with torch.inference_mode():
    export_tensorrt_llm_checkpoint(
        model, "llama", torch.bfloat16, export_dir=sys.argv[2], inference_tensor_parallel=1
    )
print("RESULT", time.perf_counter() - started, peak() - before)
"""


def make_model(folder: Path, blocks: int, ffn: int) -> None:
    """A Qwen3 checkpoint with random bfloat16 weights and the packaged tokenizer's files."""
    import torch
    from slmrank.artifacts import ArtifactStore
    from slmrank.model.checkpoint import write_ranker
    from slmrank.pipeline.bundle import Bundle
    from slmrank.pipeline.stages.inputs import checkpoint_of
    from slmrank.pipeline.steps import run
    from slmrank.prompt.template import template_of
    from slmrank.shipped import shipped
    from slmrank.spec.model import PromptSpec
    from slmrank.spec.reading import load_spec
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=ffn,
        num_hidden_layers=blocks,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    bundle = Bundle(load_spec(shipped("build/demo.yaml")))
    base = checkpoint_of(run(bundle.imported, ArtifactStore(Path("artifacts"))))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy2(base.path / name, folder / name)
    write_ranker(folder, template_of(PromptSpec()), max_item_tokens=128, max_query_tokens=96)


def measure(code: str, source: Path, target: Path) -> tuple[float, float]:
    """(seconds, MiB) of one run in a fresh process."""
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-c", code, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    line = next(one for one in done.stdout.splitlines() if one.startswith("RESULT"))
    _, seconds, mebibytes = line.split()
    return float(seconds), float(mebibytes)


def same_tensors(first: Path, second: Path) -> int:
    """The number of tensors, all equal to the bit. Raises AssertionError otherwise."""
    import torch
    from safetensors import safe_open

    with safe_open(first, "pt") as ours, safe_open(second, "pt") as theirs:
        names = sorted(ours.keys())
        assert names == sorted(theirs.keys())
        for name in names:
            assert torch.equal(ours.get_tensor(name), theirs.get_tensor(name)), name
        return len(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    rows = []
    for name, (blocks, ffn) in GEOMETRIES.items():
        with tempfile.TemporaryDirectory() as scratch:
            source, ours, theirs = (Path(scratch) / one for one in ("model", "ours", "theirs"))
            make_model(source, blocks, ffn)
            runs = [
                (measure(OURS, source, ours), measure(THEIRS, source, theirs))
                for _ in range(given.runs)
            ]
            weights = "rank0.safetensors"
            equal = same_tensors(ours / weights, theirs / weights)
            size = (ours / weights).stat().st_size / 2**20
        row = {"geometry": name, "equal_tensors": equal, "file_mib": round(size)}
        for who, index in (("ours", 0), ("modelopt", 1)):
            seconds = sorted(one[index][0] for one in runs)
            row[who] = {
                "seconds_median": round(statistics.median(seconds), 2),
                "seconds_range": [round(seconds[0], 2), round(seconds[-1], 2)],
                "extra_mib_max": round(max(one[index][1] for one in runs)),
            }
        ratios = sorted(one[1][0] / one[0][0] for one in runs)
        row["times_faster_median"] = round(statistics.median(ratios), 1)
        row["times_faster_range"] = [round(ratios[0], 1), round(ratios[-1], 1)]
        rows.append(row)
        print(json.dumps(row, indent=2))
    if given.out:
        tools = ("slmrank", "torch", "transformers", "nvidia-modelopt", "numpy")
        provenance = {
            "command": "python perf/emit_checkpoint.py",
            "runs": given.runs,
            "python": platform.python_version(),
            "versions": {tool: version(tool) for tool in tools},
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"provenance": provenance, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
