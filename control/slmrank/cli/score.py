"""`control score`: rank jobs for a query over gRPC."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from slmrank.cli.display import print_json, print_table
from slmrank.cli.options import PathType, json_option
from slmrank.client.client import DEFAULT_TIMEOUT_S, ItemScore, JobRef, RankClient, rank_order
from slmrank.errors import DataError, ScoreError


@click.command("score")
@click.option("--query", "-q", help="the search; may also stand in --input")
@click.option("--job", "-j", "job_ids", multiple=True, help="job id in the store; repeatable")
@click.option("--text", "-t", "texts", multiple=True, help="job text to score as it is; repeatable")
@click.option(
    "--input",
    "-i",
    "source",
    type=PathType,
    help="file, or - for stdin: one job id a line, or JSON lines with job_id and/or job_text, "
    "or one JSON object {query, jobs}",
)
@click.option("--url", default="localhost:8001", show_default=True, envvar="CONTROL_URL")
@click.option("--top", type=int, default=0, help="show only the best N; 0: all")
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    help="seconds for the whole call",
)
@json_option
def score_command(
    query: str | None,
    job_ids: tuple[str, ...],
    texts: tuple[str, ...],
    source: Path | None,
    url: str,
    top: int,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Score jobs for a query on a running server and print them best first.

    A job that could not be scored is listed last with its status; then the exit code is 9.

    \b
    Example:
      control score -q "night nurse" -j 29-1141.00-1 -j 35-3011.00-1
      control score -q "night nurse" -t "Job: ICU nurse. Cares for patients at night."
      cut -f1 ids.tsv | control score -q "night nurse" -i -
    """
    jobs = [JobRef(job_id=one) for one in job_ids] + [JobRef(text=one) for one in texts]
    if source is not None:
        read_query, more = read_request(_read(source), str(source))
        query, jobs = query or read_query, jobs + more
    if query is None:
        raise ScoreError("no query", "give one with --query, or as 'query' in --input")
    if not query.strip():
        raise ScoreError("query is empty", "give at least one word")
    if not jobs:
        raise ScoreError("no jobs", "give --job, --text or --input")
    with RankClient(url, timeout_s=timeout_s) as client:
        ranked = rank_order(client.score(query, jobs))
        identity = client.describe()
    shown = ranked[:top] if top > 0 else ranked
    if as_json:
        print_json({"query": query, "items": [_record(one) for one in shown], "served": identity})
    else:
        _show(query, shown, jobs)
    failed = [one for one in ranked if not one.status.scored]
    if failed:
        names = ", ".join(f"{one.job_id or f'#{one.index}'} ({_words(one)})" for one in failed[:5])
        more_text = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        if not as_json:
            raise ScoreError(
                f"{len(failed)} of {len(ranked)} jobs were not scored: {names}{more_text}",
                "check the ids, or run `control summarize` and `control repo` for new jobs",
            )
        sys.exit(ScoreError.exit_code)


def read_request(raw: bytes, name: str) -> tuple[str | None, list[JobRef]]:
    """A query (when the input is one JSON object) and jobs from bytes.

    Raises DataError for invalid UTF-8, broken JSON or unknown keys.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}",
            "convert it to UTF-8",
        ) from error
    stripped = text.strip()
    if stripped.startswith("{"):
        try:
            whole = json.loads(stripped)
        except ValueError:
            whole = None
        if isinstance(whole, dict) and "jobs" in whole:
            if not isinstance(whole["jobs"], list):
                raise DataError(f"{name}: jobs is not a list", "give a list of ids or objects")
            query = whole.get("query")
            if not isinstance(query, str | None):
                raise DataError(f"{name}: query is not a string", "write it in quotes")
            return query, [_job(one, name, 1) for one in whole["jobs"]]
    jobs = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        value: Any = line.strip()
        if value.startswith("{"):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise DataError(
                    f"{name}:{number}: not JSON: {error}", "one object a line"
                ) from error
        jobs.append(_job(value, name, number))
    return None, jobs


def _job(value: Any, name: str, number: int) -> JobRef:
    if isinstance(value, str):
        return JobRef(job_id=value)
    known = isinstance(value, dict) and set(value) <= {"job_id", "job_text"}
    if not known or not all(isinstance(one, str | None) for one in value.values()):
        raise DataError(
            f"{name}:{number}: {json.dumps(value)[:80]} is not a job",
            "a job is an id, or an object with job_id and/or job_text, both strings",
        )
    return JobRef(job_id=value.get("job_id") or "", text=value.get("job_text") or "")


def _read(source: Path) -> bytes:
    if str(source) == "-":
        return sys.stdin.buffer.read()
    try:
        return source.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror}", "check the path") from error


def _show(query: str, items: list[ItemScore], jobs: list[JobRef]) -> None:
    rows = [
        [
            str(place),
            "-" if item.score != item.score else f"{item.score:.4f}",
            item.job_id or _excerpt(jobs[item.index].text),
            "" if item.status == 0 else _words(item),
        ]
        for place, item in enumerate(items, start=1)
    ]
    print_table(query, ["rank", "P(relevant)", "job", "status"], rows)


def _record(item: ItemScore) -> dict[str, Any]:
    score = None if item.score != item.score else item.score
    return {
        "index": item.index,
        "job_id": item.job_id,
        "score": score,
        "status": int(item.status),
        "status_text": _words(item),
    }


def _words(item: ItemScore) -> str:
    return item.status.name.lower().replace("_", " ")


def _excerpt(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else flat[:57] + "..."
