"""`control serve`: run the repository of a spec, or any other, until interrupted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from slmrank.cli.display import show_plan, show_result
from slmrank.cli.options import (
    POSITIVE,
    Decorated,
    Opened,
    PathType,
    dry_run_option,
    json_option,
    source_options,
)
from slmrank.errors import ServerError
from slmrank.serving.ports import in_url
from slmrank.serving.server import DRAIN_S, START_TIMEOUT_S, Http, Ports, Server, ServerTls


def _port(flag: str, default: int) -> Callable[[Decorated], Decorated]:
    kind = click.IntRange(0, 65535)
    return click.option(flag, type=kind, default=default, help="0: a free port")


@click.command("serve")
@source_options
@_port("--grpc-port", Ports().grpc)
@click.option(
    "--http",
    type=click.Choice(["off", "health", "all"]),
    default="off",
    help="HTTP as well: health alone, as probes need it, or scoring too (without TLS; in its JSON "
    "the score of a job that has none is a bare NaN, which strict parsers refuse)",
)
@_port("--http-port", Ports().http)
@_port("--metrics-port", Ports().metrics)
@click.option("--address", default="127.0.0.1", help="address to listen on")
@click.option("--tls-certificate", type=PathType, help="PEM; gRPC over TLS, with --tls-key")
@click.option("--tls-key", type=PathType, help="PEM")
@click.option(
    "--tls-clients", type=PathType, help="PEM of authorities: callers must show a certificate"
)
@click.option(
    "--start-timeout",
    "start_timeout_s",
    type=POSITIVE,
    default=START_TIMEOUT_S,
    help="seconds until the ensemble must be ready",
)
@click.option(
    "--drain",
    "drain_s",
    type=click.IntRange(0, 3600),
    default=DRAIN_S,
    help="seconds that requests get after SIGTERM which were being read by then",
)
@dry_run_option
@json_option
def serve_command(
    source: Opened | Path,
    grpc_port: int,
    http: Http,
    http_port: int,
    metrics_port: int,
    address: str,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls_clients: Path | None,
    start_timeout_s: float,
    drain_s: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run tritonserver over SOURCE: a spec (its repository is made when missing) or a repository
    folder. Ctrl-C or SIGTERM drains running requests and stops.

    \b
    Example:
      control serve build/demo.yaml
      control serve /models/repository --address 0.0.0.0
    """
    tls = None
    if tls_certificate is not None and tls_key is not None:
        tls = ServerTls(certificate=tls_certificate, key=tls_key, clients=tls_clients)
        tls.arguments(http)  # a file that is not there, before a bundle is made
    elif tls_certificate is not None or tls_key is not None or tls_clients is not None:
        raise click.UsageError("TLS needs --tls-certificate and --tls-key")
    if isinstance(source, Path):
        repository = source
        if dry_run:
            text = f"would serve {repository} on {address}:{grpc_port}"
            plan = {"repository": str(repository), "address": address, "grpc_port": grpc_port}
            show_result({"plan": plan}, text, as_json=as_json)
            return
    else:
        if dry_run:
            show_plan([source.bundle.repository], source.store, as_json=as_json)
            return
        repository = source.run(source.bundle.repository).path
    ports = Ports(grpc=grpc_port, http=http_port, metrics=metrics_port)
    # A terminal shows whether it is ready; a log, all that the server and its stages say.
    echo = None if sys.stderr.isatty() else sys.stderr
    server = Server(
        repository, ports, address=address, drain_s=drain_s, http=http, tls=tls, echo=echo
    )
    try:
        server.start(start_timeout_s)
        metrics = f"http://{in_url(server.address)}:{server.ports.metrics}/metrics"
        ready = {"ready": True, "grpc": server.url, "http": None, "metrics": metrics}
        if http != "off":
            ready["http"] = f"{in_url(server.address)}:{server.ports.http}"
        over = " over TLS" if tls is not None else ""
        told = f"gRPC {server.url}{over}, HTTP {ready['http'] or 'off'}, metrics {metrics}"
        show_result(ready, f"rank is ready: {told}", as_json=as_json)
        sys.stdout.flush()
        status = server.wait()
        raise ServerError(
            f"tritonserver ended with status {status}\n{server.log()[-2000:]}", "start it again"
        )
    except KeyboardInterrupt:
        click.echo("stopping", err=True)
    finally:
        server.stop()
