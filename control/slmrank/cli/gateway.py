"""`control gateway`: the rerank endpoint over HTTP, in front of running servers."""

from __future__ import annotations

from pathlib import Path

import click

from slmrank.cli.listening import GATEWAY, listen
from slmrank.cli.options import POSITIVE, PathType, client_tls, url_option
from slmrank.client.aio import AsyncRankClient
from slmrank.client.replicas import Tls
from slmrank.errors import SpecError, needs


@click.command("gateway")
@url_option(
    "gRPC address of the ranker: host:port, several with commas between, or a name that "
    "stands for all replicas"
)
@click.option("--address", default="127.0.0.1", help="address to listen on")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="0: a free port")
@click.option("--timeout", "timeout_s", type=POSITIVE, default=10.0, help="seconds")
@click.option(
    "--hedge",
    "hedge_s",
    type=POSITIVE,
    help="seconds after which a request is sent to a second replica as well",
)
@click.option(
    "--tokens",
    "token_file",
    type=PathType,
    help="file of bearer tokens that are let in, one a line, read again when it changes; without "
    "it: everybody",
)
@click.option("--max-documents", type=click.IntRange(1), default=1000)
@click.option("--max-request-mb", type=POSITIVE, default=8.0)
@click.option("--max-in-flight", type=click.IntRange(1), default=256)
@click.option("--tls-certificate", type=PathType, help="PEM; serve HTTPS")
@click.option("--tls-key", type=PathType, help="PEM")
@client_tls("ranker")
def gateway_command(
    url: str,
    address: str,
    port: int,
    timeout_s: float,
    hedge_s: float | None,
    token_file: Path | None,
    max_documents: int,
    max_request_mb: float,
    max_in_flight: int,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls: Tls | None,
) -> None:
    """Rerank over HTTP, in the shapes that clients of Cohere, Jina and Text Embeddings Inference
    speak: POST /v1/rerank, /v2/rerank and /rerank; and /v1/score, /health, /metrics, /docs.

    A document is a text, `{"id": ...}` of a job in the store, or an object with a job's fields.

    \b
    Example:
      control gateway --url ranker:8001
      curl localhost:8080/v1/rerank -H 'content-type: application/json' \\
        -d '{"query": "night nurse", "documents": ["Care for patients.", {"id": "29-1141.00-1"}]}'
    """
    with needs(*GATEWAY):
        from slmrank.gateway.app import Limits, make_app
    if (tls_certificate is None) != (tls_key is None):
        raise click.UsageError("--tls-certificate and --tls-key belong together")
    limits = Limits(
        max_documents=max_documents,
        max_request_bytes=round(max_request_mb * 2**20),
        max_in_flight=max_in_flight,
        tokens=() if token_file is None else TokenFile(token_file).known,
    )
    client = AsyncRankClient(url, timeout_s=timeout_s, hedge_s=hedge_s, tls=tls)
    listen(
        make_app(client, limits),
        (address, port),
        lambda where: f"gateway to {url} on {where}",
        answer_s=timeout_s,
        ssl_certfile=tls_certificate,
        ssl_keyfile=tls_key,
    )


class TokenFile:
    """A file of tokens, read again when it was changed: a token that was taken out is let in no
    more. Raises SpecError when it cannot be read at first; later the last good list holds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known, self._stamp = _tokens(path), _stamp(path)

    def known(self) -> tuple[str, ...]:
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._known = _tokens(self._path)
            except SpecError as error:
                click.echo(f"{error.message}: the tokens before hold", err=True)
        return self._known


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _tokens(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read --tokens {path}: {error}", "one token a line") from error
    known = tuple(line.strip() for line in text.splitlines() if line.strip())
    for number, token in enumerate(known, start=1):
        if not (token.isascii() and token.isprintable()):
            raise SpecError(
                f"--tokens {path}: token {number} is not printable ASCII, which is all that a "
                "header carries",
                "write another one",
            )
    if not known:
        raise SpecError(f"--tokens {path} holds no token", "write one a line, or leave it out")
    return known
