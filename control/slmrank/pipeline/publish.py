"""Fill a shared summary store: a whole catalogue at once, or change by change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from slmrank.artifacts import ArtifactStore
from slmrank.errors import DataError
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.catalogue import catalogue_entries
from slmrank.pipeline.steps import run
from slmrank.store.job_store import Published, entries_of
from slmrank.store.registry import open_store, open_writer


def publish(
    bundle: Bundle,
    store: ArtifactStore,
    told: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    catalogue: str | None = None,
    as_of: str = "",
    drop_others: bool = False,
) -> Published:
    """Make the summaries of a bundle what its servers read, or those of a big catalogue, which is
    an output folder of `summarize_catalogue`.

    Raises SpecError when the spec's store is not a shared one, StoreUnavailable when it cannot be
    written; what was current before then stays so.
    """
    url = bundle.spec.summarize.store
    summaries = run(bundle.summaries, store)
    identity, name = summaries.figures["identity"], summaries.key[:16]
    with contextlib.ExitStack() as stack:
        if catalogue is None:
            source = stack.enter_context(contextlib.closing(open_store(url, summaries.path)))
            total, batches = len(source), entries_of(source)
        else:
            found, total, batches = catalogue_entries(catalogue)
            name = "catalogue"
            if found != identity:
                raise DataError(
                    f"{catalogue} was summarised by another tokenizer or summarizer than this "
                    "spec's",
                    "run `control summarize --jobs ... --out ...` with this spec",
                )
        writer = stack.enter_context(contextlib.closing(open_writer(url, identity)))
        return writer.publish(
            batches, name, lambda done: told(done, total), as_of=as_of, drop_others=drop_others
        )
