"""A command inside a pod, with what it reads from this side."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from slmrank.deploy.cluster.api import ApiError, Cluster
from slmrank.errors import DeployError

# A frame of the connection; bigger ones are cut on their way.
FRAME = 256 * 1024
SAID = 4000


class _Stdin(io.RawIOBase):
    """Writes go to the command's standard input."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        block = bytes(data)
        for start in range(0, len(block), FRAME):
            # A command that ended says why before it hangs up, and hears nothing any more.
            self._socket.update(timeout=0)
            if not self._socket.is_open():
                raise BrokenPipeError("the command ended before its input did")
            self._socket.write_stdin(block[start : start + FRAME])
        return len(block)


def execute(
    cluster: Cluster,
    namespace: str,
    pod: str,
    command: Sequence[str],
    send: Callable[[BinaryIO], None] | None = None,
    *,
    timeout_s: float = 600.0,
) -> tuple[int, str]:
    """Run `command` in the first container of a pod; `send` writes its standard input, whose end
    the command must know by itself, and read to there. Returns (exit status, the end of what it
    said).

    Raises ApiError when it cannot be started, DeployError when the connection breaks.
    """
    from kubernetes.client import CoreV1Api
    from kubernetes.client.rest import ApiException
    from kubernetes.stream import stream
    from websocket import WebSocketException

    try:
        socket = stream(
            CoreV1Api(cluster.transport).connect_get_namespaced_pod_exec,
            pod,
            namespace,
            command=list(command),
            stdin=send is not None,
            stdout=True,
            stderr=True,
            tty=False,
            binary=True,
            _preload_content=False,
        )
    except ApiException as error:
        raise ApiError(
            f"no command can be run in pod {namespace}/{pod}: {error.reason}",
            "ask for the Role in access/deployer-role.yaml: pods/exec",
            int(error.status or 0),
        ) from error
    broken = ""
    try:
        if send is not None:
            try:
                with io.BufferedWriter(_Stdin(socket), FRAME) as stdin:
                    send(stdin)
            except (OSError, WebSocketException) as error:
                broken = str(error)  # it may have ended and said why
        socket.run_forever(timeout=timeout_s)
        said = (socket.read_channel(1) + socket.read_channel(2)).decode("utf-8", "replace")
        status = None if socket.is_open() else socket.returncode
    except (OSError, WebSocketException, ValueError, KeyError, TypeError, IndexError) as error:
        raise DeployError(
            f"the connection to pod {namespace}/{pod} broke: {broken or error}", "repeat it"
        ) from error
    finally:
        socket.close()
    if status is None:
        raise DeployError(
            f"{command[0]} in pod {namespace}/{pod} did not end in {timeout_s:.0f} s", "repeat it"
        )
    return status, said[-SAID:]
