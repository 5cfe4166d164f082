"""A release: every value that the manifests of one deployment are rendered from.

It joins what was measured and hashed when the bundle was made (engine, files, known answers,
capacity) with the section `deploy` of the spec. It is plain data, kept beside the manifests as
`release.yaml`, so that they can be rendered again, on any machine, to the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from slmrank.artifacts import Artifact
from slmrank.client.known_answers import KNOWN_FILE, read_known
from slmrank.engine.trtllm.compile import read_planned
from slmrank.errors import DeployError
from slmrank.hashing import hash_value
from slmrank.load.record import read_record
from slmrank.repository.generate import ENSEMBLE, check_repository
from slmrank.spec.bundle import BundleSpec, SloSpec, Target
from slmrank.spec.deploy import DNS_LABEL, DeploySpec, Strategy
from slmrank.spec.section import Section

# Stands where no image was named: it can be rendered and reviewed, and is refused by `apply`.
UNSET_DIGEST = f"sha256:{'0' * 64}"
TAG_LENGTH = 12
# Kubernetes cuts the names of pods at 63: 17 belong to ReplicaSet and pod.
MOST_NAME = 46
RELEASE_FILE = "release.yaml"
Track = Literal["stable", "canary"]


class FileFact(Section):
    """One file of the repository."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class RepositoryFacts(Section):
    """The Triton model repository: `digest` names its folder on the claim."""

    digest: str = Field(pattern=r"^[0-9a-f]{16}$")
    served: str = Field(description="hash of the served configurations")
    files: dict[str, FileFact]

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.files.values())


class EngineFacts(Section):
    """The engine; `plan` is the build plan of a compiled one (target trtllm-engine)."""

    target: Target
    tag: str = Field(pattern=r"^[0-9a-f]{12}$")
    bytes: int = Field(ge=0, description="bytes that are loaded beside the repository")
    engines: str = Field("/engines", description="where compiled engines are mounted")
    plan: dict[str, str | int | bool] | None = None

    @property
    def gpu(self) -> str | None:
        """The node label nvidia.com/gpu.product that it needs."""
        return None if self.plan is None else str(self.plan["gpu"])


class KnownFact(Section):
    """One known answer."""

    query: str
    job_id: str
    p: float = Field(ge=0, le=1)


class CapacityFacts(Section):
    """What one replica serves at the objective, and how that is known."""

    items_per_s: float = Field(gt=0)
    source: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which deployment of a cluster: a bundle's stable or canary one in a namespace."""

    namespace: str
    bundle: str
    track: Track = "stable"

    @property
    def object_name(self) -> str:
        """Name of Deployment, Services, HPA and the rest; stable over engines."""
        return f"slmrank-{self.bundle}" + ("-canary" if self.track == "canary" else "")


class Release(Section):
    """Everything that decides the manifests."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=DNS_LABEL)
    track: Track = "stable"
    latency_ms: float = Field(gt=0)
    percentile: Literal[95, 99]
    gpu_product: str | None = None
    engine: EngineFacts
    repository: RepositoryFacts
    known_answers: list[KnownFact]
    capacity: CapacityFacts
    max_queue_size: int = Field(64, ge=1, description="waiting requests of one stage of a replica")
    queue_timeout_us: int = Field(1_000_000, ge=1, description="longest wait in one stage")
    deploy: DeploySpec

    @model_validator(mode="after")
    def _together(self) -> Release:
        scaling, rollout = self.deploy.scaling, self.deploy.rollout
        if rollout.strategy == "surge" and self.on_gpu and rollout.spare_gpus < 1:
            raise ValueError(
                "deploy.rollout.strategy surge needs a GPU more than the replicas hold, and "
                "spare_gpus is 0; use in-place, or declare the spare GPU"
            )
        if len(self.object_name) > MOST_NAME or self.name.endswith("-canary"):
            raise ValueError(
                f"the bundle's name {self.name!r} is too long or ends with -canary: names of its "
                f"pods would be cut, or meet those of another track; at most "
                f"{MOST_NAME - len('slmrank--canary')} characters fit both tracks"
            )
        if self.strategy == "in-place" and scaling.min_replicas < 2:
            raise ValueError(
                "an in-place rollout takes one pod away first and min_replicas is 1; raise "
                "deploy.scaling.min_replicas, declare deploy.rollout.spare_gpus, or choose "
                "recreate with allow_downtime"
            )
        if self.strategy == "recreate" and not rollout.allow_downtime:
            raise ValueError(
                "deploy.rollout.strategy recreate serves nothing while pods start; set "
                "allow_downtime: true to accept that"
            )
        return self

    @property
    def on_gpu(self) -> bool:
        return self.engine.target != "openvino"

    @property
    def strategy(self) -> Strategy:
        """The spec's, or what the declared spare GPUs allow."""
        given = self.deploy.rollout
        if given.strategy is not None:
            return given.strategy
        return "surge" if not self.on_gpu or given.spare_gpus > 0 else "in-place"

    @property
    def place(self) -> Place:
        return Place(namespace=self.deploy.namespace, bundle=self.name, track=self.track)

    @property
    def object_name(self) -> str:
        return self.place.object_name

    @property
    def image(self) -> str:
        kind = "gpu" if self.on_gpu else "cpu"
        return self.deploy.image or f"slmrank-{kind}@{UNSET_DIGEST}"

    @property
    def hash(self) -> str:
        """12 hex digits over every value."""
        return hash_value(self.settings())[:TAG_LENGTH]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.settings(), sort_keys=True, width=100, allow_unicode=True)


