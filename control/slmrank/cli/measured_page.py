"""What verbs share that measure one table and write it as a page."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from slmrank import __version__
from slmrank.cli.display import StepDisplay, show_result
from slmrank.cli.options import Decorated, How, Opened, PathType, run_options, spec_options
from slmrank.errors import SpecError
from slmrank.evaluate.table import read_scores
from slmrank.html_page import Table
from slmrank.machine.host import host_facts, machine_line
from slmrank.pipeline.quality import asked_in_training, queries_of
from slmrank.pipeline.score_step import OWN
from slmrank.pipeline.stages.scores import SCORES_FILE
from slmrank.pipeline.steps import Runner, Step, find_current
from slmrank.pyplot import new_figure
from slmrank.table_page import TablePage, time_span, write_table_page

SHOWN_KEYS = 3

named_set_option = click.option(
    "--on", "named", default=OWN, metavar="NAME", help="a set of evaluate.sets"
)
out_option = click.option(
    "--out", type=PathType, help="folder of page, plot and figures  [default: ARTIFACTS/reports]"
)


@dataclass(frozen=True, kw_only=True)
class Measurement(How):
    """What the command line of such a verb says, beside what it measures."""

    opened: Opened
    out: Path | None

    def queries(self, named: str) -> str:
        """What the queries of a set, or SPEC's own, are called in a title."""
        return queries_of(named, self.opened.bundle.spec.evaluate.split)

    @contextlib.contextmanager
    def running(self) -> Iterator[Runner]:
        """What makes steps, with its progress on stderr."""
        with StepDisplay() as display:
            yield Runner(self.opened.store, display, self.device)

    @property
    def reports(self) -> Path:
        """The folder of the page."""
        return self.out or self.opened.store.root / "reports"

    def show_page(
        self,
        name: str,
        title: str,
        notes: Sequence[str],
        table: Table,
        plot: bytes,
        rows: Sequence[Any],
        steps: Sequence[Step],
        **found: Any,
    ) -> None:
        """Write the page NAME of a table, and print the table, or as JSON its `rows`
        (dataclasses), and what else was found; `steps` are those that measured it."""
        provenance = provenance_of(self.opened, steps, self.device)
        cautions = _cautions(self.opened, steps)
        notes = [*cautions, *notes]
        page = TablePage(title=title, notes=notes, tables=[table], plot=plot, provenance=provenance)
        figures: dict[str, Any] = {"rows": rows, **found, "provenance": provenance}
        written = write_table_page(self.reports, name, page, figures)
        value = {**figures, "page": written}
        show_result(value, table, *cautions, f"page: {written}", as_json=self.as_json)


def measured_options(function: Decorated) -> Any:
    """SPEC, --out, --device, --dry-run and what they all take, given as one `asked`."""

    @spec_options
    @out_option
    @run_options
    @functools.wraps(function)
    def command(opened: Opened, out: Path | None, how: How, **own: Any) -> Any:
        asked = Measurement(opened=opened, out=out, **vars(how))
        if not asked.dry_run:  # better now than after what is drawn was measured
            new_figure()
            try:
                asked.reports.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SpecError(
                    f"cannot write to {asked.reports}: {error.strerror}", "name another folder"
                ) from error
        return function(asked=asked, **own)

    return command


def provenance_of(opened: Opened, steps: Sequence[Step], device: str) -> dict[str, str]:
    """Spec, what the steps read, when they ran, and machine, as text."""
    read: dict[str, dict[str, None]] = {}
    for step in steps:
        for one in step.inputs.values():
            read.setdefault(one.kind, {})[one.key] = None
    made = [find_current(step, opened.store) for step in steps]
    measured = time_span(one.manifest["created"] for one in made if one is not None)
    return {
        "spec": " ".join((f"{opened.bundle.spec.name} ({opened.path.name})", *opened.overrides)),
        "slmrank": __version__,
        **{kind: _first_of(list(keys)) for kind, keys in read.items()},
        **({"measured": measured} if measured else {}),
        "machine": machine_line(host_facts()),
        **({} if device == "auto" else {"device": device}),
    }


def _cautions(opened: Opened, steps: Sequence[Step]) -> list[str]:
    """What a reader has to know: how many queries training has seen, and which steps, by key where
    several have one title, read another text than their name says."""
    scored = [step for step in steps if step.kind == "scores"]
    made = [find_current(step, opened.store) for step in scored]
    told = []
    if made and made[0] is not None:
        listings = read_scores(made[0].path / SCORES_FILE)
        count = asked_in_training(opened.bundle, opened.store, listings)
        told += [f"{count} of the {len(listings)} queries were TRAINED ON."] if count else []
    titles = [step.title for step in scored]
    for step, found in zip(scored, made, strict=True):
        if found is not None and (cut := found.figures.get("items_cut")):
            key = f" ({step.key[:8]})" if titles.count(step.title) > 1 else ""
            told.append(
                f"{step.title}{key}: {cut} of {found.figures['pairs']} texts were cut to "
                f"{found.figures['item_limit']} tokens."
            )
    return told


def _first_of(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:SHOWN_KEYS])
    return shown if len(keys) <= SHOWN_KEYS else f"{shown} and {len(keys) - SHOWN_KEYS} more"
