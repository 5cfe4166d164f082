"""What summaries keep for a reader: the share of marked spans that stand whole in a summary.

    python perf/skill_spans.py build/demo.yaml postings.jsonl --budgets 36,56

`postings.jsonl` has a line for each posting: `{"text": "...", "spans": ["...", ...]}`, spans of
skills or knowledge as people marked them. Case and white space do not count. The summarizers are
fitted on the spec's own data, which these postings are no part of.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
from slmrank.artifacts import ArtifactStore
from slmrank.data.records import Job
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, open_checkpoint
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.spec.reading import change_spec, load_spec
from slmrank.summarize.registry import load_summarizer


def plain(text: str) -> str:
    return " ".join(text.casefold().split())


def kept_share(spans: list[list[str]], summaries: list[str]) -> float:
    """Share of all spans, [posting][span], that the posting's summary holds."""
    found = [
        re.search(rf"(?<!\w){re.escape(plain(span))}(?!\w)", plain(summary)) is not None
        for own, summary in zip(spans, summaries, strict=True)
        for span in own
    ]
    return sum(found) / len(found)


@click.command(help=(__doc__ or "").replace("    python", "\b\n    python", 1))
@click.argument("spec", type=click.Path(path_type=Path))
@click.argument("postings", type=click.Path(path_type=Path, exists=True))
@click.option("--methods", default="lead,stopwords,salience,ranker")
@click.option("--budgets", default="36,56,96,128")
@click.option("--artifacts", type=click.Path(path_type=Path), default=Path("artifacts"))
def main(spec: Path, postings: Path, methods: str, budgets: str, artifacts: Path) -> None:
    lines = [json.loads(line) for line in postings.read_text("utf-8").splitlines() if line.strip()]
    jobs = [Job(job_id=str(number), description=one["text"]) for number, one in enumerate(lines)]
    spans = [one["spans"] for one in lines]
    if not any(spans):
        raise click.ClickException(f"{postings} marks no spans: give `spans` of each posting")
    plan, store = load_spec(spec), ArtifactStore(artifacts)
    for method in methods.split(","):
        change: dict[str, Any] = {"summarize": {"method": method, "fitted": None, "options": {}}}
        bundle = Bundle(change_spec(plan, change))
        fitted = run(bundle.summarizer, store).path
        encoder = open_checkpoint(run(bundle.base, store).path / CHECKPOINT_FOLDER).encoder()
        for budget in map(int, budgets.split(",")):
            own = bundle.spec.summarize.model_copy(update={"budget_tokens": budget})
            summaries = load_summarizer(fitted, own, encoder).summarize(jobs)
            share = kept_share(spans, [one.text for one in summaries])
            click.echo(f"{method:<10} {budget:>4} tokens  {share:6.1%} of {sum(map(len, spans))}")


if __name__ == "__main__":
    main()
