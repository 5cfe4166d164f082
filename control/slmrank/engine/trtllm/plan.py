"""The build plan of a TensorRT-LLM engine: typed, hashable, and the exact `trtllm-build` command.

Reasons for the settings (reference: TensorRT-LLM 1.2.1 sources): scores come from the generation
logits of one output token, and under Triton the build flag is the only switch for them; context
logits would copy [prompt, vocabulary] per request; without a paged KV cache in-flight batching
falls back to batch 1 (tensorrtllm_backend #645).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slmrank.engine.trtllm.compatibility import (
    FP8_CAPABILITY,
    LEAST_CAPABILITY,
    SMOOTHQUANT_END,
    as_capability,
    load_compatibility,
)
from slmrank.errors import EngineError, SpecError
from slmrank.hashing import hash_value
from slmrank.model.checkpoint import Geometry
from slmrank.spec.engine import TrtllmSpec

TAG_LENGTH = 12
EMITTED_FOLDER = "checkpoint"  # of the planned engine: the TensorRT-LLM checkpoint
QUANT_ALGORITHMS = {"none": None, "fp8": "FP8", "int8-sq": "W8A8_SQ_PER_CHANNEL"}
_SIZES = ("max_batch_size", "max_num_tokens", "max_input_len", "max_seq_len")


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that decides an engine beside its checkpoint. Lengths are in tokens."""

    max_batch_size: int
    max_num_tokens: int
    max_input_len: int
    max_seq_len: int
    tokens_per_block: int
    logits_dtype: str
    gemm_plugin: str
    multiple_profiles: bool
    quantization: str
    trtllm: str
    tensorrt: str
    container: str
    image: str
    gpu: str
    capability: str

    def arguments(self) -> dict[str, str]:
        """The flags of `trtllm-build` with their values; an empty value is a bare flag."""
        return {
            "--logits_dtype": self.logits_dtype,
            "--gather_generation_logits": "",
            **{f"--{name}": str(getattr(self, name)) for name in _SIZES},
            "--max_beam_width": "1",
            "--kv_cache_type": "paged",
            "--tokens_per_block": str(self.tokens_per_block),
            "--remove_input_padding": "enable",
            "--context_fmha": "enable",
            "--use_paged_context_fmha": "enable",
            "--gpt_attention_plugin": "auto",
            "--gemm_plugin": self.gemm_plugin,
            "--multiple_profiles": "enable" if self.multiple_profiles else "disable",
        }

    def command(
        self, checkpoint: str | Path, output: str | Path, timings: str | Path | None = None
    ) -> list[str]:
        """The argv that builds the engine; `timings` is a file of kernel timings that is read when
        it exists and written at the end, which shortens the next build on the same GPU."""
        command = ["trtllm-build", "--checkpoint_dir", str(checkpoint), "--output_dir", str(output)]
        for flag, value in self.arguments().items():
            command += [flag, value] if value else [flag]
        if timings is not None:
            flags = ("--input_timing_cache", "--output_timing_cache")
            command += [word for flag in flags for word in (flag, str(timings))]
        return command

    @property
    def hash(self) -> str:
        """16 hex digits over every field."""
        return hash_value(asdict(self))[:16]

    def tag(self, checkpoint_digest: str) -> str:
        """The engine's cache key, 12 hex digits: checkpoint content and plan, and with the plan the
        TensorRT-LLM and TensorRT versions, the compute capability and the image."""
        return hash_value([checkpoint_digest, asdict(self)])[:TAG_LENGTH]


def check_spec(spec: TrtllmSpec) -> None:
    """What needs no model to be refused, before anything is trained for it.

    Raises SpecError for a wrong pair of container and version, an unknown GPU, or a quantisation
    that the GPU lacks.
    """
    table = load_compatibility()
    table.container(spec.container, spec.version)
    capability = table.capability(spec.gpu)
    parsed = as_capability(capability)
    if parsed < LEAST_CAPABILITY:
        raise SpecError(f"{spec.gpu} has compute capability {capability}", "8.0 or newer is needed")
    if spec.quantization == "fp8" and parsed < FP8_CAPABILITY:
        raise SpecError(
            f"quantization fp8 needs compute capability 8.9, {spec.gpu} has {capability}",
            "use int8-sq there, or an L4, L40S, H100 or newer",
        )
    if spec.quantization == "int8-sq" and parsed >= SMOOTHQUANT_END:
        raise SpecError(
            f"quantization int8-sq ends below compute capability 10.0, {spec.gpu} has {capability}",
            "use fp8 there",
        )


