"""The bundle spec: one YAML file that says what is made, from what, and how it is served.

Each field's description is its documentation (`control spec --schema` prints it). Unknown keys are
errors. Units stand in the names. Paths are relative to the spec file.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from slmrank.errors import SpecError
from slmrank.spec.deploy import DeploySpec
from slmrank.spec.section import Section

PACKAGED_MODEL = "smollm2-135m-instruct"


class CandidateSpec(Section):
    train: int = Field(8, ge=2, description="jobs judged per training query")
    dev: int = Field(16, ge=2, description="jobs judged per development query")
    test: int = Field(16, ge=2, description="jobs judged per test query")


class OnetData(Section):
    """The example job-search set, built from the O*NET tables."""

    source: Literal["onet"]
    table: Path | None = Field(None, description="Task_DWA.csv; unset: out of the PyPI package")
    seed: int = Field(0, description="seed of postings, queries, splits and candidates")
    postings_per_occupation: int = Field(2, ge=1, le=50, description="postings per occupation")
    queries_per_occupation: int = Field(3, ge=1, le=50, description="queries per occupation")
    candidates: CandidateSpec = Field(default_factory=lambda: CandidateSpec())
    test_share: float = Field(0.2, gt=0, lt=0.8, description="share of occupations only tested")
    dev_share: float = Field(0.1, ge=0, lt=0.5, description="share of occupations for calibration")
    occupations: int | None = Field(
        None, ge=20, description="use only this many occupations, spread evenly; unset: all"
    )


class JsonlData(Section):
    """Your own jobs and judged pairs."""

    source: Literal["jsonl"]
    jobs: Path = Field(description="JSONL: job_id, title, company, location, description")
    pairs: Path = Field(description="JSONL: query, job_id, grade 0..4, optional split")
    seed: int = Field(0, description="seed of the split for queries that name none")
    test_share: float = Field(0.2, gt=0, lt=0.8, description="share of queries only tested")
    dev_share: float = Field(0.1, ge=0, lt=0.5, description="share of queries for calibration")


class BaseSpec(Section):
    """The model to start from."""

    source: str = Field(
        PACKAGED_MODEL,
        description="`smollm2-135m-instruct`, or a local Llama/Qwen2/Qwen3 checkpoint directory",
    )


class PromptSpec(Section):
    """The fixed wording; query and job text are tokenised apart from it."""

    prefix: str = Field(
        "Does the job match the search?\nSearch: {query}\n", description="must hold {query}"
    )
    closing: str = Field("Match:", description="closing question of every item, never truncated")
    yes: str = Field(" Yes", description="answer whose token means relevant; one token")
    no: str = Field(" No", description="answer whose token means not relevant; one token")
    max_item_tokens: int = Field(
        128, ge=8, le=8192, description="longest item incl. closing question; longer text is cut"
    )
    max_query_tokens: int = Field(
        96, ge=4, le=4096, description="longest query; a longer one is refused"
    )


class SummarizeSpec(Section):
    """Query-independent summaries of job descriptions."""

    method: Literal["extractive"] = Field("extractive", description="how summaries are made")
    budget_tokens: int = Field(56, ge=8, le=2048, description="longest summary of a description")


class TrainSpec(Section):
    """One fine-tuning run: KL to the soft target on the two label logits."""

    steps: int = Field(64, ge=1, description="optimizer steps")
    queries_per_step: int = Field(4, ge=1, description="queries in a step")
    items_per_query: int = Field(4, ge=1, description="jobs per query in a step")
    learning_rate: float = Field(5e-5, gt=0, description="peak rate of AdamW, cosine to a tenth")
    warmup_steps: int = Field(8, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    seed: int = Field(0, description="seed of batches")
    checkpoint_every: int = Field(16, ge=1, description="steps between resumable states")


class TrimSpec(Section):
    """Vocabulary trimming of the base model: embedding, head and tokenizer together."""

    tokens: int = Field(
        16384,
        ge=512,
        description="vocabulary rows kept, a multiple of 64: what jobs and training queries use, "
        "then the tokenizer's own most frequent",
    )

    @model_validator(mode="after")
    def _aligned(self) -> TrimSpec:
        if self.tokens % 64:
            below = self.tokens // 64 * 64
            raise ValueError(
                f"trim.tokens {self.tokens} is not a multiple of 64; use {below} or {below + 64}"
            )
        return self


class FinetuneSpec(TrainSpec):
    """Fine-tuning of the base model."""

    teacher: Path | None = Field(
        None, description="ranker checkpoint whose p is the target; unset: grade / 4"
    )


class RecoverSpec(TrainSpec):
    """Fine-tuning after pruning."""

    teacher: Literal["finetuned", "labels"] = Field(
        "finetuned", description="target: the unpruned fine-tuned model's p, or the grades"
    )


class PruneSpec(Section):
    """Structured pruning: OSSCAR on MLP neurons, then late blocks are removed."""

    ffn: int = Field(1024, ge=64, description="MLP neurons kept per block; a multiple of 64")
    blocks: int = Field(24, ge=1, description="blocks kept; the last ones are removed")
    method: Literal["osscar", "magnitude", "magnitude_refit"] = Field(
        "osscar", description="selection and refit; the others are baselines"
    )
    calibration_prompts: int = Field(192, ge=4, description="training prompts for calibration")
    damping: float = Field(0.01, gt=0, description="ridge on the Hessian, share of its mean diag")
    neurons_per_round: int = Field(16, ge=1, description="neurons dropped between two updates")
    seed: int = Field(0, description="seed of the calibration sample")

    @model_validator(mode="after")
    def _widths(self) -> PruneSpec:
        if self.ffn % 64:
            below = self.ffn // 64 * 64
            raise ValueError(
                f"prune.ffn {self.ffn} is not a multiple of 64; use {below} or {below + 64}"
            )
        return self


class EvaluateSpec(Section):
    """Quality on held-out queries."""

    split: Literal["dev", "test"] = Field("test", description="which pairs")
    queries: int | None = Field(None, ge=1, description="sample of queries; unset: all")
    full_text_queries: int = Field(
        0, ge=0, description="queries also scored on full texts; 0: none (it is slow on a CPU)"
    )
    full_text_tokens: int = Field(1024, ge=64, description="item limit of the full-text rows")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision of the reference scorer"
    )
    bootstrap: int = Field(2000, ge=100, description="resamples over queries for the intervals")
    seed: int = Field(0, description="seed of sample and bootstrap")


class ParitySpec(Section):
    """What an engine must satisfy against the float32 reference on held-out pairs."""

    pairs: int = Field(128, ge=8, description="pairs compared")
    max_mean_abs_dp: float = Field(0.02, gt=0, description="largest mean |p_engine - p_reference|")
    max_abs_dp: float = Field(0.35, gt=0, description="largest single |p_engine - p_reference|")
    min_pair_order: float = Field(
        0.97,
        gt=0.5,
        le=1,
        description="least share of same-query pairs, apart by over 0.05 in p, ordered alike",
    )


Target = Literal["openvino", "trtllm-engine", "trtllm-llmapi"]


class TrtllmSpec(Section):
    """TensorRT-LLM, for the targets trtllm-engine and trtllm-llmapi."""

    dtype: Literal["bfloat16", "float16"] = Field("bfloat16", description="type of the weights")
    quantization: Literal["none", "fp8", "int8-sq"] = Field(
        "none",
        description="fp8: weights and activations, Ada or Hopper and newer; int8-sq: SmoothQuant "
        "W8A8; both calibrated by nvidia-modelopt; trtllm-engine only",
    )
    calibration_prompts: int = Field(64, ge=8, description="prompts seen by the calibration")
    version: str = Field("1.2.1", description="TensorRT-LLM version")
    container: str = Field(
        "26.07", pattern=r"^\d\d\.\d\d$", description="tag of NVIDIA's tritonserver container"
    )
    container_digest: str | None = Field(
        None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="digest of that container; unset: the tag, which can move",
    )
    image: str = Field(
        "slmrank-gpu:0.1.0", description="serving image that you built from build/gpu.Dockerfile"
    )
    gpu: str = Field(
        "NVIDIA-H200",
        description="GPU product that the engine is built for, as in the node label "
        "nvidia.com/gpu.product; an engine runs on no other",
    )
    max_batch_size: int = Field(
        256, ge=1, le=4096, description="prompts that the engine schedules together"
    )
    max_num_tokens: int = Field(
        16384, ge=64, description="packed prompt tokens in one iteration: the prefill limit"
    )
    tokens_per_block: Literal[16, 32, 64, 128] = Field(
        32, description="KV-cache block; a shared prefix is reused in whole blocks"
    )
    gemm_plugin: Literal["auto", "fp8", "disable"] = Field(
        "auto", description="GEMM plugin; fp8 goes with quantization fp8"
    )
    multiple_profiles: bool = Field(
        True, description="several optimisation profiles: slower build, better kernels"
    )
    logits_dtype: Literal["float32", "float16"] = Field("float32", description="type of logits")
    kv_cache_reuse: bool = Field(True, description="reuse the blocks of a shared query prefix")
    kv_cache_fraction: float = Field(
        0.25, gt=0, lt=1, description="share of free GPU memory for the KV cache"
    )
    engines: str = Field(
        "/engines",
        pattern=r"^/",
        description="directory of engines where the server runs; the repository points into it",
    )
    ranker_instances: int = Field(
        2, ge=1, le=64, description="fan-out processes of trtllm-engine; each takes one batch"
    )
    max_in_flight: int = Field(
        256, ge=1, description="prompts that one fan-out process keeps in the engine"
    )
    full_template: bool = Field(
        False, description="declare every tensor and parameter of the backend, not only those used"
    )

    @model_validator(mode="after")
    def _together(self) -> TrtllmSpec:
        if self.gemm_plugin == "fp8" and self.quantization != "fp8":
            raise ValueError("trtllm.gemm_plugin fp8 needs quantization fp8; use auto")
        return self


class EngineSpec(Section):
    """The compiled ranker. `parity` holds for every target, `trtllm` for the two GPU targets, the
    rest for openvino, so that one spec serves all targets."""

    target: Target = Field("openvino", description="inference engine")
    precision: Literal["float32", "bfloat16", "int8-weights", "int8"] = Field(
        "int8",
        description="openvino: int8: weights and activations by NNCF SmoothQuant, item passes "
        "only; int8-weights: weights, activations quantised at run time",
    )
    calibration_prompts: int = Field(96, ge=8, description="items seen by INT8 calibration")
    smooth_quant_alpha: float = Field(0.65, ge=0, le=1, description="SmoothQuant strength")
    max_batch_items: int = Field(32, ge=1, le=512, description="items in one engine call")
    parity: ParitySpec = Field(default_factory=lambda: ParitySpec())
    trtllm: TrtllmSpec = Field(default_factory=lambda: TrtllmSpec())

    def settings(self) -> dict[str, Any]:
        """What decides the engine of this target: another target's settings do not."""
        given = super().settings()
        if self.target == "openvino":
            return {name: value for name, value in given.items() if name != "trtllm"}
        own = given["trtllm"]
        for name in _SERVING_ONLY:
            own.pop(name)
        return {"target": self.target, "parity": given["parity"], "trtllm": own}

    def serving_settings(self) -> dict[str, Any]:
        """What decides the repository of a GPU target beside its engine."""
        given = self.trtllm.settings()
        return {name: given[name] for name in _SERVING_ONLY}

    @model_validator(mode="after")
    def _quantised(self) -> EngineSpec:
        if self.target == "trtllm-llmapi" and self.trtllm.quantization != "none":
            raise ValueError(
                f"trtllm.quantization {self.trtllm.quantization} is for the target trtllm-engine; "
                "trtllm-llmapi takes none"
            )
        return self


