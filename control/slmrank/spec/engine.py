"""Section `engine`: the compiled ranker, with one sub-section for each family of targets.

One spec serves several targets: `target` chooses, and only that target's sub-section decides the
engine. A target that was registered elsewhere declares its name, and its own sub-section, here.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from slmrank.errors import SpecError
from slmrank.spec.section import Section


class ParitySpec(Section):
    """What an engine must satisfy against the float32 reference on held-out pairs."""

    pairs: int = Field(128, ge=8, description="pairs compared")
    max_mean_abs_dp: float = Field(0.02, gt=0, description="largest mean |p_engine - p_reference|")
    max_abs_dp: float = Field(0.35, gt=0, description="largest single |p_engine - p_reference|")
    min_pair_order: float = Field(0.97, gt=0.5, le=1)
    """least share of same-query pairs, apart by over 0.05 in p, ordered alike"""


class OpenVinoSpec(Section):
    """OpenVINO on CPUs."""

    precision: Literal["auto", "float32", "bfloat16", "int8-weights", "int8"] = "auto"
    """int8: weights and activations, smoothed, except where that moves p too far; int8-weights:
    weights, activations quantised at run time; auto: int8 where the processor that builds has
    products of it (VNNI, AMX), else float32, which is faster there"""
    calibration_prompts: int = Field(160, ge=8, description="items seen by INT8 calibration")
    smooth_quant_alpha: float | None = Field(None, ge=0, le=1)
    """SmoothQuant's strength in all layers; unset: for each input what moves p least"""
    max_batch_items: int = Field(32, ge=1, le=512, description="items in one engine call")


class TorchSpec(Section):
    """PyTorch, on an NVIDIA GPU where the server has one, else on the CPU."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the server runs it; auto: a GPU that torch sees, else the CPU"""
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="type of the weights")
    max_batch_tokens: int = Field(16384, ge=64)
    """tokens of queries and items in one pass"""


class TrtllmSpec(Section):
    """TensorRT-LLM, for the targets trtllm-engine and trtllm-llmapi."""

    dtype: Literal["bfloat16", "float16"] = Field("bfloat16", description="type of the weights")
    quantization: Literal["none", "fp8", "int8-sq"] = "none"
    """fp8: weights and activations, Ada or Hopper and newer; int8-sq: SmoothQuant W8A8; both
    calibrated by nvidia-modelopt; trtllm-engine only"""
    calibration_prompts: int = Field(64, ge=8, description="prompts seen by the calibration")
    version: str = Field("1.2.1", description="TensorRT-LLM version")
    container: str = Field("26.07", pattern=r"^\d\d\.\d\d$")
    """tag of NVIDIA's tritonserver container"""
    container_digest: str | None = Field(None, pattern="^sha256:[0-9a-f]{64}$")
    """digest of that container; unset: the tag, which can move"""
    gpu: str = "NVIDIA-H200"
    """GPU product that the engine is built for, as in the node label nvidia.com/gpu.product; an
    engine runs on no other"""
    max_batch_size: int = Field(256, ge=1, le=4096)
    """prompts that the engine schedules together"""
    max_num_tokens: int = Field(16384, ge=64)
    """packed prompt tokens in one iteration: the prefill limit"""
    tokens_per_block: Literal[16, 32, 64, 128] = 32
    """KV-cache block; a shared prefix is reused in whole blocks"""
    gemm_plugin: Literal["auto", "fp8", "disable"] = "auto"
    """GEMM plugin; fp8 goes with quantization fp8"""
    multiple_profiles: bool = True
    """several optimisation profiles: slower build, better kernels"""
    logits_dtype: Literal["float32", "float16"] = Field("float32", description="type of logits")
    kv_cache_reuse: bool = True
    """reuse the blocks of a shared query prefix; sweeps repeat their requests, whose prompts then
    lie there whole: with false they give the lower bound of a rate"""
    kv_cache_fraction: float = Field(0.25, gt=0, lt=1)
    """share of free GPU memory for the KV cache"""
    engines: str = Field("/engines", pattern="^/")
    """directory of engines where the server runs; the repository points into it"""
    ranker_instances: int = Field(2, ge=1, le=64)
    """fan-out processes of trtllm-engine; each takes one batch"""
    max_in_flight: int = Field(256, ge=1)
    """prompts that one fan-out process keeps in the engine"""

    @model_validator(mode="after")
    def _together(self) -> TrtllmSpec:
        if self.gemm_plugin == "fp8" and self.quantization != "fp8":
            raise ValueError("trtllm.gemm_plugin fp8 needs quantization fp8; use auto")
        return self


