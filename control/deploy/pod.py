"""What every pod of ours has: the restricted security profile and the bundle volume."""

from __future__ import annotations

from typing import Any

USER = 1000


def pod_security() -> dict[str, Any]:
    """Pod level; `fsGroup` belongs here and nowhere else."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def restricted(*, read_only_root: bool) -> dict[str, Any]:
    """Container level. The NVIDIA runtime's hook writes into the root of a GPU container."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": read_only_root,
    }


def bundle_volume(claim: str, image: str | None = None) -> dict[str, Any]:
    """The claim with repositories, or an image mounted as a volume."""
    if image is not None:
        return {"name": "bundles", "image": {"reference": image, "pullPolicy": "IfNotPresent"}}
    return {"name": "bundles", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
