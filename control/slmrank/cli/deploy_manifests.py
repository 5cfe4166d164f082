"""`control deploy render` and `control deploy check`: what needs no cluster."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from slmrank.cli.display import print_json
from slmrank.cli.open_release import open_release, release_options, track_option
from slmrank.cli.options import PathType, json_option
from slmrank.deploy.check.run import Checked, check
from slmrank.deploy.check.schema import known_versions, load_crds
from slmrank.deploy.check.sources import read_manifests
from slmrank.deploy.files import (
    BASE,
    OVERLAYS,
    all_files,
    base_files,
    find_stale,
    first_kustomization,
    overlay_files,
    write_files,
)
from slmrank.deploy.release import RELEASE_FILE, Release, Track, load_release
from slmrank.errors import DeployError, Refused
from slmrank.spec.bundle import Target

DEFAULT_FOLDER = Path("k8s")


@click.command("render", short_help="Write the manifests of a spec, or check them")
@click.argument("source", type=PathType, required=False)
@click.option(
    "--out",
    "folder",
    type=PathType,
    default=DEFAULT_FOLDER,
    show_default=True,
    help="folder of the manifests",
)
@click.option("--overlay", help="write SOURCE as this overlay of the base that is there")
@click.option("--check", "only_check", is_flag=True, help="write nothing; fail when stale")
@release_options
@track_option
@json_option
def render_command(
    source: Path | None,
    folder: Path,
    overlay: str | None,
    only_check: bool,
    record: Path | None,
    track: Track,
    target: Target | None,
    artifacts: Path,
    as_json: bool,
) -> None:
    """Write the manifests of SOURCE (a spec, whose repository is made when missing, or a
    release.yaml) into k8s/. Without SOURCE everything is rendered again from the release.yaml files
    that are there; with --check nothing is written and the exit code says whether all is fresh.

    \b
    Example:
      control deploy render build/demo.yaml --out k8s
      control deploy render build/h200.yaml --overlay h200
      control deploy render --check
    """
    files = (
        all_files(folder)
        if source is None
        else _files(open_release(source, artifacts, target, record, track), folder, overlay)
    )
    if only_check:
        stale = find_stale(folder, files)
        if as_json:
            print_json({"fresh": not stale, "stale": [[one.path, one.why] for one in stale]})
        else:
            for one in stale:
                click.echo(f"{one.why:<10} {folder / one.path}")
            if not stale:
                click.echo(f"{folder}: {len(files)} files, all as rendered")
        if stale:
            raise Refused(
                f"{len(stale)} of {len(files)} files in {folder} are stale",
                f"control deploy render --out {folder}",
            )
        return
    touched = write_files(folder, files)
    if overlay is not None:
        start = folder / OVERLAYS / overlay / "kustomization.yaml"
        if not start.is_file():
            start.write_text(first_kustomization(files), encoding="utf-8")
            touched.append(str(start.relative_to(folder)))
    if as_json:
        print_json({"folder": str(folder), "written": touched, "files": sorted(files)})
        return
    for name in touched:
        click.echo(f"wrote {folder / name}")
    click.echo(f"{folder}: {len(files)} files, {len(touched)} changed")


@click.command("check", short_help="Find defects in any manifests, each with its fix")
@click.argument("paths", type=PathType, nargs=-1, required=True)
@click.option(
    "--kubernetes",
    "versions",
    multiple=True,
    metavar="VERSION",
    help="version of the cluster, such as 1.33, may be repeated  [default: 1.29 to the newest]",
)
@click.option(
    "--crd",
    "crd_files",
    type=PathType,
    multiple=True,
    help="CustomResourceDefinition of a custom kind, may be repeated",
)
@click.option("--house", is_flag=True, help="the house rules bind other people's manifests too")
@json_option
def check_command(
    paths: tuple[Path, ...],
    versions: tuple[str, ...],
    crd_files: tuple[Path, ...],
    house: bool,
    as_json: bool,
) -> None:
    """Find defects in the manifests PATHS (files or folders, not only ours): unknown fields and
    kinds, what an API server refuses, and what it accepts and can never run. Each comes with its
    fix. House rules bind objects labelled app.kubernetes.io/managed-by: slmrank; of others they are
    advice. Exit code 1 when there is a defect.

    \b
    Example:
      control deploy check k8s/base
      control deploy check my-app.yaml --kubernetes 1.33 --house
    """
    known = known_versions()
    unknown = [one for one in versions if one not in known]
    if unknown:
        raise DeployError(
            f"Kubernetes {', '.join(unknown)} cannot be checked",
            f"known: {known[0]} to {known[-1]}",
        )
    read = read_manifests(paths)
    checked = check(
        read.objects,
        versions=versions or known,
        crds=load_crds(crd_files),
        house=house,
        read=read.findings,
    )
    if not checked.objects and not checked.findings:
        raise DeployError(
            f"{', '.join(map(str, paths))}: no Kubernetes object", "give a manifest or a folder"
        )
    if as_json:
        print_json(
            {
                "objects": checked.objects,
                "kubernetes": list(versions or known),
                "findings": [asdict(one) for one in checked.errors],
                "advice": [asdict(one) for one in checked.advice],
                "skipped": read.skipped,
            }
        )
    else:
        _show_findings(checked, list(versions or known), read.skipped)
    if checked.errors:
        raise click.exceptions.Exit(Refused.exit_code)


def _show_findings(checked: Checked, versions: list[str], skipped: list[str]) -> None:
    for one in checked.errors:
        click.echo(f"{one.where}\n  {one.rule}: {one.message}\n  Fix: {one.fix}")
    span = versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
    told = f"{len(checked.errors)} defects" if checked.errors else "no defect"
    click.echo(f"{checked.objects} objects, Kubernetes {span}: {told}")
    if checked.advice:
        rules = ", ".join(sorted({one.rule for one in checked.advice}))
        click.echo(f"house rules have {len(checked.advice)} more to say (--house): {rules}")
    if skipped:
        click.echo(f"skipped: {', '.join(skipped)}")


def _files(release: Release, folder: Path, overlay: str | None) -> dict[str, str]:
    if overlay is None:
        files = base_files(release)
        # The overlays depend on the base.
        for path in sorted((folder / OVERLAYS).glob(f"*/{RELEASE_FILE}")):
            files |= overlay_files(path.parent.name, release, load_release(path))
        return files
    base = load_release(folder / BASE / RELEASE_FILE)
    return {**base_files(base), **overlay_files(overlay, base, release)}