_SERVING_ONLY = (
    "kv_cache_reuse",
    "kv_cache_fraction",
    "ranker_instances",
    "max_in_flight",
    "full_template",
)


class RepositorySpec(Section):
    """The Triton model repository."""

    max_batch_size: int = Field(32, ge=1, description="requests joined in one execution")
    max_queue_delay_us: int = Field(500, ge=0, description="wait for requests to join")
    max_queue_size: int = Field(
        64, ge=1, description="requests waiting in one stage; above: refused at once"
    )
    queue_timeout_us: int | None = Field(
        None,
        ge=1,
        description="longest wait in one stage; above: refused; unset: twice sweep.slo.latency_ms, "
        "because nobody waits for a request that is so far beyond the objective",
    )
    max_items: int = Field(1000, ge=1, description="jobs per request; above: refused")
    threads: int = Field(0, ge=0, description="threads of the CPU engine; 0: all cores")
    instances: int = Field(
        1, ge=1, le=64, description="processes of the CPU engine, each with its own threads"
    )


class SloSpec(Section):
    """The service-level objective, and how exactly its rate is searched."""

    latency_ms: float = Field(500, gt=0, description="limit of the request latency")
    percentile: Literal[95, 99] = Field(95, description="which percentile must stay below it")
    requests: int = Field(
        80, ge=20, description="requests behind one percentile; windows are widened to hold them"
    )
    confirmations: int = Field(3, ge=1, le=9, description="runs that must hold at the found rate")
    precision: float = Field(
        0.1, gt=0.01, lt=1, description="width of the final bracket, share of the rate"
    )


