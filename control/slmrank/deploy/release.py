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
from slmrank.engine.known_answers import KNOWN_FILE, KnownAnswer, read_known
from slmrank.engine.targets.base import EngineTarget, InProcessTarget
from slmrank.errors import DeployError, SweepError
from slmrank.hashing import hash_value
from slmrank.load.capacity import asked_for, rounded_down, slowest_cell
from slmrank.load.record import read_record
from slmrank.machine.facts import is_product
from slmrank.repository.generate import ranker_count, read_identity
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.deploy import DNS_LABEL, DeploySpec, Strategy
from slmrank.spec.repository import MEMORY
from slmrank.spec.section import Section
from slmrank.store.registry import shared_kind, shared_port

# Stands where no image was named: it can be rendered and reviewed, and is refused by `apply`.
UNSET_DIGEST = f"sha256:{'0' * 64}"
TAG_LENGTH = 12
# Kubernetes cuts the names of pods at 63: 17 belong to ReplicaSet and pod.
MOST_NAME = 46
RELEASE_FILE = "release.yaml"
# What names of other objects of a bundle end with.
OWN_ENDINGS = ("-canary", "-catalogue", "-predictor", "-push", "-rerank", "-watch")
Track = Literal["stable", "canary"]


class FileFact(Section):
    """One file of the repository."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class RepositoryFacts(Section):
    """The Triton model repository: `digest` names its folder on the claim."""

    digest: str = Field(pattern=r"^[0-9a-f]{16}$")
    configuration: str = Field(description="hash of the stages' configurations")
    files: dict[str, FileFact]

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.files.values())


class EngineFacts(Section):
    """The engine; `plan` is the build plan of a compiled one."""

    target: str
    tag: str = Field(pattern=r"^[0-9a-f]{12}$")
    needs_gpu: bool
    gpu_product: str | None = Field(None, description="node label nvidia.com/gpu.product")
    bytes: int = Field(ge=0, description="bytes that are loaded beside the repository")
    engines: str = Field("/engines", description="where compiled engines are mounted")
    plan: dict[str, str | int | bool] | None = None


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
    engine: EngineFacts
    repository: RepositoryFacts
    known_answers: list[KnownAnswer]
    capacity: CapacityFacts
    instances: int = Field(1, ge=1, description="processes that load the engine")
    max_queue_size: int = Field(ge=1, description="requests that wait for a replica's engine")
    queue_timeout_us: int = Field(ge=1, description="longest predicted time to an answer")
    max_items: int = Field(1000, ge=1, description="jobs of a request")
    cache_mib: int = Field(0, ge=0, description="that the score caches of a pod may take")
    store_ports: list[int] = Field(
        default_factory=list, description="of the shared summary store and score cache"
    )
    deploy: DeploySpec

    @model_validator(mode="after")
    def _together(self) -> Release:
        scaling, rollout = self.deploy.scaling, self.deploy.rollout
        if rollout.strategy == "surge" and self.on_gpu and rollout.spare_gpus < 1:
            raise ValueError(
                "deploy.rollout.strategy surge needs a GPU more than the replicas hold, and "
                "spare_gpus is 0; use in-place, or declare the spare GPU"
            )
        if self.deploy.store.authority and self.deploy.store.secret is None:
            raise ValueError(
                "deploy.store.authority needs the Secret with ca.crt; set deploy.store.secret"
            )
        if self.deploy.watch is not None and not self.store_ports:
            raise ValueError("deploy.watch needs a shared summary store (summarize.store)")
        if len(self.object_name) > MOST_NAME or self.name.endswith(OWN_ENDINGS):
            raise ValueError(
                f"the bundle's name {self.name!r} is too long or ends with one of "
                f"{', '.join(OWN_ENDINGS)}: names of its pods would be cut, or meet those of "
                f"another bundle's objects; at most {MOST_NAME - len('slmrank--canary')} "
                "characters fit both tracks"
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
        return self.engine.needs_gpu

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

    def on_track(self, track: Track) -> Release:
        """The same on another track. Raises DeployError where its name does not fit there."""
        if track == self.track:
            return self
        return _validated({**self.settings(), "track": track}, f"track {track}")

    @property
    def image(self) -> str:
        return self.deploy.image or unset_image(needs_gpu=self.on_gpu)

    @property
    def hash(self) -> str:
        """12 hex digits over every value."""
        return hash_value(self.settings())[:TAG_LENGTH]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.settings(), sort_keys=True, width=100, allow_unicode=True)


def shared_ports(spec: BundleSpec) -> list[int]:
    """Where pods of a spec look up summaries and scores outside of their bundle."""
    cache = spec.repository.cache
    urls = [spec.summarize.store, *([cache.place] if cache and cache.place != MEMORY else [])]
    ports = {shared_port(url) for url in urls}
    return sorted(port for port in ports if port is not None)


def unset_image(*, needs_gpu: bool) -> str:
    """Stands for an image that nobody named yet."""
    return f"slmrank-{'gpu' if needs_gpu else 'cpu'}@{UNSET_DIGEST}"


def make_release(
    spec: BundleSpec,
    target: EngineTarget,
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
    if spec.deploy.watch is not None:
        shared_kind(spec.summarize.store)
    identity, cache = read_identity(repository.path), spec.repository.cache
    facts = target.deploy_facts(spec, engine)
    values = {
        "name": spec.name,
        "track": track,
        "latency_ms": spec.sweep.slo.latency_ms,
        "percentile": spec.sweep.slo.percentile,
        "engine": {
            "target": target.name,
            "tag": facts.tag or hash_value([engine.key, engine.digest])[:TAG_LENGTH],
            "needs_gpu": target.needs_gpu or facts.gpu,
            "gpu_product": facts.gpu_product,
            "bytes": facts.bytes,
            **({"engines": facts.engines} if facts.engines else {}),
            "plan": facts.plan,
        },
        "repository": {
            "digest": repository.digest,
            "configuration": identity["configuration"],
            "files": repository.manifest["files"],
        },
        "known_answers": [answer.values() for answer in read_known(repository.path / KNOWN_FILE)],
        "capacity": _capacity(spec, identity, record, facts.gpu_product).settings(),
        "instances": spec.repository.instances if isinstance(target, InProcessTarget) else 1,
        "max_queue_size": spec.repository.max_queue_size,
        "queue_timeout_us": spec.queue_timeout_us,
        "max_items": spec.repository.max_items,
        "cache_mib": cache.memory_mb * ranker_count(repository.path) if cache else 0,
        "store_ports": shared_ports(spec),
        "deploy": spec.deploy.settings(),
    }
    return _validated(values, "the spec")


def load_release(path: Path) -> Release:
    """Read a `release.yaml`. Raises DeployError that names key and rule."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DeployError(
            f"cannot read {path}: {error}", "give a release.yaml of `control deploy render`"
        ) from error
    if isinstance(loaded, dict) and loaded.keys() & {"data", "extends"}:  # a spec
        raise DeployError(
            f"{path} is no release", "give a release.yaml, which `control deploy render` wrote"
        )
    return _validated(loaded, str(path), "it; if another slmrank wrote it, render it again")


