"""A target of somebody else, in this one file: its section, its build, its Triton stage, registered
and served. The file is named in SLMRANK_PLUGINS, and is the stage's `model.py` as well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import Field
from slmrank.client.client import RankClient
from slmrank.engine.parity import Scorer
from slmrank.engine.targets.base import Building, EngineTarget
from slmrank.engine.targets.registry import register_target
from slmrank.errors import SpecError
from slmrank.machine.inspection import Machine, Report
from slmrank.model.checkpoint import Checkpoint
from slmrank.model.probability import probability
from slmrank.plugins import VARIABLE
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.engine import TARGET_SECTIONS, EngineSpec, OpenVinoSpec, declare_target
from slmrank.spec.reading import change_spec
from slmrank.spec.section import Section
from slmrank.triton.config import RANKER, ModelConfig, Queue, ranker_model


class Paint(Section):
    red: int = 1
    blue: int = 2


class ToySpec(Section):
    """Settings of the toy."""

    paint: Paint = Field(default_factory=Paint)
    modulus: int = Field(7, ge=2, description="scores repeat after this many")


def toy_logits(items: Any, modulus: int) -> Any:
    return np.array([float(int(item.sum()) % modulus) - modulus / 2 for item in items])


class ToyTarget(EngineTarget):
    name = "toy"

    def tools(self, spec: EngineSpec) -> tuple[tuple[str, ...], str]:
        return (), "train"

    def precision(self, spec: EngineSpec) -> str:
        return "integer"

    def build(self, building: Building) -> dict[str, Any]:
        settings = building.spec.engine.section.settings()
        (building.folder / "toy.json").write_text(json.dumps(settings))
        return {"built": True}

    def open_scorer(self, engine: Path, checkpoint: Checkpoint) -> Scorer:
        modulus = json.loads((engine / "toy.json").read_text())["modulus"]
        return lambda query: toy_logits(query.items, modulus)

    def triton_models(
        self, spec: BundleSpec, checkpoint: Checkpoint, figures: Mapping[str, Any], queue: Queue
    ) -> dict[str, ModelConfig]:
        return {RANKER: ranker_model(spec.repository.max_batch_size, queue, {})}

    def stage(self) -> Path:
        return Path(__file__)

    def links(self, engine: Path) -> dict[str, Path]:
        return {f"{RANKER}/1/toy": engine}

    def diagnose(self, machine: Machine, spec: EngineSpec, report: Report) -> None:
        report.add("fingers", True, "ten")


register_target(ToyTarget(), ToySpec)


def test_one_changed_key_leaves_the_others(tiny: Any) -> None:
    """They fell back to their defaults, so that `vary` compared the wrong engines."""
    toy = {"modulus": 5, "paint": {"red": 7}}
    spec = change_spec(tiny.bundle.spec, {"engine": {"target": "toy", "toy": toy}})
    changed = change_spec(spec, {"engine": {"toy": {"paint": {"blue": 9}}}}).engine.section
    assert changed == ToySpec(modulus=5, paint=Paint(red=7, blue=9))


def test_a_target_that_replaces_a_built_in_one_has_its_settings() -> None:
    before = dict(TARGET_SECTIONS)
    declare_target("openvino")
    declare_target("openvino", OpenVinoSpec)
    assert before == TARGET_SECTIONS
    with pytest.raises(SpecError, match=r"engine\.openvino is a section of its own already"):
        declare_target("openvino", ToySpec)


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"] / "toy"
        self.modulus = json.loads((folder / "toy.json").read_text())["modulus"]

    def execute(self, requests: list[Any]) -> list[Any]:
        import triton_python_backend_utils as pb_utils

        answers = []
        for request in requests:
            ids, lengths = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0]
                for name in ("item_ids", "item_lengths")
            )
            logits = toy_logits(np.split(ids, np.cumsum(lengths)[:-1]), self.modulus)
            scores = probability(logits).astype(np.float32)[np.newaxis]
            taken = np.array([[1]], dtype=np.int32)
            tensors = [pb_utils.Tensor("score", scores), pb_utils.Tensor("ranker_us", taken)]
            answers.append(pb_utils.InferenceResponse(tensors))
        return answers


@pytest.mark.long
@pytest.mark.triton
def test_it_goes_through_every_verb(
    tiny: Any, tmp_path: Path, control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, __file__)
    spec = tmp_path / "toy.yaml"
    changes = {"engine": {"target": "toy", "toy": {"modulus": 5}}}
    spec.write_text(yaml.safe_dump({"extends": str(tiny.spec), **changes}))
    done = control("repo", spec, "--artifacts", tiny.artifacts, "--json")
    assert done.returncode == 0, done.stderr
    repository = Path(json.loads(done.stdout)["path"])
    known = json.loads((repository / "known_answers.json").read_text())["answers"]
    with Server(repository, ANY_PORTS) as server, RankClient(server.url) as client:
        assert client.describe()["engine_target"] == "toy"
        for answer in known:
            (item,) = client.score(answer["query"], [answer["job_id"]])
            assert item.score == pytest.approx(answer["p"], abs=1e-5)
    assert control("doctor", spec, "--artifacts", tiny.artifacts).returncode == 0
    shown = yaml.safe_load(control("spec", spec, "--set", "engine.toy.modulus=9").stdout)
    assert shown["engine"]["other"]["toy"]["modulus"] == 9
    wrong = control("spec", spec, "--set", "engine.toy.modulos=9")
    assert "did you mean 'modulus'" in wrong.stderr
    rendered = control(
        *("deploy", "render", spec, "--artifacts", tiny.artifacts, "--out", tmp_path / "k8s"),
        *("--set", "deploy.scaling.items_per_s=50"),
    )
    assert rendered.returncode == 0, rendered.stderr


def test_an_unknown_target_is_told_the_known_ones(tiny: Any, control: Any) -> None:
    done = control("build", tiny.spec, "--target", "openvin")
    assert done.returncode == 2
    assert "did you mean 'openvino'" in done.stderr
    assert "trtllm-engine" in done.stderr