def make_release(
    spec: BundleSpec,
    repository: Artifact,
    engine: Artifact,
    *,
    record: Path | None = None,
    track: Track = "stable",
) -> Release:
    """The release of a repository and its engine.

    Raises DeployError when the capacity is unknown or was measured on another engine, and SpecError
    or DeployError for settings that do not go together.
    """
    served = served_identity(repository.path)
    files = {
        name: FileFact(sha256=one["sha256"], bytes=one["bytes"])
        for name, one in repository.manifest["files"].items()
    }
    known = [
        KnownFact(query=one.query, job_id=one.job_id, p=one.p)
        for one in read_known(repository.path / KNOWN_FILE)
    ]
    given = {
        "name": spec.name,
        "track": track,
        "latency_ms": spec.sweep.slo.latency_ms,
        "percentile": spec.sweep.slo.percentile,
        "gpu_product": None if spec.engine.target == "openvino" else spec.engine.trtllm.gpu,
        "engine": _engine_facts(spec, engine).settings(),
        "repository": {
            "digest": repository.digest,
            "served": served["settings"],
            "files": {name: one.settings() for name, one in files.items()},
        },
        "known_answers": [one.settings() for one in known],
        "capacity": _capacity(spec, served, record).settings(),
        "max_queue_size": spec.repository.max_queue_size,
        "queue_timeout_us": spec.queue_timeout_us,
        "deploy": spec.deploy.settings(),
    }
    return _validated(given, "the spec")


def served_identity(repository: Path) -> dict[str, str]:
    """What a server over this repository says of itself (`RankClient.describe`)."""
    parameters = check_repository(repository)[ENSEMBLE].parameters
    return {name: one.string_value for name, one in parameters.items()}


def load_release(path: Path) -> Release:
    """Read a `release.yaml`. Raises DeployError that names key and rule."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DeployError(
            f"cannot read {path}: {error}", "give a spec or a release.yaml"
        ) from error
    return _validated(loaded, str(path))


def is_release(path: Path) -> bool:
    """Whether a YAML file is a release rather than a spec."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(loaded, dict) and "schema_version" in loaded and "repository" in loaded


def _validated(given: Any, name: str) -> Release:
    try:
        return Release.model_validate(given)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}".lstrip(
                ": "
            )
            for one in error.errors()
        )
        raise DeployError(f"{name}: {told}", "correct the section deploy of the spec") from error


def _engine_facts(spec: BundleSpec, engine: Artifact) -> EngineFacts:
    target = spec.engine.target
    if target != "trtllm-engine":
        tag = hash_value([engine.key, engine.digest])[:TAG_LENGTH]
        return EngineFacts(target=target, tag=tag, bytes=0)
    planned = read_planned(engine.path)
    size = sum(
        one["bytes"]
        for name, one in engine.manifest["files"].items()
        if name.startswith(f"{planned.checkpoint.name}/")
    )
    return EngineFacts(
        target=target,
        tag=planned.tag,
        bytes=size,
        engines=spec.engine.trtllm.engines,
        plan=planned.plan.as_dict(),
    )


def _capacity(spec: BundleSpec, served: Mapping[str, str], record: Path | None) -> CapacityFacts:
    """The lower end of the measured spread, else the spec's number."""
    slo = spec.sweep.slo
    if record is None:
        declared = spec.deploy.scaling.items_per_s
        if declared is None:
            raise DeployError(
                "what one replica serves is unknown, so the autoscaler has no target",
                "measure it (`control slo SPEC`) and give the record with --capacity, or set "
                "deploy.scaling.items_per_s",
            )
        return CapacityFacts(items_per_s=declared, source="spec: deploy.scaling.items_per_s")
    measured = read_record(record)
    names = sorted({*served, *measured["served"]})
    other = [
        f"{name} {measured['served'].get(name)} instead of {served.get(name)}"
        for name in names
        if measured["served"].get(name) != served.get(name)
    ]
    if other:
        raise DeployError(
            f"{record} was measured on something else: {'; '.join(other)}",
            "run `control slo` on this bundle again",
        )
    cells = [one for one in measured["slo"] if one["items_per_s_range"] and _same(one, slo)]
    if not cells:
        raise DeployError(
            f"{record} holds no rate at p{slo.percentile} <= {slo.latency_ms:g} ms",
            "run `control slo` with the objective of the spec (sweep.slo)",
        )
    # The slowest kind of request that was measured: which kind comes is not ours to choose.
    cell = min(cells, key=lambda one: one["items_per_s_range"][0])
    jobs = f"{cell['items']} jobs of {cell['tokens']} tokens"
    kind = jobs if cell["tokens"] else f"{cell['items']} stored jobs"
    return CapacityFacts(
        items_per_s=round(cell["items_per_s_range"][0], 2),
        source=f"measured: {kind} a request, p{slo.percentile} <= {slo.latency_ms:g} ms, record "
        + hash_value(measured)[:TAG_LENGTH],
    )


def _same(cell: Mapping[str, Any], slo: SloSpec) -> bool:
    return bool(cell["limit_ms"] == slo.latency_ms and cell["percentile"] == slo.percentile)
