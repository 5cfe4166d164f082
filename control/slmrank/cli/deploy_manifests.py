"""`control deploy render` and `control deploy check`: what needs no cluster."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from slmrank.cli.display import show_result
from slmrank.cli.options import PathType, json_option
from slmrank.cli.release_options import open_release, refuse_spec_options, release_options
from slmrank.deploy.check.run import Checked, check
from slmrank.deploy.check.schema import known_versions, load_crds
from slmrank.deploy.check.sources import read_manifests
from slmrank.deploy.files import find_stale, release_files, rendered_folders, write_files
from slmrank.deploy.release import is_release
from slmrank.errors import DeployError, Refused

ROOT = Path("k8s")


@click.command("render", short_help="Write the manifests of a spec, or check them")
@click.argument("source", type=PathType, required=False)
@click.option(
    "--out",
    "folder",
    type=PathType,
    help="folder of the manifests  [default: that of a release.yaml, k8s/base of a spec]",
)
@click.option("--check", "only_check", is_flag=True, help="write nothing; fail when stale")
@release_options
@json_option
def render_command(
    source: Path | None, folder: Path | None, only_check: bool, as_json: bool, **options: Any
) -> None:
    """Write the manifests of SOURCE (a spec, whose repository is made when missing, or a
    release.yaml) into a folder of their own. Without SOURCE everything below k8s (or --out) is
    rendered again from the release.yaml files that are there; with --check nothing is written and
    the exit code says whether all is fresh.

    \b
    Example:
      control deploy render build/demo.yaml
      control deploy render build/h200.yaml --out k8s/h200
      control deploy render --check
    """
    if source is None:
        refuse_spec_options(options)
        folders = rendered_folders(folder or ROOT)
    else:
        release = open_release(source, making=not only_check, **options)
        own = source if source.is_dir() else source.parent
        made_in = own if source.is_dir() or is_release(source) else ROOT / "base"
        folders = {folder or made_in: release_files(release)}
    total = sum(len(files) for files in folders.values())
    if only_check:
        stale = [
            (where / name, why)
            for where, files in folders.items()
            for name, why in find_stale(where, files).items()
        ]
        told = [f"{why:<10} {path}" for path, why in stale]
        if not stale:
            told.append(f"{total} files in {', '.join(map(str, folders))}: all as rendered")
        show_result({"fresh": not stale, "stale": stale}, *told, as_json=as_json)
        if stale:
            named = ["control", "deploy", "render"]
            named += [str(source)] if source is not None else []
            named += ["--out", str(folder)] if folder is not None else []
            again = shlex.join(named) + (", with the same options" if source is not None else "")
            raise Refused(f"{len(stale)} of {total} files are stale", again)
        return
    touched = [
        where / name for where, files in folders.items() for name in write_files(where, files)
    ]
    written = [str(path) for path in touched if path.is_file()]
    removed = [str(path) for path in touched if not path.is_file()]
    named = [str(where) for where in folders]
    told = [*(f"wrote {name}" for name in written), *(f"removed {name}" for name in removed)]
    told.append(f"{total} files in {', '.join(named)}, {len(touched)} changed")
    value = {"folders": named, "written": written, "removed": removed}
    show_result(value, *told, as_json=as_json)


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
    value = {
        "objects": checked.objects,
        "kubernetes": versions or known,
        "findings": checked.errors,
        "advice": checked.advice,
        "skipped": read.skipped,
    }
    show_result(value, *_words(checked, versions or known, read.skipped), as_json=as_json)
    if checked.errors:
        raise click.exceptions.Exit(Refused.exit_code)


def _words(checked: Checked, versions: Sequence[str], skipped: list[str]) -> Iterator[str]:
    for one in checked.errors:
        yield f"{one.where}\n  {one.rule}: {one.message}\n  Fix: {one.fix}"
    span = versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
    told = f"{len(checked.errors)} defects" if checked.errors else "no defect"
    yield f"{checked.objects} objects, Kubernetes {span}: {told}"
    if checked.advice:
        rules = ", ".join(sorted({one.rule for one in checked.advice}))
        yield f"house rules have {len(checked.advice)} more to say (--house): {rules}"
    if skipped:
        yield f"skipped: {', '.join(skipped)}"
