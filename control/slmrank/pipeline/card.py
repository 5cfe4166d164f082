"""Trained rankers as small folders: adapter, pruning record, log, plot and model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slmrank.artifacts import Artifact, ArtifactStore, write_atomic
from slmrank.compress.record import RECORD_FILE
from slmrank.errors import ArtifactError
from slmrank.evaluate.page import QUALITY_COLUMNS, quality_cells, sizes_of
from slmrank.evaluate.table import QualityRow
from slmrank.model.checkpoint import ADAPTER_FOLDER
from slmrank.pipeline.bundle import Bundle
from slmrank.spec.model import PACKAGED_MODEL
from slmrank.table_page import markdown_table
from slmrank.train.log import LOG_FILE, read_log, write_log
from slmrank.train.plot import draw_log

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
    attribution: str | None  # of a base and data that we know
    section: Mapping[str, Any]
    figures: Mapping[str, Any]
    log: Sequence[Mapping[str, float]]
    quality: Mapping[str, Sequence[QualityRow]]
    held_back: int


def card_text(card: Card) -> str:
    """The card as Markdown."""
    log, figures = card.log, card.figures
    parts = [
        f"# {card.title}",
        card.made_of,
        *_what_it_is_from(card),
        "## Training",
        f"{figures.get('steps', 0)} steps, {figures.get('pairs', 0)} pairs, "
        f"{figures.get('trained_parameters', 0) / 1e6:.1f}M trained parameters; the weights after "
        f"step {figures.get('kept_step', figures.get('steps', 0))} are kept.",
    ]
    if log:
        first, last = log[: len(log) // 20 + 1], log[-(len(log) // 20 + 1) :]
        means = [sum(one["loss"] for one in part) / len(part) for part in (first, last)]
        parts.append(
            f"Loss, first and last twentieth: {means[0]:.3f}, {means[1]:.3f}. Every step is in "
            f"`{LOG_FILE}`, drawn in `train.png`."
        )
    parts.append("```yaml\n" + yaml.safe_dump(dict(card.section), sort_keys=False) + "```")
    for name, rows in card.quality.items():
        parts.append(f"## Quality on {name}: {sizes_of(rows[0])}")
        parts.append(markdown_table(QUALITY_COLUMNS, quality_cells(rows)))
    return "\n\n".join(parts) + "\n"


def _what_it_is_from(card: Card) -> list[str]:
    if card.attribution is None:
        return ["Data: your own. Licence and limits: those of your base model and of your data."]
    return [
        f"Data: {card.attribution}. {card.held_back} occupations were never trained on.",
        LICENCE,
        "## What it cannot do",
        LIMITS.strip(),
    ]


def write_ranker_folder(folder: Path, card: Card, adapter: Path, record: Path | None) -> None:
    """Write one ranker's folder: the adapter's files, the record of its pruning, log and plot, and
    last the card."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(adapter.iterdir()):
        if path.name != "README.md":
            shutil.copyfile(path, folder / path.name)  # readable by all, as every file of a folder
    if record is not None:
        shutil.copy2(record, folder / RECORD_FILE)
    if card.log:
        write_log(folder / LOG_FILE, card.log)
        (folder / "train.png").write_bytes(draw_log(card.log, card.title))
    write_atomic(folder / "README.md", card_text(card))


def export_rankers(
    bundle: Bundle,
    store: ArtifactStore,
    target: Path,
    quality: Mapping[str, Sequence[QualityRow]],
) -> list[Path]:
    """The trained rankers of a bundle, `full` and, where it prunes, `pruned`, under `target`.

    Raises ArtifactError when a training is not made or trained no adapter.
    """
    spec = bundle.spec
    made = store.read(bundle.data.kind, bundle.data.key)
    base = spec.base.source
    sections: list[tuple[str, Artifact, Any, str]] = []
    if spec.finetune is not None:
        full = store.read("finetuned", bundle.finetuned.key)
        told = f"A LoRA adapter for `{base}`: the unpruned ranker."
        sections.append(("full", full, spec.finetune, told))
    if spec.recover is not None:
        if spec.prune is not None and spec.prune.stages > 1:
            raise ArtifactError(
                f"the ranker was pruned in {spec.prune.stages} stages: one record cannot say how",
                "set prune.stages: 1 to export it",
            )
        pruned = store.read("recovered", bundle.recovered.key)
        labels = spec.recover.teacher == "labels"
        told = (
            f"A LoRA adapter for `{base}` with the adapter `full` merged and then pruned as "
            f"`{RECORD_FILE}` says; trained "
            + ("on the labels." if labels else "with the unpruned ranker as its teacher.")
        )
        sections.append(("pruned", pruned, spec.recover, told))
    written = []
    for name, artifact, section, told in sections:
        adapter = artifact.path / ADAPTER_FOLDER
        if not adapter.is_dir():
            raise ArtifactError(
                f"{artifact.path} was trained without an adapter",
                "add `lora: {rank: 16}` to the section, and train again",
            )
        card = Card(
            title=f"slmrank {spec.name}, {name}",
            made_of=told,
            attribution=made.figures.get("attribution") if base == PACKAGED_MODEL else None,
            section=section.model_dump(mode="json", exclude_unset=True),
            figures=artifact.figures,
            log=read_log(artifact.path / LOG_FILE),
            quality=quality,
            held_back=int(made.figures.get("held_back", 0)),
        )
        record = None
        if name == "pruned":
            record = store.read("pruned", bundle.pruned.key).path / RECORD_FILE
        write_ranker_folder(target / name, card, adapter, record)
        written.append(target / name)
    return written
