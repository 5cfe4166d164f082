"""A page that needs nothing beside it: its style, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Table = tuple[str, Sequence[str], list[list[str]]]  # title, columns, rows
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
td { white-space: nowrap }
img, svg { max-width: 100%; height: auto } .note { color: #666 } .wide { overflow-x: auto }
"""


def html_page(title: str, parts: Sequence[str]) -> str:
    """The whole page; `parts` are HTML."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
    )
    return "\n".join([head, f"<body><h1>{escape(title)}</h1>", *parts, "</body></html>", ""])


def html_provenance(known: Mapping[str, str]) -> str:
    """What a page was made from."""
    lines = (f"<li>{escape(key)}: {escape(value)}</li>" for key, value in known.items())
    return f'<ul class="note">{"".join(lines)}</ul>'


def html_table(table: Table) -> str:
    title, columns, rows = table
    head = "".join(f"<th>{escape(one)}</th>" for one in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(one)}</td>" for one in row) + "</tr>" for row in rows
    )
    return (
        f'<h2>{escape(title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