# Target name -> the sub-section that it reads; None: a target without settings.
TARGET_SECTIONS: dict[str, str | None] = {
    "openvino": "openvino",
    "torch": "torch",
    "trtllm-engine": "trtllm",
    "trtllm-llmapi": "trtllm",
}
# Sub-sections of targets that were registered elsewhere, by name.
OTHER_SECTIONS: dict[str, type[Section]] = {}


def _read_section(name: str, values: Any) -> Section:
    """A registered sub-section; its faults carry its name."""
    if isinstance(values, Section):
        return values
    try:
        return OTHER_SECTIONS[name].model_validate(values)
    except ValidationError as error:
        faults: list[Any] = [
            {**fault, "loc": (name, *fault["loc"])} for fault in error.errors(include_url=False)
        ]
        raise ValidationError.from_exception_data(error.title, faults) from None


def _with(below: Any, above: Any) -> Any:
    """Settings with those that change: one key leaves the others as they were."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{name: _with(below.get(name), one) for name, one in above.items()}}


class EngineSpec(Section):
    """The compiled ranker. `parity` holds for every target, the other sub-sections for theirs."""

    target: str = Field("openvino", description=f"one of {', '.join(TARGET_SECTIONS)}")
    parity: ParitySpec = Field(default_factory=ParitySpec)
    openvino: OpenVinoSpec = Field(default_factory=OpenVinoSpec)
    torch: TorchSpec = Field(default_factory=TorchSpec)
    trtllm: TrtllmSpec = Field(default_factory=TrtllmSpec)
    other: dict[str, SerializeAsAny[Section]] = Field(default_factory=dict)
    """sub-sections of targets that were registered elsewhere"""

    @model_validator(mode="before")
    @classmethod
    def _read_other(cls, values: Any) -> Any:
        """`engine.NAME` of a declared sub-section goes into `other`."""
        if not isinstance(values, dict):
            return values
        given = dict(values)
        other = given.pop("other", {})
        unknown = sorted(set(other) - set(OTHER_SECTIONS)) if isinstance(other, dict) else [other]
        if unknown:
            known = ", ".join(OTHER_SECTIONS) or "nothing"
            raise ValueError(f"engine.other holds {unknown[0]!r}; registered: {known}")
        other = dict(other)
        for name in [name for name in OTHER_SECTIONS if name in given]:
            before, now = other.get(name, {}), given.pop(name)
            if isinstance(before, Section):
                before = before.model_dump(exclude_unset=True)
            other[name] = _with(before, now)
        parsed = {name: _read_section(name, one) for name, one in other.items()}
        return {**given, "other": parsed} if parsed else given

    @field_validator("target")
    @classmethod
    def _known(cls, target: str) -> str:
        if target not in TARGET_SECTIONS:
            near = difflib.get_close_matches(target, TARGET_SECTIONS, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{target!r} is none of {', '.join(TARGET_SECTIONS)}{meant}")
        return target

    @model_validator(mode="after")
    def _fits(self) -> EngineSpec:
        if self.target == "trtllm-llmapi" and self.trtllm.quantization != "none":
            raise ValueError(
                f"trtllm.quantization {self.trtllm.quantization} is for the target trtllm-engine; "
                "trtllm-llmapi takes none"
            )
        return self

    @property
    def section(self) -> Section:
        """The sub-section of the chosen target."""
        name = TARGET_SECTIONS[self.target]
        if name is None:
            return Section()
        if name in OTHER_SECTIONS:
            return self.other.get(name, OTHER_SECTIONS[name]())
        section: Section = getattr(self, name)
        return section


def declare_target(name: str, section: type[Section] | None = None) -> None:
    """Let specs name a target that was registered elsewhere; `engine.NAME` holds its settings. One
    that replaces a built-in target has its settings. Raises SpecError for other ones."""
    built_in = EngineSpec.model_fields.get(TARGET_SECTIONS.get(name) or name)
    if section is None or (built_in is not None and built_in.annotation is section):
        TARGET_SECTIONS.setdefault(name, None)
    elif built_in is not None:
        raise SpecError(
            f"engine.{name} is a section of its own already, and no {section.__name__}",
            "register the target under another name, or without a section",
        )
    else:
        TARGET_SECTIONS[name] = name
        OTHER_SECTIONS[name] = section
