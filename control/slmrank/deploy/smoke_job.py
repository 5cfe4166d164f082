"""The Job that asks the Service of a release for its known answers, from inside the cluster:
through its DNS name, its NetworkPolicy and gRPC, as a client would."""

from __future__ import annotations

from slmrank.deploy.naming import (
    GRPC,
    MANIFEST,
    TMP,
    Object,
    labelled,
    labels,
    manifest_name,
    service_host,
)
from slmrank.deploy.pod import placement, pod_security, restricted, smoke_command, tls_volumes
from slmrank.deploy.release import Release

# With the pull of the image, should the node not have it.
DEADLINE_S = 900


def smoke_job(release: Release, name: str) -> Object:
    """A `batch/v1` Job that ends with `control smoke`."""
    volumes, mounts = tls_volumes(release)
    resources = {"cpu": "500m", "memory": "512Mi"}
    pod: Object = {
        "restartPolicy": "Never",
        "serviceAccountName": release.object_name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "containers": [
            {
                "name": "smoke",
                "image": release.image,
                "imagePullPolicy": "IfNotPresent",
                "command": smoke_command(release, f"{service_host(release)}:{GRPC}", 60),
                # gRPC's own resolver does not use the search list of resolv.conf everywhere.
                "env": [
                    {"name": "HOME", "value": TMP},
                    {"name": "GRPC_DNS_RESOLVER", "value": "native"},
                ],
                "resources": {"requests": resources, "limits": resources},
                "securityContext": restricted(read_only_root=True),
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [
                    {"name": "manifest", "mountPath": MANIFEST, "readOnly": True},
                    {"name": "tmp", "mountPath": TMP},
                    *mounts,
                ],
            }
        ],
        "volumes": [
            {"name": "manifest", "configMap": {"name": manifest_name(release)}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
            *volumes,
        ],
    }
    # Where the pods of the release are, the image is; it takes no GPU there.
    pod |= placement(release)
    if release.deploy.image_pull_secret is not None:
        pod["imagePullSecrets"] = [{"name": release.deploy.image_pull_secret}]
    return labelled(
        release,
        "batch/v1",
        "Job",
        name,
        component="smoke",
        spec={
            "backoffLimit": 1,
            "activeDeadlineSeconds": DEADLINE_S,
            "ttlSecondsAfterFinished": 3600,
            "template": {
                "metadata": {"labels": labels(release, "smoke")},
                "spec": pod,
            },
        },
    )
