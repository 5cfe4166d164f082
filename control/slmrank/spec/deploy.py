"""The section `deploy` of a spec: what Kubernetes is told beside what the engine itself decides."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from slmrank.spec.section import Section
from slmrank.validation import holds_password

DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
# Of Secrets and claims; of every other name here Kubernetes takes a label.
SUBDOMAIN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$"
BY_DIGEST = r"^[a-z0-9][a-z0-9._:/-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?@sha256:[0-9a-f]{64}$"
Strategy = Literal["surge", "in-place", "recreate"]


def _not_ours(labels: dict[str, str]) -> dict[str, str]:
    own = r"slmrank\.io/.*|app\.kubernetes\.io/(name|instance|component|managed-by)"
    for key in labels:
        if re.fullmatch(own, key):
            raise ValueError(f"{key} is how this tool finds its own objects again: leave it out")
    return labels


def _no_password(url: Any) -> Any:
    # Before everything else, which would show the value.
    if isinstance(url, str) and holds_password(url):
        # Not shown, and neither rendered into a manifest that lies in git.
        raise ValueError(
            "has a password in its url: write user and password into the Secret that "
            "deploy.storage.url_secret, deploy.catalogue.secret or deploy.watch.kafka_secret names"
        )
    return url


Url = Annotated[str, BeforeValidator(_no_password)]


class StorageSpec(Section):
    """Where the pods find repositories and engines; both are mounted read-only by what serves."""

    bundles_claim: str = Field("bundles", pattern=SUBDOMAIN, max_length=253)
    """claim with repositories and planned engines"""
    engines_claim: str = Field("engines", pattern=SUBDOMAIN, max_length=253)
    """claim with compiled engines, by tag"""
    bundle_image: str | None = Field(None, pattern=BY_DIGEST)
    """image with the repository, mounted as a volume instead of the claim; needs Kubernetes 1.35"""
    bundles_url: Url | None = Field(None, pattern=r"^[a-z][a-z0-9+.-]*://\S+$")
    """where `deploy push` puts repositories and pods fetch them from, instead of the claim:
    s3://bucket/bundles, gs://... ; needs no shared file system"""
    url_secret: str | None = Field(None, pattern=SUBDOMAIN, max_length=253)
    """Secret whose keys are variables of what fetches, such as AWS_ACCESS_KEY_ID"""
    size_gib: int = Field(20, ge=1, description="size of each claim")
    storage_class: str | None = Field(None, description="unset: the cluster's default class")
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """ReadWriteOnce keeps every pod on one node"""

    @model_validator(mode="after")
    def _two(self) -> StorageSpec:
        if self.bundles_claim == self.engines_claim:
            raise ValueError(
                f"deploy.storage.bundles_claim and engines_claim are both {self.engines_claim!r}; "
                "pods may write neither, the build Job one: give two claims"
            )
        if self.bundles_url is not None and self.bundle_image is not None:
            raise ValueError(
                "deploy.storage has bundles_url and bundle_image: repositories come from one"
            )
        return self


class PlacementSpec(Section):
    """What one replica gets."""

    cores: int = Field(4, ge=1, le=512, description="CPU cores, request and limit")
    memory_gib: float | None = Field(None, gt=0)
    """memory, request and limit; unset: from the engine's size"""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """node labels, beside the GPU product of the engine"""
    priority_class: str | None = Field(None, description="PriorityClass of the pods")


class EngineBuildSpec(Section):
    """What the Job gets that compiles an engine, beside a GPU."""

    cores: int = Field(4, ge=1, le=512, description="CPU cores, request and limit")
    memory_gib: int = Field(32, ge=4, description="memory, request and limit")


class ScalingSpec(Section):
    """How many replicas, and what the autoscaler aims at."""

    min_replicas: int = Field(2, ge=1)
    """the floor: what carries a burst while new replicas start"""
    max_replicas: int = Field(8, ge=1, description="never above the GPUs that you have")
    autoscaler: Literal["hpa", "keda"] = "hpa"
    """keda: no HorizontalPodAutoscaler is rendered, and optional/keda.yaml takes its place"""
    items_per_s: float | None = Field(None, gt=0)
    """what one replica serves at the objective; a record of `control slo` given with --capacity
    replaces it"""
    burst: float = Field(1.5, ge=1)
    """largest load over the ordinary one that comes before replicas do"""
    cold_start_s: float = Field(90, ge=0, description="seconds until a new replica serves")
    ramp_s: float = Field(0, ge=0)
    """seconds in which a burst grows to its full size; 0: at once"""
    pending: int = Field(8, ge=1)
    """requests waiting in one replica at which replicas are added"""
    down_stabilization_s: int = Field(300, ge=0, le=3600)
    """the autoscaler goes by its largest answer of this long"""

    @model_validator(mode="after")
    def _ordered(self) -> ScalingSpec:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"deploy.scaling.max_replicas {self.max_replicas} is below min_replicas "
                f"{self.min_replicas}; raise it"
            )
        return self


class RolloutSpec(Section):
    """How new pods replace old ones."""

    strategy: Strategy | None = None
    """surge: one more pod first; in-place: one old pod goes first; recreate: all go first.
    Unset: surge on CPUs and where spare_gpus is above 0, else in-place"""
    spare_gpus: int = Field(0, ge=0)
    """GPUs that stay free beside max_replicas, for a surge"""
    allow_downtime: bool = Field(False, description="accept that recreate serves nothing meanwhile")
    startup_s: int | None = Field(None, ge=10)
    """longest start of a pod; unset: from the engine's size, at least 600"""
    pull_s: int = Field(300, ge=5)
    """time for image pull and verification, before startup_s begins"""
    pre_stop_s: int = Field(10, ge=1, le=300)
    """a pod goes on serving so long after it is taken out"""
    drain_s: int = Field(20, ge=1, le=3600)
    """then running requests get so long to finish"""


