"""`control receive`: what `deploy push` and pods call at the other end."""

from __future__ import annotations

from pathlib import Path

import click

from slmrank.cli.options import PathType, standard_input
from slmrank.errors import RepositoryError
from slmrank.repository.receive import is_whole, receive_tar, receive_url


@click.command("receive")
@click.argument("target", type=PathType)
@click.option("--digest", required=True, help="of the artifact, 16 hex digits")
@click.option("--from", "url", help="folder or url that holds it")
@click.option("--bytes", "size", type=click.IntRange(0), help="length of the stream on stdin")
@click.option("--check", is_flag=True, help="only look whether it is there, whole")
def receive_command(
    target: Path, digest: str, url: str | None, size: int | None, check: bool
) -> None:
    """Put an artifact into the folder TARGET, unless it is there already. Pods run it.

    \b
    Example:
      control receive /bundles/repository-0123456789abcdef --digest 0123456789abcdef \\
        --from s3://bucket/bundles/repository-0123456789abcdef
    """
    if url is None and size is None and not check:
        raise click.UsageError("give --from URL, or --bytes of a stream on stdin")
    if size is None and is_whole(target, digest):
        click.echo(f"{target}: there already, whole")
        return
    if check:
        raise RepositoryError(f"{target} is not there, or not whole", "push it")
    if url is None:
        done = receive_tar(standard_input(), size or 0, target, digest)
    else:
        done = receive_url(url, target, digest)
    click.echo(f"{target}: {done / 1e6:.1f} MB, as sent")
