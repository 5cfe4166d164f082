"""`control score`: rank jobs for a query over gRPC."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from slmrank.cli.display import print_json, print_table
from slmrank.cli.options import (
    POSITIVE,
    PathType,
    client_tls,
    json_option,
    standard_input,
    url_option,
)
from slmrank.client.aio import DEFAULT_TIMEOUT_S
from slmrank.client.answer import ItemScore, rank_order
from slmrank.client.asked import Asked, ItemText, read_asked
from slmrank.client.client import RankClient
from slmrank.client.replicas import Tls
from slmrank.data.records import Job
from slmrank.errors import DataError, InvalidRequest, ScoreError
from slmrank.triton.status import Status


@click.command("score")
@click.option("--query", "-q", help="the search; may also stand in --input")
@click.option("--job", "-j", "job_ids", multiple=True, help="job id in the store; repeatable")
@click.option(
    "--job-file",
    "job_files",
    type=PathType,
    multiple=True,
    help="JSON lines of jobs that are not in the store: title, company, location, description",
)
@click.option(
    "--text", "-t", "texts", multiple=True, help="an item's text exactly as it goes into the prompt"
)
@click.option(
    "--input",
    "-i",
    "source",
    type=PathType,
    help="file, or - for stdin: one job id a line, or JSON lines of jobs (job_id alone: stored; "
    "with title, description ...: sent as it is; job_text: see --text), or one JSON object "
    "{query, jobs}",
)
@url_option()
@click.option(
    "--deferrable",
    is_flag=True,
    help="wait for all others, be refused before them; "
    "where the server has repository.deferrable_queue_size",
)
@click.option("--top", type=click.IntRange(0), help="show only the best N; 0: all")
@click.option(
    "--timeout",
    "timeout_s",
    type=POSITIVE,
    default=DEFAULT_TIMEOUT_S,
    help="seconds for the whole call",
)
@client_tls("tls")
@json_option
def score_command(
    query: str | None,
    job_ids: tuple[str, ...],
    job_files: tuple[Path, ...],
    texts: tuple[str, ...],
    source: Path | None,
    url: str,
    deferrable: bool,
    top: int | None,
    timeout_s: float,
    tls: Tls | None,
    as_json: bool,
) -> None:
    """Score jobs for a query on a running server and print them best first.

    A job is an id in the server's store, or a job with its fields, which the server summarises and
    formats as it does for its store, so that both score alike. A job that could not be scored is
    listed last with its status; then the exit code is 9 (0 when the others were only not ranked
    under load).

    \b
    Example:
      control score -q "night nurse" -j 29-1141.00-1 -j 35-3011.00-1
      control score -q "night nurse" --job-file new-jobs.jsonl
      cut -f1 ids.tsv | control score -q "night nurse" -i -
    """
    jobs: list[Asked] = [*job_ids, *(ItemText(text=text) for text in texts)]
    for path in job_files:
        jobs += read_request(_read(path), str(path))[1]
    if source is not None:
        read_query, more = read_request(_read(source), str(source))
        query, jobs = query or read_query, jobs + more
    if query is None:
        raise click.UsageError("no query: give one with --query, or as 'query' in --input")
    if not jobs:
        raise click.UsageError("no jobs: give --job, --job-file, --text or --input")
    with RankClient(url, timeout_s=timeout_s, tls=tls) as client:
        answer = client.score(query, jobs, deferrable=deferrable)
    ranked = rank_order(answer)
    shown = ranked[:top] if top else ranked
    if as_json:
        items = [item.as_dict() for item in shown]
        print_json(
            {"query": query, "items": items, "parts": [part.as_dict() for part in answer.parts]}
        )
    else:
        _show(query, shown, jobs)
        for part in answer.parts:
            times = ", ".join(f"{name} {value:.1f} ms" for name, value in part.times_ms.items())
            who = f"bundle {part.served.get('bundle')}, engine {part.served.get('engine')}"
            click.echo(f"{part.items} jobs scored by {who}: {times}", err=True)
    unranked = sum(item.status is Status.NOT_RANKED for item in ranked)
    if unranked and not as_json:
        click.echo(f"{unranked} jobs were not ranked: the server is loaded", err=True)
    failed = [
        item for item in ranked if not item.status.scored and item.status is not Status.NOT_RANKED
    ]
    if failed:
        names = ", ".join(
            f"{item.job_id or f'#{item.index}'} ({item.status.words})" for item in failed[:5]
        )
        more_text = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        if not as_json:
            raise ScoreError(
                f"{len(failed)} of {len(ranked)} jobs were not scored: {names}{more_text}",
                "check the ids, or send jobs that are not in the store with their fields",
            )
        sys.exit(ScoreError.exit_code)


def read_request(raw: bytes, name: str) -> tuple[str | None, list[Asked]]:
    """A query (when the input is one JSON object) and jobs from bytes.

    Raises DataError for invalid UTF-8, broken JSON or unknown keys.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + len(raw) - len(error.object)  # behind a byte-order mark
        raise DataError(
            f"{name} is not UTF-8: byte {at} is 0x{raw[at]:02x}", "convert it to UTF-8"
        ) from error
    stripped = text.strip()
    if stripped.startswith("{"):
        try:
            whole = json.loads(stripped)
        except (ValueError, RecursionError) as error:
            first, *others = stripped.split("\n")
            if others and not _is_json(first) and not _is_json(others[0]):
                raise DataError(  # one object over many lines
                    f"{name}: not JSON: {error}", "give {query, jobs}, or one job a line"
                ) from error
            whole = None
        if isinstance(whole, dict) and "jobs" in whole:
            if not isinstance(whole["jobs"], list):
                raise DataError(f"{name}: jobs is not a list", "give a list of ids or objects")
            query = whole.get("query")
            if not isinstance(query, str | None):
                raise DataError(f"{name}: query is not a string", "write it in quotes")
            return query, [
                _job(value, f"{name}: job {place}", place)
                for place, value in enumerate(whole["jobs"], start=1)
            ]
        if isinstance(whole, dict):  # one job, over as many lines as it likes
            return None, [_job(whole, f"{name}:1", 1)]
    jobs = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        value: Any = line.strip()
        if value.startswith(("{", "[", '"')):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{name}:{number}: not JSON: {error}", "one object a line"
                ) from error
        jobs.append(_job(value, f"{name}:{number}", number))
    return None, jobs


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _job(value: Any, where: str, number: int) -> Asked:
    try:
        return read_asked(value, number)
    except InvalidRequest as error:
        raise DataError(f"{where}: {error.message}", error.hint) from error


def _read(source: Path) -> bytes:
    if str(source) == "-":
        return standard_input().read()
    try:
        return source.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror}", "check the path") from error


def _show(query: str, items: list[ItemScore], jobs: list[Asked]) -> None:
    rows = [
        [
            str(place),
            "-" if item.score != item.score else f"{item.score:.4f}",
            _name(item, jobs[item.index]),
            "" if item.status == 0 else item.status.words,
        ]
        for place, item in enumerate(items, start=1)
    ]
    print_table(query, ["rank", "P(relevant)", "job", "status"], rows)


def _name(item: ItemScore, job: Asked) -> str:
    if isinstance(job, Job):
        return f"{item.job_id} {job.title}".strip()
    text = job.text if isinstance(job, ItemText) else ""
    flat = " ".join(text.split())
    return item.job_id or (flat if len(flat) <= 60 else flat[:57] + "...")
