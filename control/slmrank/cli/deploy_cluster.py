"""`control deploy plan`, `apply`, `status`, `rollback` and `delete`: what works on a cluster."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from slmrank.cli.display import show_result
from slmrank.cli.options import Decorated, PathType, json_option, set_option
from slmrank.cli.release_options import open_place, open_release, release_options, track_option
from slmrank.client.client import RankClient
from slmrank.client.known_answers import compare_known
from slmrank.deploy.cluster.api import connect
from slmrank.deploy.cluster.apply import Deployer
from slmrank.deploy.cluster.canary import Canary, read_share
from slmrank.deploy.cluster.status import Status, read_status
from slmrank.deploy.cluster.waiting import Waiter
from slmrank.deploy.release import Place, Release, Track
from slmrank.errors import Refused
from slmrank.html_page import Table

Reach = Callable[[], Deployer]
take_over_option = click.option(
    "--take-over", is_flag=True, help="go on although another apply seems to run"
)
conflicts_option = click.option(
    "--force-conflicts", is_flag=True, help="take fields that other managers own"
)


def cluster_options(function: Decorated) -> Any:
    """--kubeconfig, --context and --json; they and what a verb's own options say of its deployer
    are given to the command as one `reach`, which connects."""

    @json_option
    @click.option("--kubeconfig", type=PathType, help="[default: KUBECONFIG, ~/.kube/config]")
    @click.option("--context", help="context of the kubeconfig")
    @functools.wraps(function)
    def command(kubeconfig: Path | None, context: str | None, **more: Any) -> Any:
        names = ("smoke_url", "skip_smoke", "force_conflicts", "take_over")
        own = {name: more.pop(name) for name in names if name in more}
        return function(reach=functools.partial(_deployer, kubeconfig, context, **own), **more)

    return command


def _deployer(
    kubeconfig: Path | None, context: str | None, smoke_url: str | None = None, **options: Any
) -> Deployer:
    console = Console(stderr=True, emoji=False)

    def report(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def ask(release: Release) -> None:
        with RankClient(str(smoke_url), timeout_s=60, retry_overload=True) as client:
            compare_known(client.score, release.known_answers, release.deploy.smoke_tolerance)

    cluster = connect(kubeconfig, context, warn=report)
    return Deployer(
        cluster=cluster,
        waiter=Waiter(cluster=cluster, report=report),
        report=report,
        smoke=ask if smoke_url else None,
        **options,
    )


_smoke_url = click.option(
    "--smoke-url", help="host:port that reaches the Service  [default: a Job inside]"
)
_skip_smoke = click.option(
    "--skip-smoke", is_flag=True, help="do not ask for the known answers at the end"
)


@click.command("plan", short_help="Show what apply would change in the cluster")
@click.argument("source", type=PathType)
@conflicts_option
@release_options
@cluster_options
def plan_command(source: Path, reach: Reach, as_json: bool, **options: Any) -> None:
    """Ask the API server what applying SOURCE (a spec, whose repository is made when missing, or a
    release.yaml) would change: its own dry run of every object, and the difference to what is
    there. The cluster stays as it is.

    \b
    Example:
      control deploy plan build/demo.yaml
    """
    release = open_release(source, **options)
    planned = reach().plan(release)
    rows = [
        {"object": one.title, "change": one.change, "diff": one.diff, "note": one.note}
        for one in planned
    ]
    told = []
    for one in planned:
        told.append(f"{one.change:<7} {one.title}" + (f" ({one.note})" if one.note else ""))
        if one.change == "change":
            told.append("\n".join(f"    {line}" for line in one.diff.splitlines()))
    counts = Counter(one.change for one in planned)
    counted = ", ".join(f"{count} {name}" for name, count in counts.items())
    told.append(f"release {release.hash}, engine {release.engine.tag}: {counted}")
    value = {"release": release.hash, "engine": release.engine.tag, "plan": rows}
    show_result(value, *told, as_json=as_json)


@click.command("apply", short_help="Roll a release out; a bad one is taken back")
@click.argument("source", type=PathType)
@conflicts_option
@take_over_option
@click.option(
    "--canary",
    "percent",
    type=click.IntRange(1, 99),
    help="beside the stable release, with this percentage of the calls through the Gateway",
)
@_smoke_url
@_skip_smoke
@release_options
@cluster_options
def apply_command(
    source: Path, percent: int | None, reach: Reach, as_json: bool, **options: Any
) -> None:
    """Bring SOURCE (a spec, whose repository is made when missing, or a release.yaml) into the
    cluster: our rules and the server's dry run of every object first, then server-side apply in
    order, the engine's build Job before the Deployment, then wait for the new pods, then ask for
    the known answers over gRPC. When one of these fails the last good release is put back.

    With --canary it runs beside the stable release with a share of the calls, until `promote` or
    `abort`; again with another percentage changes the share.

    \b
    Example:
      control deploy apply build/demo.yaml
      control deploy apply build/demo.yaml --canary 10
    """
    release = open_release(source, **options)
    deployer = reach()
    if percent is None:
        done = deployer.apply(release)
    else:
        done = Canary(deployer=deployer).start(release, percent)
    told = (
        f"release {done['release']} is deployed as revision {done['revision']}, engine "
        f"{done['engine']}: {len(done['changed'])} objects changed, {done['smoke']}"
        + (f"; canary with {percent} % of the calls" if percent else "")
    )
    show_result(done, told, as_json=as_json)


@click.command("status", short_help="Show what is deployed, and why a pod does not serve")
@click.argument("source", type=PathType)
@set_option
@track_option
@cluster_options
def status_command(
    source: Path, overrides: tuple[str, ...], track: Track, reach: Reach, as_json: bool
) -> None:
    """Show the rollout, every pod with the reason why it does not serve (no GPU, a taint, a claim,
    the image, a file that was not copied, a wrong answer), the autoscaler's metrics and the history
    of the bundle SOURCE. Exit code 1 when the release does not serve as it should; an autoscaler
    without metrics is told, and no failure.

    \b
    Example:
      control deploy status build/demo.yaml
    """
    place = open_place(source, track, overrides)
    status = read_status(reach().cluster, place)
    show_result(asdict(status), *_words(status, place), as_json=as_json)
    if not status.healthy:
        raise click.exceptions.Exit(Refused.exit_code)


def _words(status: Status, place: Place) -> Iterator[str | Table]:
    name = f"{place.namespace}/{place.object_name}"
    if not status.found:
        yield f"{name}: not deployed"
    else:
        yield f"{name}: engine {status.engine}"
        yield f"rollout {status.rollout}; {status.replicas}"
        if status.canary_percent:
            yield f"{status.canary_percent} % of the calls through the Gateway: the canary"
        pods = [
            {**one, "ready": "yes" if one["ready"] else "no", "node": one["node"] or "-"}
            for one in status.pods
        ]
        columns = ["name", "ready", "engine", "node", "restarts"]
        rows = [[str(one[key]) for key in columns] for one in pods]
        yield "pods", ["pod", *columns[1:]], rows
    if status.autoscaler is not None:
        scaler = status.autoscaler
        yield f"autoscaler: {scaler['min']} to {scaler['max']}, wants {scaler['desired']}"
        for one in scaler["metrics"]:
            yield f"  {one['name']}: {one['current']} of {one['target']} per pod"
    for trouble in [*status.troubles, *status.advice]:
        yield f"{trouble.name}\n  {trouble.state}: {trouble.message}"
        if trouble.fix:
            yield f"  Fix: {trouble.fix}"
    if status.records:
        columns = ["revision", "state", "engine", "release", "when"]
        yield "history", columns, [[str(one[key]) for key in columns] for one in status.records]


@click.command("rollback", short_help="Put an earlier release back")
@click.argument("source", type=PathType)
@set_option
@click.option("--to", "revision", type=click.IntRange(min=1), help="[default: the newest good one]")
@_smoke_url
@_skip_smoke
@take_over_option
@track_option
@cluster_options
def rollback_command(
    source: Path,
    overrides: tuple[str, ...],
    revision: int | None,
    track: Track,
    reach: Reach,
    as_json: bool,
) -> None:
    """Put the objects of an earlier deployment of SOURCE back, as they were, wait for its pods and
    ask for its known answers. A second rollback returns to what was left.

    \b
    Example:
      control deploy rollback build/demo.yaml --to 3
    """
    done = reach().rollback(open_place(source, track, overrides), revision)
    told = f"revision {done['revision']} (engine {done['engine']}) serves"
    show_result(done, told, as_json=as_json)


@click.command("delete", short_help="Remove a bundle from the cluster")
@click.argument("source", type=PathType)
@set_option
@click.option("--yes", is_flag=True, help="really do it")
@take_over_option
@track_option
@cluster_options
def delete_command(
    source: Path, overrides: tuple[str, ...], yes: bool, track: Track, reach: Reach, as_json: bool
) -> None:
    """Remove every object of the bundle SOURCE. Claims, what is on them, and the namespace stay.
    Without --yes it only says what would go.

    \b
    Example:
      control deploy delete build/demo.yaml --yes
    """
    deployer = reach()
    place = open_place(source, track, overrides)
    if track == "canary" and (share := read_share(deployer.cluster, place)):
        raise Refused(
            f"the canary still gets {share} % of the calls through the Gateway",
            "`control deploy abort` sends them to the stable release, and removes it",
        )
    if track == "stable" and deployer.running(replace(place, track="canary")):
        raise Refused(
            f"a canary of {place.bundle} runs, and would go on without a route to it",
            "`control deploy abort` first",
        )
    removed = deployer.delete(place, dry_run=not yes)
    told = "".join(f"{'deleted' if yes else 'would delete'} {one}\n" for one in removed)
    told += f"{len(removed)} objects; claims and namespace stay"
    show_result({"deleted": yes, "objects": removed}, told, as_json=as_json)
    if removed and not yes:
        raise Refused("nothing was deleted", "repeat it with --yes")
