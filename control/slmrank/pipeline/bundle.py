"""From a bundle spec to its steps: which artifact is made from which, with which settings.

Pure wiring: what each step does stands in `control/pipeline/make.py` and below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from slmrank.data.packaged import ONET_TASKS, SMOLLM2_135M
from slmrank.engine.trtllm.plan import check_spec
from slmrank.errors import DataError, SpecError
from slmrank.hashing import hash_file
from slmrank.pipeline import make, make_engine
from slmrank.pipeline.steps import Step
from slmrank.spec.bundle import PACKAGED_MODEL, BundleSpec, EngineSpec, JsonlData, Target

TRAINING = ("torch", "transformers")
Row = Literal["bm25", "base", "finetuned", "pruned", "recovered", "engine", "served"]


@dataclass(frozen=True)
class Bundle:
    """The steps of one spec."""

    spec: BundleSpec

    @cached_property
    def data(self) -> Step:
        data = self.spec.data
        settings = data.settings()
        if isinstance(data, JsonlData):
            settings |= {name: _hash(getattr(data, name)) for name in ("jobs", "pairs")}
            maker = partial(make.own_data, data)
        else:
            settings["table"] = _hash(data.table) if data.table else ONET_TASKS.identity
            maker = partial(make.onet_data, data)
        return Step(kind="data", title="labelled data", settings=settings, make=maker)

    @cached_property
    def imported(self) -> Step:
        source = self.spec.base.source
        local = _local_checkpoint(source)
        settings = {
            "source": SMOLLM2_135M.identity if local is None else _hash_directory(local),
            "prompt": self.spec.prompt.settings(),
        }
        return Step(
            kind="base",
            title="base model",
            settings=settings,
            make=partial(make.base_model, local, self.spec.prompt),
            tools=() if local is not None else (*TRAINING, "gguf"),
        )

    @cached_property
    def trimmed(self) -> Step:
        if self.spec.trim is None:
            raise SpecError(
                "the spec has no trim section", "add one, for example trim: {tokens: 16384}"
            )
        return Step(
            kind="trimmed",
            title="vocabulary trimming",
            settings=self.spec.trim.settings(),
            inputs={"data": self.data, "checkpoint": self.imported},
            make=partial(make.trimmed, self.spec.trim),
        )

    @property
    def base(self) -> Step:
        """What everything starts from: the imported model, trimmed where the spec asks for it."""
        return self.imported if self.spec.trim is None else self.trimmed

    @cached_property
    def summaries(self) -> Step:
        return Step(
            kind="summaries",
            title="summaries",
            settings=self.spec.summarize.settings(),
            inputs={"data": self.data, "checkpoint": self.base},
            make=partial(make.summaries, self.spec.summarize),
        )

    @cached_property
    def finetuned(self) -> Step:
        teacher = self.spec.finetune.teacher
        settings = self.spec.finetune.settings()
        if teacher is not None:
            settings["teacher"] = _hash_directory(teacher)
        return Step(
            kind="finetuned",
            title="fine-tuning",
            settings=settings,
            inputs={"data": self.data, "summaries": self.summaries, "student": self.base},
            make=partial(make.finetuned, self.spec.finetune, teacher),
            tools=TRAINING,
        )

    @cached_property
    def pruned(self) -> Step:
        if self.spec.prune is None:
            raise SpecError("the spec has no prune section", "add one, see build/demo.yaml")
        return Step(
            kind="pruned",
            title="pruning",
            settings=self.spec.prune.settings(),
            inputs={"data": self.data, "summaries": self.summaries, "checkpoint": self.finetuned},
            make=partial(make.pruned, self.spec.prune),
            tools=(*TRAINING, "scipy"),
        )

    @cached_property
    def recovered(self) -> Step:
        recover = self.spec.recover
        if recover is None:
            raise SpecError("the spec has no recover section", "add one, see build/demo.yaml")
        inputs = {"data": self.data, "summaries": self.summaries, "student": self.pruned}
        if recover.teacher == "finetuned":
            inputs["teacher"] = self.finetuned
        return Step(
            kind="recovered",
            title="recovery",
            settings=recover.settings(),
            inputs=inputs,
            make=partial(make.finetuned, recover, None),
            tools=TRAINING,
        )

    def taught_by(self, teacher: Path) -> Bundle:
        """The same bundle with another teacher of the fine-tuning."""
        finetune = self.spec.finetune.model_copy(update={"teacher": teacher})
        return Bundle(self.spec.model_copy(update={"finetune": finetune}))

    def for_target(self, target: Target | None) -> Bundle:
        """The same bundle for another engine target; the same one for None.

        Raises SpecError when the spec's settings do not fit that target.
        """
        if target is None or target == self.spec.engine.target:
            return self
        given = {**self.spec.engine.model_dump(), "target": target}
        try:
            engine = EngineSpec.model_validate(given)
        except ValidationError as error:
            text = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
            raise SpecError(f"--target {target}: {text}", "change the spec") from error
        return Bundle(self.spec.model_copy(update={"engine": engine}))

    @property
    def served(self) -> Step:
        """The checkpoint that is served: the last one that the spec asks for."""
        if self.spec.recover is not None:
            return self.recovered
        return self.pruned if self.spec.prune is not None else self.finetuned

    @cached_property
    def engine(self) -> Step:
        spec = self.spec.engine
        tools: tuple[str, ...] = (*TRAINING, "openvino", "nncf")
        extra = "local"
        if spec.target != "openvino":
            check_spec(spec.trtllm)
            tools, extra = (*TRAINING, "safetensors"), "train"
            if spec.trtllm.quantization != "none":
                tools, extra = (*tools, "nvidia-modelopt"), "quantize"
        settings = spec.settings()
        if spec.target == "trtllm-engine":
            settings["name"] = self.spec.name  # it stands in the Job's labels
        return Step(
            kind="engine",
            title="engine",
            settings=settings,
            inputs={"data": self.data, "summaries": self.summaries, "checkpoint": self.served},
            make=partial(make_engine.ENGINES[spec.target], self.spec),
            tools=tools,
            extra=extra,
            version=3,
        )

    @cached_property
    def repository(self) -> Step:
        spec = self.spec.engine
        settings: dict[str, Any] = {
            **self.spec.repository.settings(),
            "queue_timeout_us": self.spec.queue_timeout_us,
            "name": self.spec.name,
            "stages": make_engine.stages_hash(spec.target),
        }
        if spec.target != "openvino":
            settings["serving"] = spec.serving_settings()
        return Step(
            kind="repository",
            title="model repository",
            settings=settings,
            inputs={
                "engine": self.engine,
                "summaries": self.summaries,
                "checkpoint": self.served,
            },
            make=partial(make_engine.repository, self.spec),
            version=4,
        )

    def scores(self, row: Row, *, full_text: bool = False, full_queries: bool = False) -> Step:
        """The scores of one row of the quality table.

        `full_queries` restricts the row to the few queries that are also scored on full texts;
        `full_text` scores those texts instead of summaries.
        """
        evaluate = self.spec.evaluate
        few = full_text or full_queries
        settings: dict[str, Any] = {
            "row": row,
            "split": evaluate.split,
            "seed": evaluate.seed,
            "queries": evaluate.full_text_queries if few else evaluate.queries,
            "full_text_tokens": evaluate.full_text_tokens if full_text else None,
        }
        inputs: dict[str, Step] = {"data": self.data, "summaries": self.summaries}
        tools: tuple[str, ...] = ()
        if row in ("base", "finetuned", "pruned", "recovered"):
            inputs["checkpoint"] = getattr(self, row)
            settings["dtype"] = evaluate.dtype
            tools = TRAINING
        elif row == "engine":
            inputs |= {"checkpoint": self.served, "engine": self.engine}
            tools = ("openvino",) if self.spec.engine.target == "openvino" else TRAINING
        elif row == "served":
            inputs |= {"checkpoint": self.served, "repository": self.repository}
        return Step(
            kind="scores",
            title=f"scores: {row}"
            + (", full text" if full_text else ", few queries" if few else ""),
            settings=settings,
            inputs=inputs,
            make=partial(make.scores, settings),
            tools=tools,
        )


def _local_checkpoint(source: str) -> Path | None:
    """The directory of a local base model, None for the packaged one."""
    if source == PACKAGED_MODEL:
        return None
    path = Path(source)
    if not path.is_dir():
        raise SpecError(
            f"base.source {source!r} is neither {PACKAGED_MODEL} nor a directory",
            "give the path of a Hugging Face checkpoint",
        )
    return path


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check the path") from error


def _hash_directory(path: Path) -> Mapping[str, str]:
    names = ("config.json", "tokenizer.json", "ranker.json")
    files = [path / name for name in names if (path / name).is_file()]
    return {file.name: hash_file(file) for file in [*files, *sorted(path.glob("*.safetensors"))]}
