"""`control compress-search`: the cheapest compression within a loss."""

from __future__ import annotations

import click

from slmrank.artifacts import write_atomic
from slmrank.cli.display import show_plan
from slmrank.cli.measured_page import Measurement, measured_options, named_set_option
from slmrank.cli.options import FINITE, sizes_from
from slmrank.compress.search import combinations
from slmrank.data.labelled import read_labelled
from slmrank.errors import SpecError
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.compress_search import Search, geometry_of, open_axes, require_searchable
from slmrank.pipeline.quality import queries_of
from slmrank.pipeline.score_step import OWN
from slmrank.pipeline.search_page import draw_search, search_notes, search_table, winning_lines
from slmrank.pipeline.steps import find_current
from slmrank.spec.reading import change_spec

_sizes = sizes_from(1)


@click.command("compress-search")
@named_set_option
@click.option("--max-loss", default=0.01, help="of NDCG@10", type=FINITE)
@click.option("--layers", callback=_sizes, metavar="N,...", help="[default: 0.9 and 0.8 of all]")
@click.option("--neurons", callback=_sizes, metavar="N,...", help="MLP neurons a layer  [as above]")
@click.option("--kv-heads", callback=_sizes, metavar="N,...", help="key heads a layer  [as above]")
@click.option("--budgets", callback=_sizes, metavar="N,...", help="tokens of a summary  [as above]")
@click.option("--candidates", default=4, type=click.IntRange(1), help="to be recovered")
@click.option("--rounds", default=2, type=click.IntRange(1, 6), help="of halving")
@click.option(
    "--steps", type=click.IntRange(1), help="of the last round  [default: recover.steps of SPEC]"
)
@measured_options
def compress_search_command(
    asked: Measurement,
    named: str,
    max_loss: float,
    layers: list[int],
    neurons: list[int],
    kv_heads: list[int],
    budgets: list[int],
    candidates: int,
    rounds: int,
    steps: int | None,
) -> None:
    """Find the cheapest combination of layers, neurons, key heads, summary budget and precision
    that loses at most --max-loss NDCG@10, and write a spec that extends SPEC by it.

    Every axis is measured alone first, before recovery. Losses are added and costs are predicted
    from them; of the combinations that none beats in both a few are recovered, in rounds: each
    keeps the better half and doubles the steps. The last ones are measured in the engine. What was
    measured is kept: an interrupted search goes on. The dev queries of SPEC's own data choose, and
    the winner's loss is told on the test queries as well; with --on NAME the queries of that set
    choose. Exit code 1 when nothing stays within the limit. Needs sections prune and recover, and a
    target whose engines run here.

    \b
    Example:
      control compress-search build/demo.yaml --layers 27,24 --neurons 1280,1024 --steps 60
    """

    def report(line: str) -> None:
        click.echo(line, err=True)

    bundle, store = asked.opened.bundle, asked.opened.store
    if named == OWN:
        bundle = Bundle(change_spec(bundle.spec, {"evaluate": {"split": "dev"}}))
    name = f"search-{bundle.spec.name}-{named}"
    target = asked.reports / f"{name}.yaml"
    asked.opened.refuse_own_file(target)
    require_searchable(bundle)
    steps = steps or (bundle.spec.recover.steps if bundle.spec.recover is not None else 0)
    if not steps:
        raise SpecError(
            "recover.steps is 0: candidates are recovered from the start, and nothing says how "
            "long",
            "give --steps",
        )
    if asked.dry_run and find_current(bundle.finetuned, store) is None:
        report("the sizes of the axes are known when this is made:")
        asked.plan(store, [bundle.finetuned])
    with asked.running() as runner:
        if named == OWN and not asked.dry_run:
            labelled = read_labelled(runner.run(bundle.data).path)
            if not labelled.pairs["dev"]:
                raise SpecError(
                    "the data has no dev pairs, which choose",
                    "give some (data.dev_share, or their split), or search with --on NAME",
                )
        geometry = geometry_of(bundle, runner)
        given = {
            "layers": layers,
            "intermediate_size": neurons,
            "kv_heads": kv_heads,
            "budget_tokens": budgets,
        }
        axes = open_axes(bundle, geometry, given)
        search = Search(
            bundle=bundle,
            on=named,
            axes=axes,
            geometry=geometry,
            max_loss=max_loss,
            candidates=candidates,
            rounds=rounds,
            steps=steps,
            runner=runner,
            report=report,
        )
        if not asked.dry_run:
            found = search.run()
            notes = search_notes(search, found)
    if asked.dry_run:
        show_plan(search.plan(), store, as_json=asked.as_json)
        report(
            f"then {len(combinations(axes))} combinations are predicted, and {candidates} of them "
            f"recovered in {rounds} rounds, the last with {search.steps} steps"
        )
        return
    asked.show_page(
        name,
        f"The cheapest compression of {bundle.spec.name}, {queries_of(named, 'dev')}",
        notes,
        search_table(found, max_loss),
        draw_search(found, max_loss),
        found.tried,
        search.measured(found),
        best=found.best,
        checked=found.checked,
        spec=str(target) if found.best is not None else None,
    )
    if found.best is None:
        report(f"nothing that was tried loses at most {max_loss}: more --steps, or milder values")
        raise SystemExit(1)
    choice = found.best.choice
    changes = search.changes(choice, found.best.steps)
    budget = {"summarize": {"budget_tokens": choice.budget_tokens}}
    write_atomic(
        target, asked.opened.overlay(target, winning_lines(search, found), budget, changes)
    )
    report(f"best: {choice.words}; spec: {target}")
