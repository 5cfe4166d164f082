"""How clients reach the pods, and who may: Services, NetworkPolicy, gRPC route."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from slmrank.deploy.naming import GRPC, ROUTE, Object, labelled, selector
from slmrank.deploy.parts import DNS, namespaced, policy, scraping, tcp
from slmrank.deploy.release import Release

CLIENT_LABEL = "slmrank.io/clients"
GRPC_ROUTE = ("gateway.networking.k8s.io/v1", "GRPCRoute")
SERVICE = "inference.GRPCInferenceService"
HTTP, HTTPS = 80, 443


def grpc_service(release: Release) -> Object:
    """Headless: a gRPC channel is one connection, and behind a virtual address every call of it
    goes to one pod. Clients resolve all addresses and take them in turn (`round_robin`)."""
    spec = {
        "clusterIP": "None",
        "selector": selector(release),
        "ports": [{"name": "grpc", "port": GRPC, "targetPort": "grpc", "protocol": "TCP"}],
    }
    return labelled(release, "v1", "Service", release.object_name, spec=spec)


def clients_of(release: Release) -> list[Object]:
    """Who may ask: this namespace, those labelled as clients, and the Gateway's."""
    return [
        {"podSelector": {}},
        {"namespaceSelector": {"matchLabels": {CLIENT_LABEL: "true"}}},
        namespaced(release.deploy.gateway.namespace),
    ]


# Where Google's clients ask who a pod is: with Dataplane V2, and without.
GOOGLE_IDENTITY = [
    {"to": [{"ipBlock": {"cidr": f"169.254.169.{host}/32"}}], "ports": tcp(port)}
    for host, port in ((254, 80), (252, 988))
]


def pod_egress(release: Release) -> list[Object]:
    """To what is shared, to where the repository is fetched from, and to whoever resolves their
    names; none without either."""
    rules: list[Object] = []
    if release.store_ports:
        namespace = release.deploy.store.namespace
        to = {"to": [namespaced(namespace)]} if namespace is not None else {}
        rules.append({"ports": tcp(*release.store_ports), **to})
    url = release.deploy.storage.bundles_url
    if url is not None:
        # A store of one's own is named in the url's query, as pyarrow reads it.
        query = dict(parse_qsl(urlsplit(url).query))
        scheme, _, host = query.get("endpoint_override", "").rpartition("://")
        plain = (scheme or query.get("scheme")) == "http"
        named = urlsplit(f"//{host}") if host else urlsplit(url)
        rules.append({"ports": tcp(named.port or (HTTP if plain else HTTPS))})
        if urlsplit(url).scheme in ("gs", "gcs") and not host:
            rules += GOOGLE_IDENTITY
    return [*rules, DNS] if rules else []


def scoring_policy(release: Release, name: str, component: str) -> Object:
    """Of pods that score: that from this namespace, from those labelled `slmrank.io/clients:
    "true"` and from the Gateway's, metrics from monitoring; nothing goes out but look-ups in a
    shared store."""
    asking = {"from": clients_of(release), "ports": tcp(GRPC)}
    return policy(release, name, component, [asking, scraping(release)], pod_egress(release))


def grpc_route(release: Release, canary_percent: int = 0) -> Object:
    """Calls through a Gateway, shared between stable and canary by weight. It belongs to the stable
    deployment, whichever track `release` is of."""
    gateway, stable = release.deploy.gateway, release.on_track("stable")
    backends = [
        {"name": stable.object_name, "port": GRPC, "weight": 100 - canary_percent},
        {"name": release.on_track("canary").object_name, "port": GRPC, "weight": canary_percent},
    ]
    if canary_percent == 0:
        backends.pop()
    spec = {
        "parentRefs": [{"name": gateway.name, "namespace": gateway.namespace}],
        "hostnames": [gateway.hostname],
        "rules": [{"matches": [{"method": {"service": SERVICE}}], "backendRefs": backends}],
    }
    return labelled(stable, *GRPC_ROUTE, stable.object_name, component=ROUTE, spec=spec)