class SweepSpec(Section):
    """Load points: items per request x tokens per item x query tokens x load."""

    items: list[int] = Field(default_factory=lambda: [1, 8], min_length=1)
    tokens: list[int] = Field(
        default_factory=lambda: [32, 96],
        min_length=1,
        description="tokens per item, closing question included; not used with texts: store",
    )
    query_tokens: list[int] = Field(
        default_factory=list, description="tokens per query; empty: real queries as they are"
    )
    concurrency: list[int] = Field(
        default_factory=lambda: [1, 2], description="closed loop: requests in flight"
    )
    rates: list[float] = Field(
        default_factory=list, description="open loop: requests per second, Poisson arrivals"
    )
    texts: Literal["text", "store"] = Field(
        "text",
        description="text: job texts cut to exact lengths; store: job ids, looked up as in service",
    )
    window_ms: int = Field(2000, ge=200, description="measurement window of perf_analyzer (-p)")
    trials: int = Field(6, ge=3, description="windows tried before a point counts as unstable")
    stability_percent: float = Field(15, gt=0, description="allowed spread of three windows (-s)")
    requests: int = Field(24, ge=2, description="distinct requests in the input pool of a point")
    seed: int = Field(0, description="seed of the pool and of the arrivals")
    slo: SloSpec = Field(default_factory=lambda: SloSpec())

    @model_validator(mode="after")
    def _positive(self) -> SweepSpec:
        for name in ("items", "tokens", "query_tokens", "concurrency"):
            for value in getattr(self, name):
                if value < 1:
                    raise ValueError(f"sweep.{name} holds {value}, values start at 1")
        if any(rate <= 0 for rate in self.rates):
            raise ValueError(f"sweep.rates holds {min(self.rates)}, rates are above 0")
        if not self.concurrency and not self.rates:
            raise ValueError("sweep needs a load: fill concurrency or rates")
        return self


