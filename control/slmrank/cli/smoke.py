"""`control smoke`: ask a running server what it is known to answer."""

from __future__ import annotations

from pathlib import Path

import click

from slmrank.cli.display import show_result
from slmrank.cli.options import POSITIVE, SHARE, PathType, client_tls, json_option, url_option
from slmrank.client.client import RankClient
from slmrank.client.known_answers import TOLERANCE, compare_known
from slmrank.client.replicas import Tls
from slmrank.engine.known_answers import KNOWN_FILE, read_known


@click.command("smoke")
@url_option()
@click.option(
    "--known",
    type=PathType,
    required=True,
    help=f"known answers: {KNOWN_FILE} of a repository, or the repository",
)
@click.option("--tolerance", type=SHARE, default=TOLERANCE, help="largest |p - known p|")
@click.option("--timeout", "timeout_s", type=POSITIVE, default=30.0, help="seconds, in all")
@client_tls("tls")
@json_option
def smoke_command(
    url: str, known: Path, tolerance: float, timeout_s: float, tls: Tls | None, as_json: bool
) -> None:
    """Score known answers over gRPC and compare. A server with other weights, another tokenizer or
    another summary store is found by its scores, and only by them. Exit code 9 when one is off.

    \b
    Example:
      control smoke --known artifacts/repository/0123456789abcdef
    """
    answers = read_known(known / KNOWN_FILE if known.is_dir() else known)
    with RankClient(url, timeout_s=timeout_s, retry_overload=True, tls=tls) as client:
        compared = compare_known(client.score, answers, tolerance)
        served = client.describe()
    names = ("query", "job_id", "known", "p", "gap")
    found = [(one.known.query, one.known.job_id, one.known.p, one.p, one.gap) for one in compared]
    rows = [
        [query, job_id, *("-" if one is None else f"{one:.4f}" for one in figures)]
        for query, job_id, *figures in found
    ]
    title = f"known answers of {served.get('bundle', url)}: all within {tolerance:g}"
    told = [dict(zip(names, one, strict=True)) for one in found]
    show_result(
        {"ok": True, "served": served, "answers": told},
        (title, ["query", "job", "known", "answered", "off by"], rows),
        as_json=as_json,
    )
