"""Follow changes of single jobs into a shared summary store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmrank.artifacts import ArtifactStore
from slmrank.data.records import Job
from slmrank.errors import ControlError, MissingDependencyError, StoreUnavailable
from slmrank.hashing import hash_value
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.stages.inputs import checkpoint_of
from slmrank.pipeline.steps import Watcher, run
from slmrank.prompt.encoder import PromptEncoder
from slmrank.serving.prepare import read_summarizing
from slmrank.store.changes import Change, ChangeSource, Delivery, read_change
from slmrank.store.registry import open_writer, shared_kind
from slmrank.summarize.registry import load_summarizer
from slmrank.summarize.summarizer import Summarizer, summarize_entries
from slmrank.tokens import Ids
from slmrank.triton.config import PREPARE

BATCH = 64
WAIT_S = 1.0
FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 2.0


@dataclass
class Followed:
    """What a follower did so far. `failure`: why the store does not answer, now; `delays_s`: from
    message to store, of the last batch."""

    applied: int = 0
    outdated: int = 0
    rejected: int = 0
    failures: int = 0
    failure: str = ""
    delays_s: list[float] = field(default_factory=list)


Told = Callable[[Followed, int | None], None]


class Follower:
    """Summarises what changes and puts it into the shared store `url`, among the summaries of
    `identity`."""

    def __init__(
        self, url: str, identity: dict[str, Any], summarizer: Summarizer, encoder: PromptEncoder
    ) -> None:
        self.url = url
        # Every release reads all changes: what summarises in another way is another group.
        self.group = f"slmrank-{hash_value(identity)[:16]}"
        self._writer = open_writer(url, identity)
        self._summarizer, self._encoder = summarizer, encoder
        self.counts = Followed()
        self._stopping = False
        self._in_hand = 0
        self._told: Told = lambda _counts, _lag: None

    def stop(self) -> None:
        """End after the batch at hand. Safe in a signal handler."""
        self._stopping = True

    def follow(
        self,
        source: ChangeSource,
        told: Told = lambda _counts, _lag: None,
        *,
        until_idle: bool = False,
    ) -> Followed:
        """Apply changes until the source ends or `stop`; with `until_idle` until nothing waits.

        A store that is away is waited for; StoreUnavailable only when it is away at `stop`. Raises
        MissingDependencyError, before anything is taken, where nothing can be summarised here.
        """
        self._told = told
        # Longer than any budget, so that what summarises has to be there.
        self._summarize([Job(job_id="first", description="Cares for patients at night. " * 500)])
        while not self._stopping:
            taken = self._patiently(lambda: source.take(BATCH, WAIT_S))
            self._in_hand = len(taken)
            if taken:
                self._apply(source, taken)
            self._in_hand = 0
            lag = self._patiently(source.lag)
            told(self.counts, lag)
            if source.ended or (until_idle and not taken and not lag):
                break
        return self.counts

    def _apply(self, source: ChangeSource, taken: Sequence[Delivery]) -> None:
        changes: list[tuple[Delivery, Change]] = []
        for delivery in taken:
            try:
                changes.append((delivery, read_change(delivery.raw)))
            except ControlError as error:
                self._reject(source, delivery, error.message)
        entries = self._entries(source, changes)
        told = self._patiently(lambda: self._writer.change(entries)) if entries else []
        self._patiently(lambda: source.done(taken))
        now = time.time()
        self.counts.applied += sum(told)
        self.counts.outdated += len(told) - sum(told)
        # Clocks differ: less than nothing would be a counter that was reset.
        self.counts.delays_s = [max(0.0, now - one.sent_ms / 1000) for one in taken]

    def _entries(
        self, source: ChangeSource, changes: Sequence[tuple[Delivery, Change]]
    ) -> list[tuple[str, str, Ids | None]]:
        """(job id, order, ids or None) of each change; what cannot be summarised is rejected."""
        jobs = [change.job for _, change in changes if change.job is not None]
        try:
            summarized = iter(self._summarize(jobs))
            made = [next(summarized) if one.job is not None else None for _, one in changes]
        except (MissingDependencyError, OSError):
            raise  # of this process, not of a job: nothing is acknowledged
        except Exception as error:
            # Whatever a summarizer stumbles over must not stop the changes behind it.
            if len(changes) > 1:
                return [row for one in changes for row in self._entries(source, [one])]
            self._reject(source, changes[0][0], f"{type(error).__name__}: {error}")
            return []
        entries: list[tuple[str, str, Ids | None]] = []
        for (delivery, change), ids in zip(changes, made, strict=True):
            if ids is not None and not len(ids):
                self._reject(source, delivery, "the job has no text: a server scores none")
            else:
                entries.append((change.job_id, delivery.order, ids))
        return entries

    def _summarize(self, jobs: Sequence[Job]) -> list[Ids]:
        if not jobs:
            return []
        return [one.ids for one in summarize_entries(jobs, self._summarizer, self._encoder)]

    def _reject(self, source: ChangeSource, delivery: Delivery, reason: str) -> None:
        self.counts.rejected += 1
        self._patiently(lambda: source.reject(delivery, reason))

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """The answer, once the store is there: nothing that was taken is given up."""
        pause_s = FIRST_RETRY_S
        while True:
            try:
                answer = ask()
            except StoreUnavailable as error:
                self.counts.failures += 1
                self.counts.failure = f"{error.message}; {error.hint}"
                if self._stopping:
                    raise
                self._told(self.counts, self._in_hand or None)  # at least these wait
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_RETRY_S)
            else:
                self.counts.failure = ""
                return answer


def follow_bundle(bundle: Bundle, store: ArtifactStore, watcher: Watcher) -> Follower:
    """The follower of a spec, whose summaries are made when they are missing."""
    spec = bundle.spec.summarize
    shared_kind(spec.store)  # before summaries are made
    # First: one that was cleaned away is fitted anew, and what it fills made with it.
    fitted = run(bundle.summarizer, store, watcher)
    identity = run(bundle.summaries, store, watcher).figures["identity"]
    encoder = checkpoint_of(run(bundle.base, store)).encoder()
    summarizer = load_summarizer(fitted.path, spec, encoder)
    return Follower(spec.store, identity, summarizer, encoder)


def follow_repository(repository: Path) -> Follower:
    """The follower of a repository of `control repo`, which holds all that it needs.

    Raises SpecError when its store is not a shared one, RepositoryError when this slmrank would
    summarise in another way.
    """
    summarizing = read_summarizing(repository / PREPARE / "1")
    shared_kind(summarizing.spec.store)
    return Follower(
        summarizing.spec.store,
        summarizing.shared_identity(),
        summarizing.summarizer,
        summarizing.encoder,
    )
