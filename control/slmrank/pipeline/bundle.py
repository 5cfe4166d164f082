"""From a bundle spec to its steps: which artifact is made from which, with which settings.

Pure wiring: what each step does stands in `slmrank/pipeline/stages`. Nothing here needs torch, so
that an operator's machine finds what a training machine made.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from slmrank.code_hash import code_hash
from slmrank.data.packaged import SMOLLM2_135M
from slmrank.engine.targets.base import EngineTarget
from slmrank.engine.targets.registry import TARGETS
from slmrank.errors import SpecError
from slmrank.pipeline.data_step import STAGES, data_step
from slmrank.pipeline.local_files import (
    ADAPTER_FILES,
    checkpoint_hashes,
    file_hash,
    folder_hashes,
    local_checkpoint,
    teacher_hashes,
)
from slmrank.pipeline.stages.base_model import make_base_model
from slmrank.pipeline.stages.engine import make_engine
from slmrank.pipeline.stages.repository import make_repository
from slmrank.pipeline.stages.summaries import fitted_folder, make_summaries, make_summarizer
from slmrank.pipeline.steps import Step
from slmrank.repository.generate import prepare_stage
from slmrank.shipped import shipped
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.compress import SummarizeSpec
from slmrank.spec.reading import DEMO
from slmrank.spec.train import TrainSpec
from slmrank.store.redis_scores import check_place
from slmrank.store.registry import embedded_url, is_shared, store_kind
from slmrank.summarize.registry import SUMMARIZERS

TRAINING = ("torch", "transformers")


@dataclass(frozen=True)
class Bundle:
    """The steps of one spec."""

    spec: BundleSpec

    @cached_property
    def target(self) -> EngineTarget:
        target = TARGETS.get(self.spec.engine.target)
        target.check(self.spec.engine)
        return target

    @cached_property
    def data(self) -> Step:
        return data_step(self.spec.data, self.spec.name)

    @cached_property
    def _set_data(self) -> dict[str, Step]:
        return {}

    def set_data(self, name: str) -> Step:
        """The data of a named evaluation set; its files are hashed once, however many rows are
        scored on it. Raises SpecError for a set that the spec does not name."""
        sets = self.spec.evaluate.sets
        if name not in sets:
            raise SpecError(
                f"the spec has no evaluation set {name!r}; it has "
                f"{', '.join(sorted(sets)) or 'none'}",
                "name one under evaluate.sets, with its source as in `data`",
            )
        if name not in self._set_data:
            self._set_data[name] = data_step(sets[name], self.spec.name, tested_set=name)
        return self._set_data[name]

    @cached_property
    def imported(self) -> Step:
        local = local_checkpoint(self.spec.base.source)
        settings = {
            "source": SMOLLM2_135M.identity if local is None else checkpoint_hashes(local),
            "prompt": self.spec.wording.settings(),
        }
        return self._step(
            kind="base",
            title="base model",
            settings=settings,
            make=partial(make_base_model, local, self.spec.wording),
            code=(f"{STAGES}.base_model",),
            tools=() if local is not None else (*TRAINING, "gguf"),
        )

    @cached_property
    def trimmed(self) -> Step:
        spec = _required(self.spec.trim, "trim", "for example trim: {tokens: 16384}")
        return self._step(
            kind="trimmed",
            title="vocabulary trimming",
            settings=spec.settings(),
            make=partial(_made_by, "trimmed", spec),
            inputs={"data": self.data, "checkpoint": self.imported},
            code=(f"{STAGES}.trimmed",),
        )

    @property
    def base(self) -> Step:
        """What everything starts from: the imported model, trimmed where the spec asks for it."""
        return self.imported if self.spec.trim is None else self.trimmed

    @cached_property
    def summarizer(self) -> Step:
        """What is fitted once."""
        return self.summarizer_of(self.spec.summarize)

    def summarizer_of(self, spec: SummarizeSpec) -> Step:
        """What is fitted once for another section `summarize`, with this bundle's own ranker."""
        kind = SUMMARIZERS.get(spec.method)
        inputs = {"checkpoint": self.base}
        settings = spec.settings()
        if spec.fitted is not None:
            settings["fitted"] = folder_hashes(fitted_folder(spec.fitted))
        else:
            inputs["data"] = self.data
            if kind.needs_ranker:
                inputs["ranker"] = self.first_ranker
        # What is fitted serves any budget.
        unread = ("store", "max_cut_share", "budget_tokens", "generative")
        for name in unread if kind.needs_ranker else (*unread, "learn_jobs"):
            settings.pop(name)
        if spec.method == "generative":
            settings["generative"] = spec.generative_settings()
        return self._step(
            kind="summarizer",
            title="summarizer",
            settings=settings,
            make=partial(make_summarizer, spec),
            inputs=inputs,
            code=(f"{STAGES}.summaries", type(kind).__module__),
            tools=TRAINING if kind.needs_ranker and spec.fitted is None else (),
        )

    @cached_property
    def first_ranker(self) -> Step:
        """The ranker that a summarizer can be fitted with: the bundle's, or where its own summaries
        wait for a ranker, one that is trained on those of the default method."""
        own = self.spec.summarize
        if own.fitted is not None or not SUMMARIZERS.get(own.method).needs_ranker:
            return self.finetuned
        default = SummarizeSpec.model_fields["method"].default
        first = {"method": default, "options": {}, "fitted": None}
        summarize = own.model_copy(update=first)
        return Bundle(self.spec.model_copy(update={"summarize": summarize})).finetuned

    @cached_property
    def summaries(self) -> Step:
        return self.summaries_of(self.data)

    def summaries_of(self, data: Step, spec: SummarizeSpec | None = None) -> Step:
        """The store of these jobs' summaries, by the bundle's summarizer or by another one."""
        own = spec is None
        fitted = self.summarizer if spec is None else self.summarizer_of(spec)
        spec = spec or self.spec.summarize
        url = embedded_url(spec.store)
        kind, _ = store_kind(url)
        settings = {
            "store": url,
            "max_cut_share": spec.max_cut_share,
            "budget_tokens": spec.budget_tokens,
        }
        code = (type(SUMMARIZERS.get(spec.method)).__module__, type(kind).__module__)
        return self._step(
            kind="summaries",
            title="summaries" if own else f"summaries: {spec.method}, {spec.budget_tokens} tokens",
            settings=settings,
            make=partial(make_summaries, spec),
            inputs={"data": data, "checkpoint": self.base, "summarizer": fitted},
            code=(f"{STAGES}.summaries", *code),
        )

    @cached_property
    def finetuned(self) -> Step:
        """The ranker before it is pruned: trained, or the base model as it is."""
        spec = self.spec.finetune
        if spec is None:
            return self.base
        settings = _trained_by(spec)
        if spec.teacher is not None:
            settings["teacher"] = teacher_hashes(spec.teacher)
        return self._step(
            kind="finetuned",
            title="fine-tuning",
            settings=settings,
            make=partial(_made_by, "trained", spec, spec.teacher),
            inputs={"data": self.data, "summaries": self.summaries, "student": self.base},
            code=(f"{STAGES}.trained",),
            tools=TRAINING,
            together=True,
        )

    @cached_property
    def pruned(self) -> Step:
        return self.pruned_with(0)

    def pruned_with(self, left: int) -> Step:
        """The model after pruning, with `left` stages after this one."""
        spec = _required(self.spec.prune, "prune", f"see {shipped(DEMO)}")
        first = left == spec.stages - 1
        full = self.spec.full_texts  # it is pruned for what it will read
        settings = {**spec.settings(), **full, "left": left}
        if spec.select != "importance":
            settings.pop("importance_prompts")
        if spec.recorded is not None:
            settings["recorded"] = file_hash(spec.recorded)
        before = self.finetuned if first else self._recovered(left + 1)
        return self._step(
            kind="pruned",
            title="pruning",
            settings=settings,
            make=partial(_made_by, "pruned", spec, left, full.get("full_tokens")),
            inputs={"data": self.data, "summaries": self.summaries, "checkpoint": before},
            code=(f"{STAGES}.pruned",),
            tools=(*TRAINING, "scipy"),
        )

    @cached_property
    def recovered(self) -> Step:
        return self._recovered(0)

    def _recovered(self, left: int) -> Step:
        """The model after recovery; every stage has an equal share of the steps, the last one what
        is over."""
        spec = _required(self.spec.recover, "recover", f"see {shipped(DEMO)}")
        stages = self.spec.prune.stages if self.spec.prune is not None else 1
        share = spec.steps // stages
        steps = share if left else spec.steps - share * (stages - 1)
        # With one seed all stages would see the same first queries.
        seed = spec.seed + stages - 1 - left
        spec = spec.model_copy(update={"steps": steps, "seed": seed})
        pruned = self.pruned_with(left) if left else self.pruned
        inputs = {"data": self.data, "summaries": self.summaries, "student": pruned}
        if spec.teacher == "finetuned" and spec.steps:
            inputs["teacher"] = self.finetuned
        return self._step(
            kind="recovered",
            title="recovery",
            settings=_trained_by(spec),
            make=partial(_made_by, "trained", spec, None),
            inputs=inputs,
            code=(f"{STAGES}.trained",),
            tools=TRAINING,
            together=True,
        )

    @property
    def final(self) -> Step:
        """The checkpoint that is served: the last one that the spec asks for."""
        if self.spec.recover is not None:
            return self.recovered
        return self.pruned if self.spec.prune is not None else self.finetuned

    @cached_property
    def engine(self) -> Step:
        target, spec = self.target, self.spec.engine
        tools, extra = target.tools(spec)
        settings = {
            "target": target.name,
            "section": target.settings(self.spec),
            "parity": spec.parity.settings(),
            **self.spec.full_texts,
        }
        return self._step(
            kind="engine",
            title="engine",
            settings=settings,
            make=partial(make_engine, self.spec, target),
            inputs={"data": self.data, "summaries": self.summaries, "checkpoint": self.final},
            code=(f"{STAGES}.engine", type(target).__module__, *target.code),
            tools=tools,
            extra=extra,
        )

    @cached_property
    def server_code(self) -> str:
        """Hash of what runs inside the server: another one is another thing to measure."""
        kind = SUMMARIZERS.get(self.spec.summarize.method)
        store, _ = store_kind(self.spec.summarize.store)
        chosen = (type(kind).__module__, type(store).__module__, *self.target.server_code)
        return code_hash(*chosen, files=(prepare_stage(), self.target.stage()))

    @cached_property
    def repository(self) -> Step:
        target, spec = self.target, self.spec
        check_place(spec.repository.cache)
        settings: dict[str, Any] = {
            **spec.repository.settings(),
            "queue_timeout_us": spec.queue_timeout_us,
            "name": spec.name,
            "store": spec.summarize.store,
            "server_code": self.server_code,
            "serving": target.serving_settings(spec),
        }
        inputs = {
            "engine": self.engine,
            "summarizer": self.summarizer,
            "summaries": self.summaries,
            "checkpoint": self.final,
        }
        if is_shared(spec.summarize.store):
            inputs["data"] = self.data  # known answers by the jobs' fields
        return self._step(
            kind="repository",
            title="model repository",
            settings=settings,
            make=partial(make_repository, spec, target, self.server_code),
            inputs=inputs,
            code=(f"{STAGES}.repository", type(target).__module__),
        )

    @property
    def _step(self) -> partial[Step]:
        return partial(Step, bundle=self.spec.name)


def _made_by(stage: str, *arguments: Any) -> None:
    """Call `make_<stage>`, whose module needs torch, only when the artifact is made."""
    getattr(importlib.import_module(f"{STAGES}.{stage}"), f"make_{stage}")(*arguments)


def _required(section: Any, name: str, example: str) -> Any:
    if section is None:
        raise SpecError(f"the spec has no {name} section", f"add one, {example}")
    return section


def _trained_by(spec: TrainSpec) -> dict[str, Any]:
    if spec.adapter is None:
        return spec.deciding()
    return spec.deciding() | {"adapter": folder_hashes(spec.adapter, ADAPTER_FILES)}
