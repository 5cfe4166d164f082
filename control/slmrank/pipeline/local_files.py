"""What a spec names on this machine's disk: checkpoints and data files, by their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from slmrank.errors import CheckpointError, DataError, SpecError
from slmrank.hashing import hash_file
from slmrank.model.base_model import imported_files
from slmrank.model.checkpoint import RANKER_FILE
from slmrank.spec.model import PACKAGED_MODEL

# A card or a plot beside them decides nothing.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.*", "ranker_adapter.json")


def local_checkpoint(source: str) -> Path | None:
    """The directory of a local base model, None for the packaged one. Raises SpecError when it is
    neither."""
    if source == PACKAGED_MODEL:
        return None
    path = Path(source)
    if not path.is_dir():
        raise SpecError(
            f"base.source {source!r} is neither {PACKAGED_MODEL} nor a directory",
            "give the path of a Hugging Face checkpoint",
        )
    return path


def file_hash(path: Path) -> str:
    """Raises DataError when the file cannot be read."""
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check the path") from error


def folder_hashes(
    path: Path, names: Sequence[str] = ("*",), hint: str = "check the path"
) -> Mapping[str, str]:
    """The hash of every file below a folder with one of these names, by its path there. Raises
    DataError with the hint when there is no folder."""
    if not path.is_dir():
        raise DataError(f"{path} is no folder", hint)
    files = sorted(file for name in names for file in path.rglob(name) if file.is_file())
    return {file.relative_to(path).as_posix(): hash_file(file) for file in files}


def checkpoint_hashes(path: Path) -> Mapping[str, str]:
    """The hash of every file that is taken of a checkpoint, by name."""
    files = [*imported_files(path), path / RANKER_FILE]
    return {file.name: hash_file(file) for file in files if file.is_file()}


def teacher_hashes(path: Path) -> Mapping[str, str]:
    """The same of a ranker checkpoint. Raises CheckpointError when it is none."""
    for name in ("config.json", RANKER_FILE):
        if not (path / name).is_file():
            raise CheckpointError(
                f"{path} is no checkpoint of a ranker: it has no {name}",
                "give the folder `checkpoint` of an artifact, such as artifacts/finetuned/KEY",
            )
    return checkpoint_hashes(path)