def is_release(path: Path) -> bool:
    """Whether a YAML file is a release rather than a spec."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(loaded, dict) and "schema_version" in loaded and "repository" in loaded


def _validated(given: Any, name: str, where: str = "the section deploy of the spec") -> Release:
    try:
        return Release.model_validate(given)
    except ValidationError as error:
        faults = (
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        )
        told = "; ".join(one.lstrip(": ") for one in faults)
        raise DeployError(f"{name}: {told}", f"correct {where}") from error


def _require_alike(
    record: Path, host: Mapping[str, Any], spec: BundleSpec, gpu: str | None
) -> None:
    """Raises DeployError for a record of another GPU, or of another number of cores where the CPU
    decides; one that does not tell where it was measured is taken."""
    cores, gpus = host.get("cores"), [one["name"] for one in host.get("gpus", ())]
    there = there_are = ""
    if gpu is not None and gpus and not any(is_product(one, gpu) for one in gpus):
        there, there_are = " and ".join(one.replace(" ", "-") for one in gpus), gpu
    elif gpu is None and cores not in (None, spec.deploy.placement.cores):
        there, there_are = f"{cores} cores", f"{spec.deploy.placement.cores} (deploy.placement)"
    if there:
        raise DeployError(
            f"{record} was measured on {there}, a replica gets {there_are}",
            "run `control slo` on such a machine (`taskset -c 0-3`: on four of its cores), or set "
            "deploy.scaling.items_per_s",
        )


def _capacity(
    spec: BundleSpec, identity: Mapping[str, str], record: Path | None, gpu: str | None
) -> CapacityFacts:
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
    names = sorted({*identity, *measured["served"]})
    other = [
        f"{name} {measured['served'].get(name)} instead of {identity.get(name)}"
        for name in names
        if measured["served"].get(name) != identity.get(name)
    ]
    if other:
        raise DeployError(
            f"{record} was measured on something else: {'; '.join(other)}",
            "run `control slo` on this bundle again",
        )
    _require_alike(record, measured.get("host") or {}, spec, gpu)
    wanted = {"limit_ms": slo.latency_ms, "percentile": slo.percentile}
    try:
        cell = slowest_cell(asked_for(measured, str(record), spec.sweep), str(record), wanted)
    except SweepError as error:
        hint = (
            "raise sweep.slo, run `control slo` (--force: again), or set deploy.scaling.items_per_s"
        )
        raise DeployError(error.message, hint) from error
    jobs = f"{cell['items']} jobs of {cell['tokens']} tokens"
    kind = jobs if cell["tokens"] else f"{cell['items']} stored jobs"
    return CapacityFacts(
        items_per_s=rounded_down(cell["items_per_s_range"][0]),
        source=f"measured: {kind} a request, p{slo.percentile} <= {slo.latency_ms:g} ms, record "
        + hash_value(measured)[:TAG_LENGTH],
    )
