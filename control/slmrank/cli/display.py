"""What a person sees: progress of steps on stderr, tables on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.hashing import without_nan
from slmrank.html_page import Table
from slmrank.pipeline.steps import Step, Watcher, in_order, pending
from slmrank.surrogates import for_terminal, without_surrogates

PLAIN_PAUSE_S = 15.0


class StepDisplay(Watcher):
    """A watcher that shows each step: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, emoji=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._said = 0.0
        self._started = 0.0
        self._shown: set[str] = set()
        self.timings: list[tuple[str, float, bool]] = []

    def __enter__(self) -> StepDisplay:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def started(self, step: Step) -> None:
        self.begin(step.title)

    def begin(self, title: str) -> None:
        """Show work that is no step; `close` ends it."""
        self.close()
        self._title = title
        self._said = self._started = time.monotonic()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description:<34}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(title, total=None, note="")
        else:
            self._line(f"{title} ...")

    def progress(self, done: int, total: int, note: str = "") -> None:
        text = f"{done}/{total} {note}" if total else note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total or None, note=text)
        elif time.monotonic() - self._said > PLAIN_PAUSE_S:
            self._said = time.monotonic()
            self._line(f"  {self._title}: {text}, {self._said - self._started:.0f} s")

    def finished(self, step: Step, artifact: Artifact, *, cached: bool) -> None:
        self.close()
        label = f"{step.kind} {artifact.key[:8]}"
        if not cached or f"{step.kind}/{artifact.key}" not in self._shown:
            self._shown.add(f"{step.kind}/{artifact.key}")
            self.timings.append((step.title, artifact.seconds, cached))
            how = "cached" if cached else f"made in {artifact.seconds:.1f} s"
            self._line(f"{step.title:<34} {how:<18} {label}")

    def close(self) -> None:
        """Remove a live bar, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_plan(
    steps: Iterable[Step], store: ArtifactStore, *, as_json: bool, force: bool = False
) -> None:
    """What running these steps would do."""
    lasts = list(steps)
    needed = {f"{step.kind}/{step.key}": step for last in lasts for step in in_order(last)}
    made = {one.key for last in lasts for one in pending(last, store, force=force)}

    def state_of(step: Step) -> str:
        if step.key in made:
            return "to be made"
        return "cached" if store.find(step.kind, step.key) else "not needed"

    rows = [
        {
            "step": step.title,
            "kind": step.kind,
            "key": step.key,
            "state": state_of(step),
            "path": str(store.path(step.kind, step.key)),
            "settings": dict(step.settings),
        }
        for step in needed.values()
    ]
    columns = ["step", "state", "path"]
    cells = [[str(row[name]) for name in columns] for row in rows]
    show_result({"plan": rows}, ("plan (nothing is done)", columns, cells), as_json=as_json)


def show_result(value: dict[str, Any], *words: str | Table, as_json: bool) -> None:
    """A result for scripts, or in words: lines and tables."""
    if as_json:
        print_json(value)
        return
    for one in words:
        if isinstance(one, str):
            click.echo(one)
        else:
            print_table(*one)


def show_artifact(artifact: Artifact, *, as_json: bool) -> None:
    """One artifact: where it is and its figures."""
    names = ("kind", "key", "path", "figures", "seconds")
    told = [f"{artifact.kind} {artifact.path}"]
    for name, value in artifact.figures.items():
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        told.append(f"  {name}: {text if len(text) <= 100 else text[:97] + '...'}")
    show_result({name: getattr(artifact, name) for name in names}, *told, as_json=as_json)


def print_json(value: dict[str, Any]) -> None:
    """A result for scripts on stdout."""
    click.echo(json_text(value))
    context = click.get_current_context(silent=True)
    if context is not None and context.obj is not None:
        context.obj["result"] = True


def json_text(value: dict[str, Any]) -> str:
    """JSON with the schema version. Dataclasses are mappings, and NaN, which JSON lacks, null."""
    clean = without_nan({"schema": 1, **value})
    return without_surrogates(json.dumps(clean, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; numbers are right-aligned."""
    table = RichTable(
        title=for_terminal(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows if row[index])
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(for_terminal, row))
    width = None if sys.stdout.isatty() else 240
    Console(file=sys.stdout, markup=False, emoji=False, highlight=False, width=width).print(table)


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:2].lstrip("+-")[:1].isdigit() or text in ("-", "")
