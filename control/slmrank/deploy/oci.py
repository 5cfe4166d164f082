"""An image that holds a repository and nothing else, for `deploy.storage.bundle_image`: an archive
in the OCI layout, made without a Docker engine and the same on every machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any

from slmrank.artifacts import Artifact
from slmrank.hashing import hash_file
from slmrank.repository.receive import write_tar

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_image(artifact: Artifact, path: Path, name: str) -> str:
    """Write the archive with the artifact at the image's root; returns the image's digest,
    `sha256:...`, which `deploy.storage.bundle_image` names. Image specification 1.0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent) as layer:
            write_tar(artifact, layer.file)
            layer.flush()
            layer_digest, layer_bytes = f"sha256:{hash_file(Path(layer.name))}", layer.tell()
            config = _json(
                {
                    "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
                    "os": "linux",
                    "config": {"Labels": {"io.slmrank.repository": artifact.digest}},
                    "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
                }
            )
            manifest = _json(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST,
                    "config": _described(CONFIG, config),
                    "layers": [{"mediaType": LAYER, "digest": layer_digest, "size": layer_bytes}],
                }
            )
            named = {"org.opencontainers.image.ref.name": name}
            index = {
                "schemaVersion": 2,
                "mediaType": INDEX,
                "manifests": [{**_described(MANIFEST, manifest), "annotations": named}],
            }
            with tarfile.open(draft, "w") as archive:
                _add(archive, "oci-layout", io.BytesIO(_json({"imageLayoutVersion": "1.0.0"})))
                for blob in (config, manifest):
                    _add(archive, _blob(_sha256(blob)), io.BytesIO(blob))
                _add(archive, _blob(layer_digest), layer.file)
                _add(archive, "index.json", io.BytesIO(_json(index)))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return _sha256(manifest)


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes]) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = content.seek(0, os.SEEK_END)
    entry.mode = 0o644
    content.seek(0)
    archive.addfile(entry, content)


def _described(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _sha256(blob), "size": len(blob)}


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"
