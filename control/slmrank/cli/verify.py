"""`control verify`: a repository's files against its manifest, before anything loads them."""

from __future__ import annotations

from pathlib import Path

import click

from slmrank.artifacts import MANIFEST
from slmrank.cli.display import show_result
from slmrank.cli.options import PathType, json_option
from slmrank.repository.generate import check_repository
from slmrank.repository.verify import read_expected, verify_engine, verify_repository
from slmrank.serving.prepare import read_summarizing
from slmrank.store.registry import store_kind
from slmrank.summarize.registry import SUMMARIZERS
from slmrank.triton.config import PREPARE


@click.command("verify")
@click.argument("repository", type=PathType)
@click.option("--manifest", type=PathType, help="what must be there  [default: its manifest.json]")
@click.option("--engine", type=PathType, help="folder of the compiled engine, named by its tag")
@json_option
def verify_command(
    repository: Path, manifest: Path | None, engine: Path | None, as_json: bool
) -> None:
    """Compare every file of REPOSITORY with the manifest that was written when it was generated,
    check its model configurations, and a compiled engine with its plan. Pods run this before they
    touch a GPU.

    \b
    Example:
      control verify artifacts/repository/0123456789abcdef
    """
    expected = read_expected(manifest or repository / MANIFEST)
    total = verify_repository(repository, expected)
    models = check_repository(repository)
    if PREPARE in models:  # registered ones need their code, here and in the pod
        spec = read_summarizing(repository / PREPARE / "1").spec
        SUMMARIZERS.get(spec.method)
        store_kind(spec.store)
    if engine is not None:
        verify_engine(engine, expected)
    value = {
        "repository": str(repository),
        "files": len(expected.files),
        "bytes": total,
        "models": sorted(models),
        "engine": None if engine is None else str(engine),
    }
    told = [f"{repository}: {len(expected.files)} files, {total / 1e6:.1f} MB, as generated"]
    if engine is not None:
        told.append(f"{engine}: whole, as planned")
    show_result(value, *told, as_json=as_json)