def check_limits(spec: TrtllmSpec, positions: int, longest_prompt: int) -> None:
    """Raises SpecError when prompts of up to `longest_prompt` tokens do not fit the model's
    `positions` or the scheduler."""
    if longest_prompt + 1 > positions:
        raise SpecError(
            f"the longest prompt has {longest_prompt} tokens, the model has {positions} positions",
            "lower prompt.max_item_tokens or prompt.max_query_tokens",
        )
    if spec.max_num_tokens < longest_prompt:
        raise SpecError(
            f"engine.trtllm.max_num_tokens {spec.max_num_tokens} is below the longest prompt "
            f"({longest_prompt} tokens)",
            f"raise it to {longest_prompt} or more, or shorten the prompt limits",
        )


def make_plan(
    spec: TrtllmSpec, geometry: Geometry, positions: int, longest_prompt: int
) -> BuildPlan:
    """The plan for a checkpoint whose prompts have at most `longest_prompt` tokens.

    `positions` is the model's max_position_embeddings. Raises SpecError as `check_spec` and
    `check_limits`, and for widths that fp8 cannot have.
    """
    check_spec(spec)
    check_limits(spec, positions, longest_prompt)
    table = load_compatibility()
    row = table.container(spec.container, spec.version)
    if spec.quantization == "fp8":
        for name, width in {
            "hidden size": geometry.hidden_size,
            "intermediate size": geometry.intermediate_size,
        }.items():
            if width % 16:
                raise SpecError(
                    f"quantization fp8 needs widths that are multiples of 16, {name} is {width}",
                    "prune to a multiple of 64, or use int8-sq",
                )
    # trtllm-build clips to what a full batch can hold and raises to one block, and writes that
    # number into the engine's config; planned is what will be built.
    most = spec.max_batch_size * (longest_prompt + 1)
    return BuildPlan(
        max_batch_size=spec.max_batch_size,
        max_num_tokens=max(min(spec.max_num_tokens, most), spec.tokens_per_block),
        max_input_len=longest_prompt,
        max_seq_len=longest_prompt + 1,
        tokens_per_block=spec.tokens_per_block,
        logits_dtype=spec.logits_dtype,
        gemm_plugin=spec.gemm_plugin,
        multiple_profiles=spec.multiple_profiles,
        quantization=spec.quantization,
        trtllm=row.trtllm,
        tensorrt=row.tensorrt,
        container=row.container,
        image=table.image_of(row.container, spec.container_digest),
        gpu=spec.gpu,
        capability=table.capability(spec.gpu),
    )


def check_engine_config(
    written: Mapping[str, Any], plan: BuildPlan, checkpoint: Mapping[str, Any]
) -> None:
    """Compare a built engine's `config.json` with its plan and its checkpoint's `config.json`.

    A flag that was ignored, or edited into the file afterwards, does nothing at run time
    (TensorRT-LLM #1228), so the engine is refused. Raises EngineError that lists every difference.
    """
    build = written.get("build_config", {})
    plugins = build.get("plugin_config", {})
    model = written.get("pretrained_config", {})
    wanted: dict[str, tuple[Any, Any]] = {
        "version": (written.get("version"), plan.trtllm),
        **{name: (build.get(name), getattr(plan, name)) for name in _SIZES},
        "max_beam_width": (build.get("max_beam_width"), 1),
        "kv_cache_type": (str(build.get("kv_cache_type")).lower().split(".")[-1], "paged"),
        "gather_generation_logits": (build.get("gather_generation_logits"), True),
        "gather_context_logits": (build.get("gather_context_logits"), False),
        "tokens_per_block": (plugins.get("tokens_per_block"), plan.tokens_per_block),
        "remove_input_padding": (plugins.get("remove_input_padding"), True),
        "use_paged_context_fmha": (plugins.get("use_paged_context_fmha"), True),
        "multiple_profiles": (plugins.get("multiple_profiles"), plan.multiple_profiles),
        "logits_dtype": (model.get("logits_dtype"), plan.logits_dtype),
    }
    for key in (
        *("architecture", "dtype", "num_hidden_layers", "hidden_size", "intermediate_size"),
        *("num_attention_heads", "num_key_value_heads", "head_size", "vocab_size"),
    ):
        wanted[key] = (model.get(key), checkpoint[key])
    algorithm = (model.get("quantization") or {}).get("quant_algo")
    wanted["quant_algo"] = (algorithm, QUANT_ALGORITHMS[plan.quantization])
    # `auto` is stored as the checkpoint's type, `disable` as null.
    gemm = plugins.get("gemm_plugin")
    wanted["gemm_plugin"] = {
        "auto": (gemm not in (None, "fp8"), True),
        "fp8": (gemm, "fp8"),
        "disable": (gemm, None),
    }[plan.gemm_plugin]
    wrong = [f"{key} is {a!r}, planned {b!r}" for key, (a, b) in wanted.items() if a != b]
    if wrong:
        raise EngineError(
            "the built engine is not the planned one: " + "; ".join(wrong),
            "build it again from the plan, in the planned container",
        )
