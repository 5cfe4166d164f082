"""`control deploy push`: the repository to where pods read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slmrank.artifacts import ArtifactStore
from slmrank.cli.deploy_cluster import Reach, cluster_options
from slmrank.cli.display import show_result
from slmrank.cli.options import PathType
from slmrank.cli.release_options import open_sources, release_options
from slmrank.deploy.cluster.push import plan_parcels, push_to_claims, push_to_urls
from slmrank.deploy.oci import write_image
from slmrank.engine.trtllm.compile import find_compiled


@click.command("push", short_help="Put repository and engine where pods read them")
@click.argument("source", type=PathType)
@click.option(
    "--image",
    "archive",
    type=PathType,
    help="write the repository as an image into this file instead, as an OCI archive",
)
@click.option(
    "--engines", type=PathType, help="folder of compiled engines  [default: the artifacts]"
)
@release_options
@cluster_options
def push_command(
    source: Path,
    archive: Path | None,
    engines: Path | None,
    artifacts: Path,
    reach: Reach,
    as_json: bool,
    **options: Any,
) -> None:
    """Put what the spec SOURCE serves to where its pods read it. What is there already is not sent
    again; nothing half-copied gets the name.

    Onto the claims of deploy.storage, through a pod that lives as long as the copy and compares
    every file by its hash; or to deploy.storage.bundles_url, such as s3://bucket/bundles, from
    where each pod fetches it when it starts, and compares; or with --image into an archive, for a
    registry and deploy.storage.bundle_image:

      skopeo copy oci-archive:bundle.tar docker://REGISTRY/NAME

    A planned engine goes along for the Job that builds it, and the compiled one if it is here.

    \b
    Example:
      control deploy push build/demo.yaml
      control deploy push build/demo.yaml --image bundle.tar
    """
    release, repository, engine = open_sources(source, artifacts=artifacts, **options)
    if archive is not None:
        digest = write_image(repository, archive, release.name)
        told = f"{archive}: {archive.stat().st_size / 1e6:.1f} MB, image {digest}"
        show_result({"archive": str(archive), "digest": digest}, told, as_json=as_json)
        return
    compiled = None
    if release.engine.plan is not None:
        compiled = find_compiled(ArtifactStore(engines or artifacts), release.engine.tag)
    to_urls, on_claims = plan_parcels(release, repository, engine, compiled)
    sent = push_to_urls(to_urls, lambda text: click.echo(text, err=True))
    if on_claims:
        deployer = reach()
        sent += push_to_claims(deployer.cluster, deployer.waiter, release, on_claims)
    rows = [
        {"target": one.target, "bytes": one.bytes, "sent": one in sent}
        for one in (*to_urls, *on_claims)
    ]
    lines = [f"{row['target']}: {'sent' if row['sent'] else 'there already'}" for row in rows]
    none = "the repository is in deploy.storage.bundle_image; --image writes another"
    value = {"release": release.hash, "parcels": rows}
    show_result(value, "\n".join(lines) or none, as_json=as_json)
