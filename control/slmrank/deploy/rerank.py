"""The rerank endpoint (`control gateway`) before the serving pods, for clients that speak HTTP."""

from __future__ import annotations

from slmrank.deploy.exposure import clients_of
from slmrank.deploy.naming import GRPC, RERANK, TLS, Object, labelled, selector, service_host
from slmrank.deploy.parts import DNS, budget, policy, tcp, workers
from slmrank.deploy.pod import container_of, from_secret, http_probe, pod_of, tls_volumes, tmp
from slmrank.deploy.release import Release
from slmrank.deploy.sizing import longest_answer_s

PORT = 8080
TOKENS = "/tokens"
ANSWER_S = 10  # of `control gateway`
GRACE_S = 15  # preStop, and what it takes to part from its callers


def rerank_objects(release: Release) -> list[Object]:
    """Deployment, Service, disruption budget and NetworkPolicy."""
    name = f"{release.object_name}-{RERANK}"
    ports = [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]
    asking = {"from": clients_of(release), "ports": tcp(PORT)}
    # To the ranker, and to whoever resolves its name.
    to = [{"podSelector": {"matchLabels": selector(release)}}]
    service = {"selector": selector(release, RERANK), "ports": ports}
    return [
        workers(release, name, RERANK, release.deploy.rerank.replicas, _pod(release)),
        labelled(release, "v1", "Service", name, component=RERANK, spec=service),
        budget(release, name, RERANK),
        policy(release, name, RERANK, [asking], [{"to": to, "ports": tcp(GRPC)}, DNS]),
    ]


def _pod(release: Release) -> Object:
    own, tls = release.deploy.rerank, release.deploy.tls
    volumes = [tmp(), *tls_volumes(release)]
    command = ["control", "gateway", "--url", f"{service_host(release)}:{GRPC}"]
    command += ["--address", "0.0.0.0", "--port", str(PORT)]
    command += ["--max-documents", str(release.max_items)]
    answer_s = longest_answer_s(release)
    if answer_s > ANSWER_S:  # callers must be able to wait for what the servers may take
        command += ["--timeout", str(answer_s)]
    if tls is not None:
        command += ["--ranker-authority", f"{TLS}/ca.crt"]
        if tls.clients:
            command += ["--ranker-certificate", f"{TLS}/tls.crt", "--ranker-key", f"{TLS}/tls.key"]
    if own.tokens_secret is not None:
        command += ["--tokens", f"{TOKENS}/tokens"]
        volumes.append(from_secret("tokens", TOKENS, own.tokens_secret))

    container = container_of(
        "gateway",
        own.image or release.image,
        {"cpu": "1", "memory": "512Mi"},
        volumes,
        command=command,
        ports=[{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        startupProbe=http_probe("/health/live", failures=12),
        # Ready while a server behind it answers, alive while it answers itself.
        readinessProbe=http_probe("/health"),
        livenessProbe=http_probe("/health/live"),
        lifecycle={"preStop": {"exec": {"command": ["sleep", "5"]}}},
    )
    leaving = {"terminationGracePeriodSeconds": answer_s + GRACE_S} if answer_s > ANSWER_S else {}
    return pod_of(release.deploy, [container], volumes, release.object_name, **leaving)
