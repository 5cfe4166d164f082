"""Processes: which one of a run this is, and children that end with it.

The first as `accelerate launch` and `torchrun` say it, read from the environment, so that nothing
has to load torch to know who writes files.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

# Linux: the kernel ends the child when this process is killed, so no port and no GPU stays taken,
# and nothing goes on to load a server. Asked for between exec and exec, never between fork and exec
# (`preexec_fn`): there, Python and gRPC's fork handlers run beside gRPC's other threads, and 26 of
# 1,500 children died before they were anything.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


def tied(command: Sequence[str]) -> list[str]:
    """The command as a child that gets SIGTERM when the thread that starts it ends. Raises
    FileNotFoundError where no program of that name is found; a path that is none says so itself."""
    program = command[0] if "/" in command[0] else shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(2, "No such file or directory", command[0])
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
    return [*launcher, os.path.abspath(program), *command[1:]]


def process_count() -> int:
    """Processes of the run, 1 without a launcher."""
    return max(_number("WORLD_SIZE", 1), 1)


def process_rank() -> int:
    """This process among them; 0 writes."""
    return _number("RANK", 0) if process_count() > 1 else 0


def _number(name: str, default: int) -> int:
    """A variable that is no number is none that a launcher set."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def is_first() -> bool:
    return process_rank() == 0