class GatewaySpec(Section):
    """The Gateway that a GRPCRoute attaches to."""

    name: str = Field("gateway", pattern=DNS_LABEL, description="Gateway of the cluster")
    namespace: str = Field("gateway", pattern=DNS_LABEL, description="its namespace")
    hostname: str = Field("slmrank.example.com", description="host name of the route")


class TlsSpec(Section):
    """gRPC over TLS in the pods; a changed Secret is read when a pod starts."""

    secret: str = Field(pattern=SUBDOMAIN, max_length=253)
    """Secret with tls.crt, tls.key and ca.crt (cert-manager's)"""
    clients: bool = False
    """callers must show a certificate that ca.crt signed; the pods' own, which the probe shows,
    must be valid for clients as well"""


class RerankSpec(Section):
    """The rerank endpoint over HTTP (`optional/rerank.yaml`)."""

    image: str | None = Field(None, pattern=BY_DIGEST)
    """image with slmrank[gateway]; unset: the serving one"""
    replicas: int = Field(2, ge=1, le=100, description="pods")
    tokens_secret: str | None = Field(None, pattern=SUBDOMAIN, max_length=253)
    """Secret whose key `tokens` holds bearer tokens, one a line; unset: everybody that the
    NetworkPolicy lets through"""


class StoreAccessSpec(Section):
    """How pods reach a shared summary store (`summarize.store: redis://...`)."""

    namespace: str | None = Field(None, pattern=DNS_LABEL)
    """namespace of its pods; unset: any address, at the store's port"""
    secret: str | None = Field(None, pattern=SUBDOMAIN, max_length=253)
    """Secret with the keys `password`, and where they are needed `user` and `ca.crt`; unset: the
    store asks for none"""
    authority: bool = False
    """check the store's certificate by `ca.crt` of the Secret (rediss://)"""


class WatchSpec(Section):
    """A follower of changed jobs (`control watch`) for the shared summary store."""

    source: Url = Field("redis-stream", pattern="^(redis-stream(:.+)?|kafka:.+)$")
    """redis-stream[:NAME] or kafka://HOST:9092/TOPIC"""
    replicas: int = Field(1, ge=1, le=100, description="pods, which share the work")
    kafka_secret: str | None = Field(None, pattern=SUBDOMAIN, max_length=253)
    """Secret whose key `client.properties` holds TLS and passwords of the brokers"""


class CatalogueSpec(Section):
    """Summaries of a whole catalogue on KubeRay (`optional/rayjob.yaml`)."""

    image: str | None = Field(None, pattern=BY_DIGEST)
    """image with slmrank[ray]; unset: the serving one"""
    jobs: Url = Field("s3://bucket/jobs", min_length=1, description="Parquet of the jobs")
    out: Url = Field("s3://bucket/summaries", min_length=1, description="where summaries go")
    workers: int = Field(2, ge=1, le=1000, description="pods of one core")
    ray_version: str = Field("2.60.0", pattern=r"^\d+\.\d+\.\d+$", description="of the image")
    secret: str | None = Field(None, pattern=SUBDOMAIN, max_length=253)
    """Secret whose keys are variables of the pods, such as AWS_ACCESS_KEY_ID"""


class DeploySpec(Section):
    """Kubernetes."""

    namespace: str = Field("slmrank", pattern=DNS_LABEL, description="namespace of every object")
    image: str | None = Field(None, pattern=BY_DIGEST)
    """serving image by digest, built from build/*.Dockerfile; needed to apply"""
    image_pull_secret: str | None = Field(None, pattern=SUBDOMAIN, max_length=253)
    """Secret with the registry's credentials"""
    smoke_tolerance: float = Field(0.05, gt=0, lt=1)
    """largest |p - known p| of a known answer"""
    monitoring_namespace: str = Field("monitoring", pattern=DNS_LABEL)
    """namespace whose pods may read the metrics"""
    monitoring_labels: Annotated[dict[str, str], AfterValidator(_not_ours)] = Field(
        default_factory=dict
    )
    """labels of PodMonitor and PrometheusRule that your Prometheus selects by, such as release:
    kube-prometheus-stack"""
    tls: TlsSpec | None = Field(None, description="unset: gRPC without TLS, for a mesh or none")
    store: StoreAccessSpec = Field(default_factory=StoreAccessSpec)
    watch: WatchSpec | None = Field(None, description="unset: nothing follows changed jobs")
    storage: StorageSpec = Field(default_factory=StorageSpec)
    placement: PlacementSpec = Field(default_factory=PlacementSpec)
    engine_build: EngineBuildSpec = Field(default_factory=EngineBuildSpec)
    scaling: ScalingSpec = Field(default_factory=ScalingSpec)
    rollout: RolloutSpec = Field(default_factory=RolloutSpec)
    rerank: RerankSpec = Field(default_factory=RerankSpec)
    catalogue: CatalogueSpec = Field(default_factory=CatalogueSpec)
    gateway: GatewaySpec = Field(default_factory=GatewaySpec)
