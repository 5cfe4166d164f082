"""What comes from elsewhere is whole under its name, or not there."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from slmrank.artifacts import MANIFEST, Artifact, ArtifactStore
from slmrank.errors import DataError, RepositoryError
from slmrank.repository.receive import (
    is_whole,
    receive_tar,
    receive_url,
    send_url,
    tar_bytes,
    write_tar,
)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    store = ArtifactStore(tmp_path / "artifacts")
    lineage = {"settings": {}, "inputs": {}, "code": "c", "versions": {}}
    with store.create("repository", "0123456789abcdef", lineage) as draft:
        (draft.path / "ranker" / "1").mkdir(parents=True)
        (draft.path / "ranker" / "1" / "items.bin").write_bytes(bytes(range(256)) * 9000)
        (draft.path / "rank").mkdir()
        (draft.path / "rank" / "config.pbtxt").write_text('name: "rank"\n')
        (draft.path / "empty").write_bytes(b"")
    return store.read("repository", "0123456789abcdef")


def tar_of(artifact: Artifact) -> bytes:
    sink = io.BytesIO()
    write_tar(artifact, sink)
    return sink.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_a_file_of_8_gib_has_its_place_in_a_stream(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    lineage = {"settings": {}, "inputs": {}, "code": "c", "versions": {}}
    with store.create("repository", "0123456789abcdef", lineage) as draft:
        (draft.path / ("long" * 30)).write_bytes(b"x")
    made = store.read("repository", "0123456789abcdef")
    assert tar_bytes(made) == len(tar_of(made))
    before = tar_bytes(made)
    (name,) = made.manifest["files"]
    with (made.path / name).open("r+b") as file:
        file.truncate(8 << 30)
    assert tar_bytes(made) == pytest.approx(before + (8 << 30), abs=tarfile.RECORDSIZE)


def test_a_stream_and_a_url_bring_the_same(artifact: Artifact, tmp_path: Path) -> None:
    target, other = tmp_path / "claim" / "r", tmp_path / "pod" / "r"
    sent = tar_of(artifact)
    assert tar_bytes(artifact) == len(sent)
    # What follows on the connection is not read as part of it.
    stream = io.BytesIO(sent + b"more")
    size = receive_tar(stream, len(sent), target, artifact.digest)
    assert size == 256 * 9000 + len('name: "rank"\n')
    assert stream.read() == b"more"
    url = f"file://{tmp_path}/bucket/r"
    assert send_url(artifact, url) is True
    assert send_url(artifact, url) is False
    receive_url(url, other, artifact.digest)
    assert is_whole(target, artifact.digest)
    assert is_whole(other, artifact.digest)
    for name in (*artifact.manifest["files"], MANIFEST):
        assert (target / name).read_bytes() == (other / name).read_bytes()
    assert names(target.parent) == ["r"]
    # Whoever serves it is another user.
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_a_stream_that_breaks_off_leaves_nothing(
    artifact: Artifact, tmp_path: Path, kept: float
) -> None:
    sent = tar_of(artifact)
    # The padding at the end of an archive is no content.
    cut = sent[: int(kept * (len(sent) - tarfile.RECORDSIZE))]
    with pytest.raises(RepositoryError, match="broke off|not a finished|missing"):
        receive_tar(io.BytesIO(cut), len(sent), tmp_path / "claim" / "r", artifact.digest)
    assert names(tmp_path / "claim") == []


def test_another_artifact_does_not_take_the_name(artifact: Artifact, tmp_path: Path) -> None:
    target = tmp_path / "claim" / "r"
    stream = io.BytesIO(tar_of(artifact))
    with pytest.raises(RepositoryError, match=f"what came is {artifact.digest}, not f{{16}}"):
        receive_tar(stream, 10**9, target, "f" * 16)
    assert not target.exists()


def test_one_that_cannot_be_swapped_stays_and_drafts_of_killed_ones_go(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, sent = tmp_path / "claim" / "r", tar_of(artifact)
    receive_tar(io.BytesIO(sent), len(sent), target, artifact.digest)
    (target / "rank" / "config.pbtxt").write_text('name: "rang"\n')
    old, new, other = (target.with_name(f".r.{one}") for one in ("0123abcd", "4567abcd", "mine"))
    for draft in (old, new, other):
        draft.mkdir()
    for draft in (old, other):
        os.utime(draft, (0, 0))
    replace = os.replace

    def failing(source: Path, aim: Path) -> None:
        if Path(aim) == target and not str(source).endswith(".old"):
            raise OSError(5, "Input/output error")
        replace(source, aim)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"):
        receive_tar(io.BytesIO(sent), len(sent), target, artifact.digest)
    assert (target / "rank" / "config.pbtxt").read_text() == 'name: "rang"\n'
    assert names(target.parent) == [".r.4567abcd", ".r.mine", "r"]


def test_a_damaged_one_is_replaced_and_kept_until_then(artifact: Artifact, tmp_path: Path) -> None:
    target = tmp_path / "claim" / "r"
    sent = tar_of(artifact)
    receive_tar(io.BytesIO(sent), len(sent), target, artifact.digest)
    (target / "rank" / "config.pbtxt").write_text('name: "rang"\n')
    assert not is_whole(target, artifact.digest)
    with pytest.raises(RepositoryError):
        receive_tar(io.BytesIO(sent[:1000]), len(sent), target, artifact.digest)
    assert (target / "rank" / "config.pbtxt").read_text() == 'name: "rang"\n'
    receive_tar(io.BytesIO(sent), len(sent), target, artifact.digest)
    assert is_whole(target, artifact.digest)
    assert names(target.parent) == ["r"]


def test_an_archive_cannot_write_outside(artifact: Artifact, tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(mode="w|", fileobj=sink) as archive:
        entry = tarfile.TarInfo("../outside")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    sink.seek(0)
    size = len(sink.getvalue())
    with pytest.raises(RepositoryError, match="outside of its folder"):
        receive_tar(sink, size, tmp_path / "claim" / "r", artifact.digest)
    assert not (tmp_path / "claim" / "outside").exists()
    # All of it was read: a command in a pod that ends before its input does would hang.
    assert sink.read() == b""


def test_a_url_that_holds_less_is_named(artifact: Artifact, tmp_path: Path) -> None:
    target = tmp_path / "pod" / "r"
    with pytest.raises(RepositoryError, match=r"holds no manifest\.json"):
        receive_url(f"file://{tmp_path}/nowhere", target, artifact.digest)
    send_url(artifact, f"file://{tmp_path}/bucket")
    (tmp_path / "bucket" / "empty").unlink()
    with pytest.raises(DataError, match="cannot reach"):
        receive_url(f"file://{tmp_path}/bucket", target, artifact.digest)
    assert names(tmp_path / "pod") == []


def test_a_url_that_lost_a_part_is_filled_again(artifact: Artifact, tmp_path: Path) -> None:
    url = str(tmp_path / "there")
    assert send_url(artifact, url)
    assert not send_url(artifact, url)
    (tmp_path / "there" / "ranker" / "1" / "items.bin").write_bytes(b"cut")
    assert send_url(artifact, url)
    assert receive_url(url, tmp_path / "pod", artifact.digest) > 0
