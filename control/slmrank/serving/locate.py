"""Find a tritonserver on this machine and say how to start it.

Order: the `TRITONSERVER` variable, `tritonserver` on the PATH or in /opt/tritonserver (the NVIDIA
container), then the server inside the package nvidia-pytriton. The packaged one needs a folder with
its Python backend and the stub for the running interpreter side by side, and its private libraries
plus the interpreter's libpython on LD_LIBRARY_PATH.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from slmrank.errors import MissingDependencyError

CONTAINER_BINARY = Path("/opt/tritonserver/bin/tritonserver")


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A server binary, extra arguments and environment variables, and where it came from."""

    binary: Path
    origin: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def locate_tritonserver(work: Path) -> Installation:
    """The installation to use; the packaged one is laid out inside `work`.

    Raises MissingDependencyError when there is none.
    """
    named = os.environ.get("TRITONSERVER")
    if named:
        if not os.access(named, os.X_OK):
            raise MissingDependencyError(
                f"TRITONSERVER={named} is not an executable file", "correct or unset the variable"
            )
        return Installation(
            binary=Path(named), origin="TRITONSERVER", environment=_interpreter_first()
        )
    found = shutil.which("tritonserver") or (
        str(CONTAINER_BINARY) if CONTAINER_BINARY.exists() else None
    )
    if found:
        return Installation(binary=Path(found), origin="PATH", environment=_interpreter_first())
    package = _package_folder("pytriton")
    if package is None:
        raise MissingDependencyError(
            "no tritonserver: not in TRITONSERVER, not on the PATH, nvidia-pytriton not installed",
            "pip install 'slmrank[local]', or run inside the NVIDIA Triton container",
        )
    return _packaged(package, work)


def bundled_libraries() -> Path | None:
    """The folder of shared libraries that nvidia-pytriton brings, or None."""
    package = _package_folder("pytriton")
    folder = package.parent / "nvidia_pytriton.libs" if package else None
    return folder if folder is not None and folder.is_dir() else None


def _packaged(package: Path, work: Path) -> Installation:
    server = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise MissingDependencyError(
            f"nvidia-pytriton has no Python backend for Python {version}", "use Python 3.11 or 3.12"
        )
    backend = work / "backends" / "python"
    shutil.rmtree(backend, ignore_errors=True)
    backend.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (backend / name).symlink_to(server / "backends" / "python" / name)
    # A copy, not a link: the stub finds the backend's other files beside its own real path.
    shutil.copy2(stub, backend / stub.name)
    (backend / stub.name).chmod(0o755)
    binary = work / "tritonserver"
    shutil.copy2(server / "bin" / "tritonserver", binary)
    binary.chmod(0o755)
    libraries = [str(package.parent / "nvidia_pytriton.libs"), str(libpython_folder())]
    return Installation(
        binary=binary,
        origin="nvidia-pytriton",
        arguments=("--backend-directory", str(work / "backends")),
        environment={**_interpreter_first(), "LD_LIBRARY_PATH": ":".join(libraries)},
    )


def libpython_folder() -> Path:
    """The folder of this interpreter's shared library, which the Python backend loads.

    Raises MissingDependencyError when the interpreter was built without one and none is installed.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"libpython{version}.so.1.0"
    configured = sysconfig.get_config_var("LIBDIR") or ""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    folders = [configured, f"{sys.base_prefix}/lib", f"/usr/lib/{multiarch}", "/usr/local/lib"]
    for folder in folders:
        if folder and (Path(folder) / name).exists():
            return Path(folder)
    raise MissingDependencyError(
        f"{name} not found; Triton's Python backend loads it",
        f"apt-get install libpython{version}, or use an interpreter built with --enable-shared",
    )


def _interpreter_first() -> dict[str, str]:
    """Environment that makes the backend's embedded interpreter this one.

    It ignores PYTHONPATH, but finds its prefix, and with it a virtual environment, through the
    first `python3` on the PATH. With another interpreter's packages it loads another numpy, and
    numpy 2 silently turns every string tensor into garbage (stride 0 in this backend's build).
    """
    folder = str(Path(sys.executable).parent)
    return {"PATH": f"{folder}:{os.environ.get('PATH', os.defpath)}"}


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        return None
    return Path(spec.origin).parent
