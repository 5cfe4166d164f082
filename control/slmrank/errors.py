"""Every error that the library raises on purpose.

    ControlError                 1
      SpecError                  2   the bundle spec or a command-line value
      DataError                  3   jobs, pairs, downloads
      CheckpointError            4   a model directory, its tokenizer or its label tokens
      ArtifactError              5   the artifact store; StoreUnavailable: a shared summary store
      EngineError                6   building an engine; ParityError: built, but scores differ
      RepositoryError            7   a Triton model repository
      ServerError                8   starting or reaching tritonserver
      ScoreError                 9   a scoring call: InvalidQuery, InvalidRequest, Overloaded,
                                     DeadlineExceeded, Unreachable, ServerFault, WrongAnswer
      SweepError                10   perf_analyzer
      MissingDependencyError    11   a package or binary that an extra would bring
      DeployError               12   manifests and clusters; the verbs that change a cluster end
                                     with 1 refused, 2 rolled back, 3 failed instead

The number is the exit code of the command line. `hint` is the remedy, one sentence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class ControlError(Exception):
    """Base of all errors above: a message that names value and rule, and a remedy."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SpecError(ControlError):
    exit_code = 2


class DataError(ControlError):
    exit_code = 3


class CheckpointError(ControlError):
    exit_code = 4


class ArtifactError(ControlError):
    exit_code = 5


class StoreUnavailable(ArtifactError):
    """A shared summary store is down, late, or holds nothing for this tokenizer and summarizer."""


class EngineError(ControlError):
    exit_code = 6


class ParityError(EngineError):
    """The engine was built but its scores leave the tolerance written in the spec."""


class RepositoryError(ControlError):
    exit_code = 7


class ServerError(ControlError):
    exit_code = 8


class ScoreError(ControlError):
    exit_code = 9


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
    exit_code = 10


class MissingDependencyError(ControlError):
    exit_code = 11


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
    exit_code = 12


class Refused(DeployError):
    """Nothing in the cluster was changed."""

    exit_code = 1


class RolledBack(DeployError):
    """The new release failed; the one before it serves."""

    exit_code = 2


class DeployFailed(DeployError):
    """The new release failed and nothing was put back."""

    exit_code = 3
