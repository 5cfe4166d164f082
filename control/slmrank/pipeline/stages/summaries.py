"""Make `summarizer` and `summaries`: what is fitted once, and the store of job texts."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from slmrank.artifacts import read_artifact
from slmrank.data.labelled import read_labelled
from slmrank.data.records import LabelledSet
from slmrank.errors import ArtifactError, DataError, InvalidQuery
from slmrank.machine.host import what_computes
from slmrank.model.checkpoint import CHECKPOINT_FOLDER
from slmrank.pipeline.stages.inputs import checkpoint_of
from slmrank.pipeline.steps import Making, own_work
from slmrank.prompt.encoder import PromptEncoder
from slmrank.spec.compress import SummarizeSpec
from slmrank.store.job_store import JobStore
from slmrank.store.registry import open_store
from slmrank.summarize.build_store import build_store, require_room
from slmrank.summarize.registry import SUMMARIZERS, load_summarizer
from slmrank.summarize.summarizer import FITTED_FOLDER, Fitting, identity_of, placed

FITTED_JOBS = 50_000  # what words are worth does not change any more


def make_summarizer(spec: SummarizeSpec, making: Making) -> None:
    """Fit on the jobs of the training pairs, or take over what an earlier run fitted."""
    checkpoint = checkpoint_of(making.inputs["checkpoint"])
    encoder, tokenizer = checkpoint.encoder(), checkpoint.tokenizer_hash
    kind = SUMMARIZERS.get(spec.method)
    if spec.fitted is not None:
        _require_tokenizer(spec.fitted, spec.method, tokenizer)
        summarizer = kind.load(fitted_folder(spec.fitted), spec, encoder.bodies)
    else:
        labelled = read_labelled(making.inputs["data"].path)
        pairs = labelled.pairs["train"]
        trained_on = sorted({pair.job_id for pair in pairs})
        if len(trained_on) > FITTED_JOBS:
            trained_on = random.Random(0).sample(trained_on, FITTED_JOBS)
        ranker = making.inputs.get("ranker")
        summarizer = kind.fit(
            Fitting(
                spec=spec,
                jobs=[labelled.jobs[job_id] for job_id in trained_on],
                encode=encoder.bodies,
                base=making.inputs["checkpoint"].path / CHECKPOINT_FOLDER,
                ranker=ranker.path / CHECKPOINT_FOLDER if ranker is not None else None,
                work=own_work(making),
                pairs=pairs if ranker is not None else (),
                device=making.device,
                progress=making.watcher.progress,
            )
        )
    folder = making.draft.path / FITTED_FOLDER
    folder.mkdir()
    summarizer.save(folder)
    identity = summarizer.identity()
    identity.pop("budget_tokens", None)  # what was fitted serves any
    making.draft.figures.update({"identity": identity, "tokenizer_hash": tokenizer})


def _require_tokenizer(fitted: Path, method: str, tokenizer: str) -> None:
    """Raises DataError where weights by token (method ranker) were fitted on other tokens: trimming
    numbers them anew."""
    try:
        told = read_artifact(fitted).figures.get("tokenizer_hash")
    except ArtifactError:
        return  # `fitted_folder` says what is wrong
    if method == "ranker" and told not in (None, tokenizer):
        raise DataError(
            f"summarize.fitted {fitted} was fitted with another tokenizer (base or trim)",
            "leave summarize.fitted out, so that it is fitted again",
        )


def make_summaries(spec: SummarizeSpec, making: Making) -> None:
    labelled = read_labelled(making.inputs["data"].path)
    checkpoint = checkpoint_of(making.inputs["checkpoint"])
    encoder = checkpoint.encoder()
    _require_short_queries(labelled, encoder)
    summarizer = load_summarizer(making.inputs["summarizer"].path, spec, encoder)
    summarizer = placed(summarizer, making.device)
    identity = identity_of(checkpoint.tokenizer_hash, encoder, summarizer)
    with contextlib.ExitStack() as stack:
        earlier: list[JobStore] = []  # newest first
        for artifact in making.store.all("summaries"):
            with contextlib.suppress(ArtifactError):
                opened = contextlib.closing(open_store(spec.store, artifact.path))
                earlier.append(stack.enter_context(opened))
        target = open_store(spec.store, making.draft.path, write=True)
        figures = build_store(
            labelled.jobs,
            encoder,
            summarizer,
            identity,
            stack.enter_context(contextlib.closing(target)),
            earlier,
            lambda done, total: making.watcher.progress(done, total, "jobs"),
        )
    require_room(figures, spec, encoder)
    known = {"measured_on": what_computes(), "identity": identity}
    making.draft.figures.update({**figures, **known})


def _require_short_queries(labelled: LabelledSet, encoder: PromptEncoder) -> None:
    """Raises DataError for a query that no prompt takes: one among the tested ones would be found
    when training is over."""
    asked = {pair.query for pairs in labelled.pairs.values() for pair in pairs}
    # No token is shorter than a byte.
    for query in sorted(one for one in asked if len(one.encode()) >= encoder.max_query_tokens):
        try:
            encoder.prefix(query)
        except InvalidQuery as error:
            raise DataError(f"query {query[:60]!r}: {error.message}", error.hint) from error


def fitted_folder(path: Path) -> Path:
    """The fitted files of a summarizer artifact. Raises ArtifactError when there are none."""
    folder = path / FITTED_FOLDER
    if not folder.is_dir():
        raise ArtifactError(
            f"summarize.fitted {path} is no summarizer artifact",
            "give a folder of ARTIFACTS/summarizer",
        )
    return folder
