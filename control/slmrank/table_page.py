"""A measured table as files: a page, the same as Markdown, its plot, and the figures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from slmrank.artifacts import write_atomic
from slmrank.hashing import without_nan
from slmrank.html_page import Table, html_page, html_provenance, html_table


@dataclass(frozen=True, kw_only=True)
class TablePage:
    """What a page shows: its tables, notes on how to read them, a plot (PNG), and where it all
    comes from."""

    title: str
    notes: Sequence[str]
    tables: Sequence[Table]
    plot: bytes
    provenance: Mapping[str, str]


def write_table_page(folder: Path, name: str, page: TablePage, figures: Mapping[str, Any]) -> Path:
    """Write NAME.png, NAME.json, NAME.md and last NAME.html into `folder`; returns the last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(page.plot)
    text = json.dumps(without_nan(figures), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / f"{name}.json", text + "\n")
    write_atomic(folder / f"{name}.md", _markdown(name, page))
    target = folder / f"{name}.html"
    write_atomic(target, _html(name, page))
    return target


def time_span(times: Iterable[str]) -> str:
    """From the first to the last of some times in ISO 8601; empty without any."""
    known = sorted(times)
    return " to ".join(dict.fromkeys((*known[:1], *known[-1:])))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, without a line end."""
    cells = (
        [" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (columns, *rows)
    )
    head, *body = ("| " + " | ".join(row) + " |" for row in cells)
    return "\n".join([head, "|---" * len(columns) + "|", *body])


def _markdown(name: str, page: TablePage) -> str:
    parts = [f"# {page.title}", *map(_plain, page.notes)]
    for title, columns, rows in page.tables:
        parts += [f"## {title}", markdown_table(columns, rows)]
    parts.append(f"![{page.title}]({name}.png)")
    parts.append("\n".join(f"- {key}: {_plain(one)}" for key, one in page.provenance.items()))
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: notes hold titles and summaries of jobs."""
    marked = re.sub(r"([\\`*_<\[\]&~]|^[#>+-])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d+)([.)])(?= |$)", r"\1\\\2", marked)


def _html(name: str, page: TablePage) -> str:
    parts = [f'<p class="note">{escape(note)}</p>' for note in page.notes]
    parts += [html_table(table) for table in page.tables]
    parts.append(f'<img src="{name}.png" alt="{escape(page.title)}">')
    return html_page(page.title, [*parts, html_provenance(page.provenance)])
