"""Every error that the library raises on purpose. The exit code is the command line's; `hint` is
the remedy, one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class ControlError(Exception):
    """Base of all errors below: a message that names value and rule, and a remedy."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SpecError(ControlError):
    exit_code = 2  # the bundle spec or a command-line value


class DataError(ControlError):
    exit_code = 3  # jobs, pairs, downloads


class CheckpointError(ControlError):
    exit_code = 4  # a model directory, its tokenizer or its label tokens


class ArtifactError(ControlError):
    exit_code = 5  # the artifact store


class StoreUnavailable(ArtifactError):
    """A shared summary store is down, late, or holds nothing for this tokenizer and summarizer."""


class EngineError(ControlError):
    exit_code = 6  # building an engine


class ParityError(EngineError):
    """The engine was built but its scores leave the tolerance written in the spec."""


class RepositoryError(ControlError):
    exit_code = 7  # a Triton model repository


class ServerError(ControlError):
    exit_code = 8  # starting or reaching tritonserver


class ScoreError(ControlError):
    exit_code = 9  # a scoring call


class InvalidQuery(ScoreError):
    """Blank, too long or not UTF-8: the same query will be refused again."""


class InvalidRequest(ScoreError):
    """Tensors that do not belong together, or more jobs than the server takes."""


class Overloaded(ScoreError):
    """The server refused because its queue is full; repeating at once makes that worse."""


class DeadlineExceeded(ScoreError):
    """No answer inside the caller's time."""


class Unreachable(ScoreError):
    """No server answers there."""


class ServerFault(ScoreError):
    """The server failed while it scored."""


class WrongAnswer(ScoreError):
    """A server scores its known answers otherwise than the engine that it should serve."""


class SweepError(ControlError):
    exit_code = 10  # perf_analyzer


class MissingDependencyError(ControlError):
    exit_code = 11  # a package or binary that an extra would bring


@contextlib.contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """Around an import: raises MissingDependencyError, `what` and why, where it fails."""
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"{what}: {error}", f"pip install 'slmrank[{extra}]'"
        ) from error


class DeployError(ControlError):
    exit_code = 12  # manifests and clusters; the verbs that change a cluster end as below


class Refused(DeployError):
    """Nothing in the cluster was changed."""

    exit_code = 1


class RolledBack(DeployError):
    """The new release failed; the one before it serves."""

    exit_code = 2


class DeployFailed(DeployError):
    """The new release failed and nothing was put back."""

    exit_code = 3
