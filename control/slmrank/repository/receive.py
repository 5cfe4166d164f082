"""Artifacts on their way to where pods read them. One gets its name there only once every file is
what its manifest says and the manifest is the one that was sent: nothing half-copied is taken for
whole."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Final

from slmrank.artifacts import MANIFEST, Artifact, read_artifact
from slmrank.data.parts import Place
from slmrank.errors import ArtifactError, RepositoryError
from slmrank.repository.verify import Expected, verify_repository

BLOCK = 1 << 20
ABANDONED_S = 24 * 3600
TAR_FORMAT: Final = tarfile.GNU_FORMAT  # USTAR has no files of 8 GiB, and one of pax no fixed size


def is_whole(folder: Path, digest: str) -> bool:
    """Whether `folder` is the artifact with this digest, to the last byte."""
    try:
        _check(folder, digest)
    except RepositoryError:
        return False
    return True


class _Bounded(io.RawIOBase):
    """The next `size` bytes of a stream."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(block)
        return block

    def drain(self) -> None:
        while self.read(BLOCK):
            pass


def receive_tar(stream: BinaryIO, size: int, target: Path, digest: str) -> int:
    """Unpack the next `size` bytes of a stream, an archive as `write_tar` makes it, into `target`;
    returns the bytes of its files. All are read whatever is wrong with them: containerd 1.6 hangs
    on a command in a pod that ends before its input does.

    Raises RepositoryError when it breaks off, or is not the artifact with this digest; `target`
    stays as it was.
    """
    bounded = _Bounded(stream, size)

    def unpack(draft: Path) -> None:
        try:
            with tarfile.open(mode="r|", fileobj=bounded) as archive:
                # By hand: Python 3.11.2, which is Debian's, has no filter that keeps it inside.
                for member in archive:
                    content = archive.extractfile(member)
                    if content is None:
                        raise RepositoryError(f"{member.name!r} is no file", "push it again")
                    path = draft / _inside(member.name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("wb") as sink:
                        shutil.copyfileobj(content, sink, BLOCK)
        except (tarfile.TarError, OSError) as error:
            raise RepositoryError(
                f"{target}: the stream is no archive, or broke off: {error}", "push it again"
            ) from error

    try:
        with contextlib.suppress(RepositoryError):
            return _check(target, digest)  # there since it was asked for
        return _land(target, digest, unpack)
    finally:
        bounded.drain()


def receive_url(url: str, target: Path, digest: str) -> int:
    """Copy an artifact from a folder or url into `target`; returns the bytes.

    Raises RepositoryError or DataError when it is not there whole; `target` stays as it was.
    """
    place = Place(url)

    def copy(draft: Path) -> None:
        manifest = place.read(MANIFEST)
        if manifest is None:
            raise RepositoryError(
                f"{url} holds no {MANIFEST}", "`control deploy push` puts the artifact there"
            )
        (draft / MANIFEST).write_bytes(manifest)
        for name in read_artifact(draft).manifest["files"]:
            path = draft / _inside(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            place.fetch(name, path)

    return _land(target, digest, copy)


def send_url(artifact: Artifact, url: str) -> bool:
    """Copy an artifact below a folder or url, its manifest last; False when it was there, with
    every file in its size (who fetches it compares the content)."""
    place, names = Place(url), _names(artifact)
    manifest = (artifact.path / MANIFEST).read_bytes()
    sizes = [(artifact.path / name).stat().st_size for name in names]
    if place.read(MANIFEST) == manifest and place.sizes(names) == sizes:
        return False
    for folder in sorted({str(PurePosixPath(name).parent) for name in names}):
        (place if folder == "." else place.below(folder)).make()
    for name in names:
        place.put(artifact.path / name, name)
    return True


def write_tar(artifact: Artifact, sink: IO[bytes]) -> None:
    """An artifact as a tar stream: the same bytes on every machine."""
    with tarfile.open(mode="w|", fileobj=sink, format=TAR_FORMAT) as archive:
        for entry, path in tar_entries(artifact):
            with path.open("rb") as content:
                archive.addfile(entry, content)


def tar_bytes(artifact: Artifact) -> int:
    """The length of what `write_tar` writes."""
    size = 2 * tarfile.BLOCKSIZE
    for entry, _ in tar_entries(artifact):
        size += len(entry.tobuf(TAR_FORMAT))
        size += -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return -(-size // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def tar_entries(artifact: Artifact) -> Iterator[tuple[tarfile.TarInfo, Path]]:
    """(entry, file) of an artifact's files, the manifest last; times and owners are not theirs."""
    for name in _names(artifact):
        entry = tarfile.TarInfo(name)
        entry.size = (artifact.path / name).stat().st_size
        entry.mode = 0o644
        yield entry, artifact.path / name


def _names(artifact: Artifact) -> list[str]:
    return [*sorted(artifact.manifest["files"]), MANIFEST]


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise RepositoryError(f"the manifest names {name!r}, outside of its folder", "push again")
    return path


def _check(folder: Path, digest: str) -> int:
    try:
        artifact = read_artifact(folder)
    except ArtifactError as error:
        raise RepositoryError(f"what came broke off: {error.message}", "push it again") from error
    if artifact.digest != digest:
        raise RepositoryError(
            f"{folder}: what came is {artifact.digest}, not {digest}", "push it again"
        )
    return verify_repository(folder, Expected(files=artifact.manifest["files"], tag="", plan=None))


def _land(target: Path, digest: str, fill: Callable[[Path], None]) -> int:
    """Fill a folder beside `target`, check it, and give it the name."""
    draft = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    draft.mkdir(parents=True)
    own = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}(\.old)?")
    for other in target.parent.iterdir():
        with contextlib.suppress(OSError):  # of one that was killed: engines are gigabytes
            if own.fullmatch(other.name) and time.time() - other.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(other)
    old = draft.with_name(f"{draft.name}.old")
    try:
        fill(draft)
        done = _check(draft, digest)
        for path in (draft, *draft.rglob("*")):  # whoever serves it is another user
            path.chmod(0o755 if path.is_dir() else 0o644)
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(draft, target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return done
