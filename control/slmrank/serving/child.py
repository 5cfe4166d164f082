"""A server as a child of this process: it ends with it, and its last lines are kept."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TextIO

from slmrank.processes import tied

KEPT_LINES, SHOWN_LINES = 2000, 20
_FAULT = re.compile(r"^E\d{4}|error|failed|traceback|exception", re.IGNORECASE)


class Child:
    """A running process. The kernel ends it with the thread that started it, which is one of its
    own: it lives as long, whichever thread made this object. What it prints goes through a pipe,
    for a file would grow for ever; `echo` gets every line of it.

    Raises OSError where it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], echo: TextIO | None = None
    ) -> None:
        self._echo = echo
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        started: Future[subprocess.Popen[str]] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(command, environment, started), name="child", daemon=True
        )
        self._thread.start()
        self.process = started.result()

    def log(self) -> str:
        """The last lines that it printed."""
        if self.process.poll() is not None:
            self._thread.join(1.0)  # what it said at its end may still be in the pipe
        return "".join(self._lines)

    def _run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        started: Future[subprocess.Popen[str]],
    ) -> None:
        try:
            process = subprocess.Popen(
                tied(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                text=True,
                errors="replace",
                # A terminal's Ctrl-C is for who started it, who lets it answer what it took.
                start_new_session=True,
            )
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(process)
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.append(line)
                if self._echo is not None:
                    with contextlib.suppress(OSError, ValueError):  # nobody may read it any more
                        self._echo.write(line)
                        self._echo.flush()


def fault_lines(log: str) -> str:
    """The last lines of a server log that speak of a fault, or the last lines of all."""
    lines = [line for line in log.splitlines() if line.strip()]
    faults = [line for line in lines if _FAULT.search(line)]
    return "\n".join(f"  | {line}" for line in (faults or lines)[-SHOWN_LINES:])
