"""The Job that asks the Service of a release for its known answers, from inside the cluster:
through its DNS name, its NetworkPolicy and gRPC, as a client would."""

from __future__ import annotations

from slmrank.deploy.naming import GRPC, Object, labelled, labels, service_host
from slmrank.deploy.pod import (
    container_of,
    manifest_volume,
    placement,
    pod_of,
    smoke_command,
    tls_volumes,
    tmp,
)
from slmrank.deploy.release import Release

# With the pull of the image, should the node not have it.
DEADLINE_S = 900


def smoke_job(release: Release, name: str) -> Object:
    """A `batch/v1` Job that ends with `control smoke`."""
    volumes = [manifest_volume(release), tmp(), *tls_volumes(release)]
    resources = {"cpu": "500m", "memory": "512Mi"}
    command = smoke_command(release, f"{service_host(release)}:{GRPC}", 60)
    pod = pod_of(
        release.deploy,
        [container_of("smoke", release.image, resources, volumes, command=command)],
        volumes,
        release.object_name,
        restartPolicy="Never",
        # Where the pods of the release are, the image is; it takes no GPU there.
        **placement(release),
    )
    spec = {
        "backoffLimit": 1,
        "activeDeadlineSeconds": DEADLINE_S,
        "ttlSecondsAfterFinished": 3600,
        "template": {"metadata": {"labels": labels(release, "smoke")}, "spec": pod},
    }
    return labelled(release, "batch/v1", "Job", name, component="smoke", spec=spec)