class BundleSpec(Section):
    """A whole bundle. Leave `trim`, `prune` and `recover` out to serve the fine-tuned model."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="name in reports")
    data: OnetData | JsonlData = Field(discriminator="source")
    base: BaseSpec = Field(default_factory=lambda: BaseSpec())
    prompt: PromptSpec = Field(default_factory=lambda: PromptSpec())
    trim: TrimSpec | None = None
    summarize: SummarizeSpec = Field(default_factory=lambda: SummarizeSpec())
    finetune: FinetuneSpec = Field(default_factory=lambda: FinetuneSpec())
    prune: PruneSpec | None = None
    recover: RecoverSpec | None = None
    evaluate: EvaluateSpec = Field(default_factory=lambda: EvaluateSpec())
    engine: EngineSpec = Field(default_factory=lambda: EngineSpec())
    repository: RepositorySpec = Field(default_factory=lambda: RepositorySpec())
    sweep: SweepSpec = Field(default_factory=lambda: SweepSpec())
    deploy: DeploySpec = Field(default_factory=lambda: DeploySpec())

    @property
    def queue_timeout_us(self) -> int:
        """Longest wait in one stage of the repository, in microseconds."""
        own = self.repository.queue_timeout_us
        return own if own is not None else round(2 * self.sweep.slo.latency_ms * 1000)

    @model_validator(mode="after")
    def _consistent(self) -> BundleSpec:
        if self.recover is not None and self.prune is None:
            raise ValueError("recover needs a prune section; add one or remove recover")
        if "{query}" not in self.prompt.prefix:
            raise ValueError(f"prompt.prefix {self.prompt.prefix!r} must hold {{query}}")
        return self


def load_spec(path: Path) -> BundleSpec:
    """Read a spec file. Relative paths inside become relative to the file.

    A file with the key `extends: other.yaml` is an overlay: its keys replace those of the other
    file, whose folder its paths then belong to. Raises SpecError that names the key, the rule and,
    for an unknown key, the nearest known one.
    """
    loaded, folder = _read(path, ())
    return parse_spec(loaded, folder, str(path))


def _read(path: Path, seen: tuple[str, ...]) -> tuple[dict[str, Any], Path]:
    """The mapping of a spec file with what it extends, and the folder of its paths."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(
            f"cannot read spec {path}: {error.strerror}", "the shipped one is build/demo.yaml"
        ) from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is not YAML: {error}", "check the indentation") from error
    if not isinstance(loaded, dict):
        raise SpecError(f"{path} holds no mapping", "start from build/demo.yaml")
    base = loaded.pop("extends", None)
    if base is None:
        return loaded, path.parent
    if str(path.resolve()) in seen:
        raise SpecError(f"{path} extends itself", "remove the key extends")
    below, folder = _read(path.parent / str(base), (*seen, str(path.resolve())))
    return _merged(below, loaded), folder


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with the keys of `above`, section by section; null removes a key."""
    made = dict(below)
    for key, value in above.items():
        if value is None:
            made.pop(key, None)
        elif isinstance(value, dict) and isinstance(made.get(key), dict):
            made[key] = _merged(made[key], value)
        else:
            made[key] = value
    return made


def parse_spec(values: dict[str, Any], folder: Path, name: str = "spec") -> BundleSpec:
    """Validate a spec given as a mapping; see `load_spec`."""
    try:
        spec = BundleSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError(*_explain(error, name)) from error
    return _resolve_paths(spec, folder)


def _resolve_paths(spec: BundleSpec, folder: Path) -> BundleSpec:
    data = spec.data
    changes: dict[str, Any] = {}
    if isinstance(data, JsonlData):
        changes["data"] = data.model_copy(
            update={"jobs": folder / data.jobs, "pairs": folder / data.pairs}
        )
    elif data.table is not None:
        changes["data"] = data.model_copy(update={"table": folder / data.table})
    if spec.base.source != PACKAGED_MODEL:
        source = str(folder / Path(spec.base.source).expanduser())
        changes["base"] = spec.base.model_copy(update={"source": source})
    if spec.finetune.teacher is not None:
        teacher = folder / spec.finetune.teacher
        changes["finetune"] = spec.finetune.model_copy(update={"teacher": teacher})
    return spec.model_copy(update=changes)


def _explain(error: ValidationError, name: str) -> tuple[str, str]:
    """All faults in one message, and a remedy for the first."""
    lines, hint = [], ""
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"] if part not in ("onet", "jsonl"))
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            key = str(fault["loc"][-1])
            known = _known_keys(fault["loc"])
            near = difflib.get_close_matches(key, known, n=1)
            text = "unknown key" + (f"; did you mean {near[0]!r}?" if near else "")
            hint = hint or f"known keys here: {', '.join(sorted(known))}"
        elif fault["type"] != "value_error":
            text = f"{text} (got {fault['input']!r})"
        lines.append(f"{where}: {text}" if where else text)
    return f"{name}: " + "; ".join(
        lines
    ), hint or "correct the value; `control spec` shows all keys"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = BundleSpec
    for part in location[:-1]:
        if part in ("onet", "jsonl"):
            model = {"onet": OnetData, "jsonl": JsonlData}[str(part)]
            continue
        field = model.model_fields.get(part)
        options = getattr(field.annotation, "__args__", (field.annotation,)) if field else ()
        models = [one for one in options if isinstance(one, type) and issubclass(one, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)
