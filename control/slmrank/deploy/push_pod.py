"""The short-lived pod through which a repository gets onto a claim: no pod that serves may write
there, and a claim cannot be reached from outside of the cluster."""

from __future__ import annotations

import secrets

from slmrank.deploy.naming import BUNDLES, Object, labelled
from slmrank.deploy.pod import claimed, container_of, placement, pod_of, tmp
from slmrank.deploy.release import Release

# It ends by itself when whoever made it is gone.
LONGEST_S = 3600
COMPONENT_NAME = "push"


def push_pod(release: Release) -> Object:
    """A pod with the claims of bundles, and of compiled engines where the release has one, mounted
    for writing; it waits for commands. On a node where the release may run, because a claim may
    hold pods to one node."""
    storage = release.deploy.storage
    volumes = [claimed("bundles", BUNDLES, storage.bundles_claim, read_only=False)]
    if release.engine.plan is not None:
        path = release.engine.engines
        volumes.append(claimed("engines", path, storage.engines_claim, read_only=False))
    volumes.append(tmp())
    resources, command = {"cpu": "1", "memory": "512Mi"}, ["sleep", str(LONGEST_S)]
    spec = pod_of(
        release.deploy,
        [container_of("push", release.image, resources, volumes, command=command)],
        volumes,
        restartPolicy="Never",
        activeDeadlineSeconds=LONGEST_S,
        terminationGracePeriodSeconds=1,
        **placement(release),
    )
    # Its own name: another push of this bundle must not end it.
    name = f"{release.object_name}-push-{secrets.token_hex(3)}"
    return labelled(release, "v1", "Pod", name, component=COMPONENT_NAME, spec=spec)
