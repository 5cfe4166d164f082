"""`control deploy promote` and `abort`: how a canary ends."""

from __future__ import annotations

from pathlib import Path

import click

from slmrank.cli.deploy_cluster import Reach, cluster_options, conflicts_option, take_over_option
from slmrank.cli.display import show_result
from slmrank.cli.options import PathType, set_option
from slmrank.cli.release_options import open_place
from slmrank.deploy.cluster.canary import Canary
from slmrank.deploy.cluster.objective import FEWEST_CALLS, judge, observe
from slmrank.deploy.release import Release


@click.command("promote", short_help="Make the canary the release that serves")
@click.argument("source", type=PathType)
@set_option
@click.option(
    "--prometheus", metavar="URL", help="that scrapes the pods, such as http://localhost:9090"
)
@click.option("--unobserved", is_flag=True, help="known answers alone decide")
@click.option(
    "--window",
    "window_s",
    type=click.IntRange(30),
    default=300,
    help="seconds of the past that count",
)
@click.option(
    "--min-calls",
    "fewest",
    type=click.IntRange(1),
    default=FEWEST_CALLS,
    help="answered calls without which nothing is decided; a lower number than 20 (of a p99: 100) "
    "is also enough of them a minute",
)
@click.option("--skip-smoke", is_flag=True, help="do not ask for the known answers")
@conflicts_option
@take_over_option
@cluster_options
def promote_command(
    source: Path,
    overrides: tuple[str, ...],
    prometheus: str | None,
    unobserved: bool,
    window_s: int,
    fewest: int,
    reach: Reach,
    as_json: bool,
) -> None:
    """Make the canary of the bundle SOURCE its stable release.

    The canary's pods are asked for their known answers, and their calls in the last --window
    seconds must have kept the objective: percentile, and at most 1 % failed. When either does not
    hold, nothing changes and the exit code is 1. Then the canary's release is rolled out as the
    stable one, all calls go there, and the canary is removed. A roll-out that fails is taken back,
    and the canary keeps its share.

    \b
    Example:
      control deploy promote build/demo.yaml --prometheus http://localhost:9090
    """
    if (prometheus is None) != unobserved:
        raise click.UsageError("give --prometheus URL, or --unobserved")

    def decide(release: Release, replica_set: str | None) -> str:
        return judge(observe(str(prometheus), release, window_s, replica_set), release, fewest)

    place = open_place(source, "canary", overrides)
    done = Canary(deployer=reach()).promote(place, None if unobserved else decide)
    told = (
        f"release {done['release']} is stable as revision {done['revision']}, engine "
        f"{done['engine']}; the canary's calls: {done['verdict']}; {len(done['removed'])} objects "
        "of the canary removed"
    )
    show_result(done, told, as_json=as_json)


@click.command("abort", short_help="Take a canary back")
@click.argument("source", type=PathType)
@set_option
@conflicts_option
@take_over_option
@cluster_options
def abort_command(source: Path, overrides: tuple[str, ...], reach: Reach, as_json: bool) -> None:
    """Send all calls to the stable release of the bundle SOURCE and remove its canary.

    \b
    Example:
      control deploy abort build/demo.yaml
    """
    removed = Canary(deployer=reach()).abort(open_place(source, "canary", overrides))
    told = f"all calls go to the stable release; {len(removed)} objects of the canary removed"
    show_result({"removed": removed}, told, as_json=as_json)
