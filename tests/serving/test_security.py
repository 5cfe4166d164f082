"""The real server: what is closed, what HTTP gives, and TLS with and without certificates of callers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from slmrank.client.client import RankClient
from slmrank.client.replicas import Tls
from slmrank.errors import ServerError, Unreachable
from slmrank.serving.server import ANY_PORTS, KEY_VARIABLE, Server, ServerTls
from tritonclient import grpc as triton

pytestmark = pytest.mark.triton
CLOSED = (
    ("repository/index", b"{}"),
    ("repository/models/rank/unload", b"{}"),
    ("systemsharedmemory/region/r/register", b'{"key": "/any", "byte_size": 64}'),
    ("trace/setting", b"{}"),
    ("logging", b'{"log_file": "/tmp/x"}'),
)
SCORING = (
    ("models/rank/infer", b"{}"),
    ("models/rank/config", None),
    ("models/rank/stats", None),
    ("models/rank", None),
)


def refused(url: str, body: bytes | None) -> int:
    with pytest.raises(HTTPError) as found:
        urlopen(Request(url, body), timeout=10)
    return found.value.code


@pytest.mark.long
def test_who_has_no_key_can_score_and_read_but_change_nothing(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared memory, the model repository, traces and log settings are closed, on both ports."""
    monkeypatch.setenv(KEY_VARIABLE, "open sesame")
    with (
        Server(tiny_repository, ANY_PORTS, http="all") as server,
        triton.InferenceServerClient(server.url) as client,
    ):
        for call in (
            lambda **key: client.get_model_repository_index(**key),
            lambda **key: client.unload_model("rank", **key),
            lambda **key: client.register_system_shared_memory("region", "/any", 64, **key),
            lambda **key: client.get_system_shared_memory_status(**key),
            lambda **key: client.get_cuda_shared_memory_status(**key),
            lambda **key: client.update_trace_settings(settings={"trace_file": "/tmp/x"}, **key),
            lambda **key: client.update_log_settings({"log_file": "/tmp/x"}, **key),
        ):
            for headers in (
                None,
                {"triton-grpc-protocol-slmrank-key": "wrong"},
                {"slmrank-key": "open sesame"},
            ):
                with pytest.raises(triton.InferenceServerException, match="restricted"):
                    call(headers=headers)
        with_key = {"triton-grpc-protocol-slmrank-key": "open sesame"}
        assert client.get_system_shared_memory_status(headers=with_key) is not None
        assert client.is_model_ready("rank")
        assert client.get_inference_statistics("rank").model_stats
        http = f"http://{server.address}:{server.ports.http}/v2"
        assert [refused(f"{http}/{path}", body) for path, body in CLOSED] == [403] * len(CLOSED)
        assert urlopen(f"{http}/models/rank/config", timeout=10).status == 200
        with RankClient(server.url) as ranker:
            assert len(ranker.score("nurse", ["job-0"])) == 1


def test_http_is_off_unless_asked_for(tiny_server: Server) -> None:
    """Of all ports of the process, gRPC's and that of the metrics listen, no other."""
    listening = subprocess.run(["ss", "-ltnHp"], capture_output=True, text=True, check=False).stdout
    if f"pid={tiny_server.pid}," not in listening:
        pytest.skip("needs ss, which lists who listens")
    own = [line.split()[3] for line in listening.splitlines() if f"pid={tiny_server.pid}," in line]
    ports = {int(address.rpartition(":")[2]) for address in own}
    assert ports == {tiny_server.ports.grpc, tiny_server.ports.metrics}


@pytest.mark.long
def test_probes_get_health_and_nothing_else(tiny_repository: Path) -> None:
    with Server(tiny_repository, ANY_PORTS, http="health") as server:
        http = f"http://{server.address}:{server.ports.http}/v2"
        for path in ("health/live", "health/ready", "models/rank/ready"):
            assert urlopen(f"{http}/{path}", timeout=10).status == 200, path
        for path, body in (*CLOSED, *SCORING):
            assert refused(f"{http}/{path}", body) == 403, path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.crt, server.crt for `ranker.test`, client.crt, and one of another authority."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for authority in ("ca", "other"):
        openssl(
            *f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={authority} -keyout {authority}.key -out {authority}.crt".split()
        )
    for name, authority in (("server", "ca"), ("client", "ca"), ("stranger", "other")):
        openssl(
            *f"req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr".split()
        )
        (folder / "names").write_text("subjectAltName=DNS:ranker.test")
        openssl(
            *f"x509 -req -in {name}.csr -CA {authority}.crt -CAkey {authority}.key -CAcreateserial -days 2 -extfile names -out {name}.crt".split()
        )
    return folder


@pytest.fixture(scope="module")
def mutual(tiny_repository: Path, certificates: Path) -> Iterator[Server]:
    tls = ServerTls(
        certificate=certificates / "server.crt",
        key=certificates / "server.key",
        clients=certificates / "ca.crt",
    )
    with Server(tiny_repository, ANY_PORTS, tls=tls) as server:
        yield server


def shown(folder: Path, who: str, authority: str = "ca", name: str = "ranker.test") -> Tls:
    return Tls(
        authority=folder / f"{authority}.crt",
        certificate=folder / f"{who}.crt",
        key=folder / f"{who}.key",
        name=name,
    )


def test_mutual_tls_lets_in_who_shows_a_known_certificate(
    mutual: Server, tiny_server: Server, certificates: Path, control: Any
) -> None:
    with RankClient(mutual.url, tls=shown(certificates, "client")) as client:
        over_tls = client.score("nurse", ["job-0", "job-1"])
    with RankClient(tiny_server.url) as plain:
        assert [one.score for one in over_tls] == [
            one.score for one in plain.score("nurse", ["job-0", "job-1"])
        ]
    flags = ["--tls-authority", certificates / "ca.crt", "--tls-name", "ranker.test"]
    flags += ["--tls-certificate", certificates / "client.crt"]
    flags += ["--tls-key", certificates / "client.key"]
    jobs = ["-j", "job-0", "-j", "job-1"]
    done = control("score", "-q", "nurse", *jobs, "--url", mutual.url, *flags, "--json")
    assert done.returncode == 0, done.stderr
    given = [one["score"] for one in json.loads(done.stdout)["items"]]
    assert given == [one.score for one in over_tls]


@pytest.mark.parametrize(
    "tls",
    [
        None,
        ("stranger", "ca", "ranker.test"),
        ("client", "other", "ranker.test"),
        ("client", "ca", "elsewhere.test"),
    ],
    ids=["no TLS", "unknown caller", "unknown server", "other name"],
)
def test_everybody_else_is_kept_out(
    mutual: Server, certificates: Path, tls: tuple[str, str, str] | None
) -> None:
    told = None if tls is None else shown(certificates, *tls)
    with (
        RankClient(mutual.url, tls=told, timeout_s=2) as client,
        pytest.raises(Unreachable),
    ):
        client.score("nurse", ["job-0"])


def test_a_server_without_its_certificate_does_not_start(
    tiny_repository: Path, tmp_path: Path
) -> None:
    tls = ServerTls(certificate=tmp_path / "a.crt", key=tmp_path / "a.key")
    with pytest.raises(ServerError, match="HTTP has no TLS"):
        tls.arguments("all")
    with pytest.raises(ServerError, match=r"a\.crt is not a file"):
        Server(tiny_repository, ANY_PORTS, tls=tls).start()
