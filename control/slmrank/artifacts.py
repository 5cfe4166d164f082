"""The artifact store: finished results on disk, found by what they were made from.

Layout: `<root>/<kind>/<key>/manifest.json` plus the artifact's files. The key is a hash of kind,
settings, input keys and the code that makes it, so an unchanged step is found instead of redone.
Versions of tools are recorded, not hashed: upgrading a library does not retrain. A draft is written
beside the final place under a dot name; the manifest is written last and the directory is renamed,
so whatever has a manifest is whole. `<root>/work/` holds resumable state of long steps.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmrank.errors import ArtifactError
from slmrank.hashing import hash_file, hash_value

MANIFEST = "manifest.json"
KEY_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One finished artifact: where it lies and what its manifest says."""

    kind: str
    key: str
    path: Path
    manifest: Mapping[str, Any]

    @property
    def figures(self) -> Mapping[str, Any]:
        figures: Mapping[str, Any] = self.manifest["figures"]
        return figures

    @property
    def digest(self) -> str:
        """What is in it: a hash over the hashes of its files, 16 hex digits."""
        return hash_value(self.manifest["files"])[:16]

    @property
    def seconds(self) -> float:
        return float(self.manifest["seconds"])


@dataclass(kw_only=True)
class Draft:
    """An artifact being written: files go under `path`, measured numbers into `figures`."""

    path: Path
    work: Path
    lineage: Mapping[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)


def artifact_key(
    kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str], code: str
) -> str:
    """The key of an artifact: 16 hex digits over everything that decides its content."""
    identity = {"kind": kind, "settings": settings, "inputs": inputs, "code": code}
    return hash_value(identity)[:KEY_LENGTH]


def read_artifact(path: Path) -> Artifact:
    """The artifact in directory `path`.

    Raises ArtifactError when there is no readable manifest.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        return Artifact(kind=manifest["kind"], key=manifest["key"], path=path, manifest=manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is not a finished artifact: {error}", "run the verb that makes it again"
        ) from error


def _has_its_files(artifact: Artifact) -> bool:
    """Whether each file of the inventory is there with its size."""
    try:
        return all(
            (artifact.path / name).stat().st_size == facts["bytes"]
            for name, facts in artifact.manifest["files"].items()
        )
    except PermissionError as error:
        raise ArtifactError(
            f"{artifact.path}: {error}", "let this user read it, or make it elsewhere (--artifacts)"
        ) from error
    except (OSError, KeyError, TypeError, AttributeError):
        return False


class ArtifactStore:
    """Finds and creates artifacts under one root directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def work(self, kind: str, key: str) -> Path:
        """Where the resumable state of making an artifact lies."""
        return self.root / "work" / f"{kind}-{key}"

    def read(self, kind: str, key: str) -> Artifact:
        """The finished artifact. Raises ArtifactError when it has no readable manifest."""
        return read_artifact(self.path(kind, key))

    def find(self, kind: str, key: str) -> Artifact | None:
        """The finished artifact, or None. A directory without a whole manifest, or without the
        whole of one of its files, does not count, so that it is made again. Raises ArtifactError
        where this user may not read it."""
        try:
            found = self.read(kind, key)
            return found if _has_its_files(found) else None
        except ArtifactError as error:
            if isinstance(error.__cause__, PermissionError):
                raise
            return None

    def all(self, kind: str) -> list[Artifact]:
        """Every finished artifact of a kind, newest first."""
        manifests = (self.root / kind).glob(f"[!.]*/{MANIFEST}")
        each = (self.find(kind, manifest.parent.name) for manifest in manifests)
        return sorted((one for one in each if one is not None), key=_made_at, reverse=True)

    @contextlib.contextmanager
    def lock(self, kind: str, key: str, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the right to make one artifact; a second process waits for the first, after
        `waits`."""
        folder = self.root / "work" / "locks"
        _make_directory(folder)
        try:
            stream = (folder / f"{kind}-{key}").open("w")
        except OSError as error:
            raise ArtifactError(
                f"cannot write to {folder}: {error.strerror}", "choose a writable folder"
            ) from error
        with stream:
            try:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waits()
                    fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError as error:
                raise ArtifactError(
                    f"{folder} cannot be locked: {error.strerror}",
                    "put the artifacts on a file system with flock, such as a local disk",
                ) from error
            yield

    @contextlib.contextmanager
    def create(self, kind: str, key: str, lineage: Mapping[str, Any]) -> Iterator[Draft]:
        """Write a new artifact; it appears only when the block ends without an exception.

        `lineage` (settings, inputs, code, versions) goes into the manifest as it is.
        """
        final = self.path(kind, key)
        draft_path = final.with_name(f".{key}.{os.getpid()}.tmp")
        work = self.work(kind, key)
        for abandoned in final.parent.glob(f".{key}.*.tmp"):
            _remove(abandoned)
        _make_directory(draft_path)
        draft = Draft(path=draft_path, work=work, lineage=lineage)
        created = datetime.datetime.now(datetime.UTC)
        started = time.monotonic()
        try:
            yield draft
            seconds = time.monotonic() - started
            _settle(draft_path)
            manifest = {
                "schema": 1,
                "kind": kind,
                "key": key,
                **lineage,
                "figures": draft.figures,
                "files": inventory(draft_path),
                "created": created.isoformat(timespec="seconds"),
                "seconds": round(seconds, 3),
            }
            write_atomic(draft_path / MANIFEST, json.dumps(manifest, indent=2) + "\n")
            _replace(final, draft_path)
        except BaseException:
            shutil.rmtree(draft_path, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Bring files to the disk before the manifest that says they are whole, and let others read
    them as the umask has it: safetensors writes for the owner alone."""
    umask = os.umask(0o077)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            own = path.stat()
            if own.st_nlink == 1:  # links are of artifacts that were settled
                path.chmod(own.st_mode | (0o666 & ~umask))
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old file or the new one, never a part."""
    write_all({path: text})


def write_all(texts: Mapping[Path, str]) -> None:
    """Write text files that belong together: none is replaced before all are on the disk."""
    drafts = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in texts}
    try:
        for path, draft in drafts.items():
            with draft.open("w", encoding="utf-8") as stream:
                stream.write(texts[path])
                stream.flush()
                os.fsync(stream.fileno())
        for path, draft in drafts.items():
            draft.rename(path)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _replace(final: Path, draft: Path) -> None:
    """Put a draft in its place. The old artifact leaves in one step, so a kill between the two
    renames leaves no artifact rather than a broken one."""
    old = draft.with_name(draft.name.replace(".tmp", ".old.tmp"))
    if final.is_symlink() or final.exists():
        final.rename(old)
    draft.rename(final)
    _remove(old)


def _remove(path: Path) -> None:
    """A folder, or a link to one that lies elsewhere."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def inventory(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {"sha256": hash_file(path), "bytes": path.stat().st_size}
        for path in files
    }


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror}",
            "choose a writable folder with --artifacts or CONTROL_ARTIFACTS",
        ) from error


def _made_at(artifact: Artifact) -> tuple[str, float]:
    """The second that its manifest tells, which a copied store keeps, and within it the file's own
    time; 0 for one that is made again at this moment."""
    changed = 0.0
    with contextlib.suppress(OSError):
        changed = (artifact.path / MANIFEST).stat().st_mtime
    return str(artifact.manifest.get("created", "")), changed
