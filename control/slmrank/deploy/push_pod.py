"""The short-lived pod through which a repository gets onto a claim: no pod that serves may write
there, and a claim cannot be reached from outside of the cluster."""

from __future__ import annotations

import secrets

from slmrank.deploy.naming import BUNDLES, TMP, Object, labelled
from slmrank.deploy.pod import container_of, placement, pod_of
from slmrank.deploy.release import Release

# It ends by itself when whoever made it is gone.
LONGEST_S = 3600
COMPONENT_NAME = "push"


def push_pod(release: Release) -> Object:
    """A pod with the claims of bundles, and of compiled engines where the release has one, mounted
    for writing; it waits for commands. On a node where the release may run, because a claim may
    hold pods to one node."""
    storage = release.deploy.storage
    claims = {"bundles": (storage.bundles_claim, BUNDLES)}
    if release.engine.plan is not None:
        claims["engines"] = (storage.engines_claim, release.engine.engines)
    container = container_of(
        "push",
        release.image,
        {"cpu": "1", "memory": "512Mi"},
        command=["sleep", str(LONGEST_S)],
        volumeMounts=[
            *({"name": name, "mountPath": path} for name, (_, path) in claims.items()),
            {"name": "tmp", "mountPath": TMP},
        ],
    )
    volumes = [
        {"name": name, "persistentVolumeClaim": {"claimName": claim}}
        for name, (claim, _) in claims.items()
    ]
    spec = pod_of(
        release.deploy,
        [container],
        [*volumes, {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
        restartPolicy="Never",
        activeDeadlineSeconds=LONGEST_S,
        terminationGracePeriodSeconds=1,
        **placement(release),
    )
    # Its own name: another push of this bundle must not end it.
    name = f"{release.object_name}-push-{secrets.token_hex(3)}"
    return labelled(release, "v1", "Pod", name, component=COMPONENT_NAME, spec=spec)
