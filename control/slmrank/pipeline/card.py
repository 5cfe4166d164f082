"""Trained rankers as small folders: adapter, pruning record, log, plot and model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slmrank.artifacts import ArtifactStore
from slmrank.compress.record import RECORD_FILE
from slmrank.errors import SpecError
from slmrank.evaluate.page import QUALITY_COLUMNS, quality_cells, sizes_of
from slmrank.evaluate.table import QualityRow
from slmrank.model.checkpoint import ADAPTER_FOLDER
from slmrank.pipeline.bundle import Bundle
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.model import PACKAGED_MODEL
from slmrank.table_page import markdown_table
from slmrank.train.log import LOG_FILE, read_log, write_log
from slmrank.train.plot import draw_log

CARD_FILE = "README.md"
PLOT_FILE = "train.png"
LICENCE = "Licence: Apache-2.0, like its base model; what it learnt from is CC BY 4.0."
LIMITS = """\
It ranks job postings for short English queries that name work: titles, headlines, a duty. It has
seen occupations of the United States as O*NET describes them and postings written around their
tasks, no clicks and no employer's texts. It does not know places, pay, seniority or companies, does
not read other languages, and its p is calibrated on this data alone. People are not to be ranked
with it.
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card is written from."""

    title: str
    made_of: str
    attribution: str | None  # of data that we know
    packaged: bool  # so is the base model
    section: Mapping[str, Any]
    figures: Mapping[str, Any]
    log: Sequence[Mapping[str, float]]
    quality: Mapping[str, Sequence[QualityRow]]
    held_back: int


def card_text(card: Card) -> str:
    """The card as Markdown."""
    log, figures = card.log, card.figures
    before = max(len(log) - int(figures["steps"]), 0)
    earlier = f" after {before} of an earlier run" if before else ""
    parts = [
        f"# {card.title}",
        card.made_of,
        *_what_it_is_from(card),
        "## Training",
        f"{figures['steps']} steps{earlier}, {figures.get('pairs', 0)} pairs, "
        f"{figures.get('trained_parameters', 0) / 1e6:.1f}M trained parameters; the weights after "
        f"step {before + figures.get('kept_step', figures['steps'])} are kept."
        if figures.get("steps")
        else "The adapter was trained before, and only merged here.",
    ]
    if log:
        first, last = log[: len(log) // 20 + 1], log[-(len(log) // 20 + 1) :]
        means = [sum(one["loss"] for one in part) / len(part) for part in (first, last)]
        parts.append(
            f"Loss, first and last twentieth: {means[0]:.3f}, {means[1]:.3f}. Every step is in "
            f"`{LOG_FILE}`, drawn in `{PLOT_FILE}`."
        )
    parts.append("```yaml\n" + yaml.safe_dump(dict(card.section), sort_keys=False) + "```")
    for name, rows in card.quality.items():
        parts.append(f"## Quality on {name}: {sizes_of(rows[0])}")
        parts.append(markdown_table(QUALITY_COLUMNS, quality_cells(rows)))
    return "\n\n".join(parts) + "\n"


def _what_it_is_from(card: Card) -> list[str]:
    if card.attribution is None:
        return ["Data: your own. Licence and limits: those of your base model and of your data."]
    theirs = "Licence: that of your base model; what it learnt from is CC BY 4.0."
    return [
        f"Data: {card.attribution}. {card.held_back} occupations were never trained on.",
        LICENCE if card.packaged else theirs,
        "## What it cannot do",
        LIMITS.strip(),
    ]


def write_ranker_folder(folder: Path, card: Card, adapter: Path, record: Path | None) -> None:
    """Write one ranker's folder: the adapter's files, the record of its pruning, log and plot, and
    last the card."""
    from slmrank.train.adapter import NOTE_FILE

    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # of an export that was killed
        shutil.rmtree(left, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        for path in sorted(adapter.iterdir()):
            shutil.copyfile(path, draft / path.name)  # readable by all, as every file of a folder
        if record is not None:
            shutil.copy2(record, draft / RECORD_FILE)
        if card.log:
            write_log(draft / LOG_FILE, card.log)
            (draft / PLOT_FILE).write_bytes(draw_log(card.log, card.title))
        (draft / CARD_FILE).write_text(card_text(card), encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        # Of another export, perhaps: its card never stands beside what is not its own.
        for name in (CARD_FILE, LOG_FILE, PLOT_FILE, RECORD_FILE, NOTE_FILE):
            (folder / name).unlink(missing_ok=True)
        for path in sorted(draft.iterdir(), key=lambda path: path.name == CARD_FILE):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def require_exportable(spec: BundleSpec, target: Path) -> list[str]:
    """The folders that an export will write. Raises SpecError for what the spec alone decides, and
    where the ranker of another export would stay beside them."""
    sections = {"full": spec.finetune, "pruned": spec.recover}
    names = [name for name, section in sections.items() if section is not None]
    if not names:
        raise SpecError(
            "the spec trains nothing: there is no ranker to export", "add finetune or recover"
        )
    for name, section in sections.items():
        if section is not None and section.lora is None and section.adapter is None:
            raise SpecError(
                f"{'finetune' if name == 'full' else 'recover'} trains all weights, and no adapter "
                "that could be exported",
                "add `lora: {rank: 16}` to the section",
            )
        if section is None and (target / name).exists():
            raise SpecError(
                f"{target / name} is of another export, and this spec makes none",
                "give another --out, or remove that folder",
            )
    if spec.recover is not None and spec.prune is not None and spec.prune.stages > 1:
        raise SpecError(
            f"the ranker is pruned in {spec.prune.stages} stages: one record cannot say how",
            "set prune.stages: 1 to export it",
        )
    return names


def export_rankers(
    bundle: Bundle, store: ArtifactStore, target: Path, quality: Mapping[str, Sequence[QualityRow]]
) -> list[Path]:
    """The trained rankers of a bundle, `full` and, where it prunes, `pruned`, under `target`;
    `quality` are tables by the words for their queries.

    Raises SpecError as `require_exportable` does, ArtifactError when a training is not made.
    """
    spec = bundle.spec
    names = require_exportable(spec, target)
    made = store.read(bundle.data.kind, bundle.data.key)
    packaged = spec.base.source == PACKAGED_MODEL
    base = f"`{spec.base.source if packaged else Path(spec.base.source).name}`"
    if spec.trim is not None:
        base += f" with its vocabulary trimmed to {spec.trim.tokens} tokens of this very data"
    steps = {
        "full": (bundle.finetuned, spec.finetune, "the unpruned ranker."),
        "pruned": (bundle.recovered, spec.recover, _way_of_pruning(spec)),
    }
    # All are read before anything is written: a folder holds rankers that belong together.
    read = {name: store.read(steps[name][0].kind, steps[name][0].key) for name in names}
    records: dict[str, Path] = {}
    if "pruned" in names:
        records["pruned"] = store.read("pruned", bundle.pruned.key).path / RECORD_FILE
    written = []
    for name, artifact in read.items():
        _, section, told = steps[name]
        assert section is not None
        card = Card(
            title=f"slmrank {spec.name}, {name}",
            made_of=f"A LoRA adapter for {base}: {told}",
            attribution=made.figures.get("attribution"),
            packaged=packaged,
            section={
                # No path of the machine that trained it.
                key: Path(value).name if isinstance(getattr(section, key), Path) else value
                for key, value in section.model_dump(mode="json", exclude_unset=True).items()
            },
            figures=artifact.figures,
            log=_whole_log(section.adapter, read_log(artifact.path / LOG_FILE)),
            quality=quality,
            held_back=int(made.figures.get("held_back", 0)),
        )
        adapter = artifact.path / ADAPTER_FOLDER
        write_ranker_folder(target / name, card, adapter, records.get(name))
        written.append(target / name)
    return written


def _whole_log(adapter: Path | None, own: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps of a run behind those of the adapter that it trained on, or only merged."""
    before = read_log(adapter / LOG_FILE) if adapter is not None else []
    return [*before, *({**one, "step": one["step"] + len(before)} for one in own)]


def _way_of_pruning(spec: BundleSpec) -> str:
    merged = "the adapter `full` merged, then " if spec.finetune is not None else ""
    taught = (
        "on the labels"
        if spec.recover is not None and spec.recover.teacher == "labels"
        else ("with the unpruned ranker as its teacher")
    )
    return f"{merged}pruned as `{RECORD_FILE}` says, and trained {taught}."
