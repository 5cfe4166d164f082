"""A rollout whose Jobs really run: the smoke Job's own command, against the real tritonserver, with the
known answers out of the ConfigMap that was applied."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slmrank.deploy.naming import Object
from slmrank.deploy.release import Release, make_release
from slmrank.errors import DeployError, RolledBack
from slmrank.load.record import RECORD
from slmrank.pipeline.steps import run

from tests.conftest import TinyBundle
from tests.deploy.cluster.api_server import ApiServer
from tests.deploy.cluster.test_apply import Bench
from tests.deploy.releases import CPU_IMAGE

pytestmark = pytest.mark.triton


def deployed(tiny: TinyBundle, record: Path | None = None, **changes: Any) -> Release:
    """The tiny bundle's release, with an image and a short deadline."""
    spec = tiny.bundle.spec
    given = {
        "image": CPU_IMAGE,
        "rollout": {"startup_s": 20, "pull_s": 20},
        "scaling": {"items_per_s": 50},
        **changes,
    }
    deploy = type(spec.deploy).model_validate(given)
    return make_release(
        spec.model_copy(update={"deploy": deploy}),
        tiny.bundle.target,
        run(tiny.bundle.repository, tiny.store),
        run(tiny.bundle.engine, tiny.store),
        record=record,
    )


def running(server: ApiServer, url: str, folder: Path) -> Callable[[Object], tuple[bool, str]]:
    """Runs the command of a Job's container here, with its ConfigMap as files and the Service's name
    resolved to the server."""

    def work(job: Object) -> tuple[bool, str]:
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        for volume in pod["volumes"]:
            if "configMap" in volume:
                found = server.get("ConfigMap", volume["configMap"]["name"])
                assert found is not None
                for name, text in found["data"].items():
                    (folder / name).write_text(text)
        words = [
            word.replace(mounted["manifest"], str(folder)).replace(
                "slmrank-tiny.slmrank.svc:8001", url
            )
            for word in container["command"]
        ]
        binary = str(Path(sys.executable).parent / words[0])
        done = subprocess.run(
            [binary, *words[1:]], capture_output=True, text=True, timeout=90, check=False
        )
        return done.returncode == 0, done.stderr

    return work


def test_a_release_is_asked_for_its_answers_by_its_own_job(
    tiny: TinyBundle, tiny_server: Any, tmp_path: Path
) -> None:
    with ApiServer() as server:
        bench = Bench(server, tmp_path)
        server.run_job = running(server, tiny_server.url, tmp_path)
        release = deployed(tiny)
        done = bench.apply(release)
        assert done["smoke"] == "known answers hold"
        # A release that knows other answers is not what serves there.
        known = [
            replace(one, p=1 - one.p if abs(one.p - 0.5) > 0.1 else 0.9)
            for one in release.known_answers
        ]
        other = release.model_copy(update={"known_answers": known})
        with pytest.raises(RolledBack) as caught:
            bench.apply(other)
        assert "known answers are off" in caught.value.message
        assert "slmrank-tiny-smoke-2" in caught.value.message


def test_capacity_comes_from_a_record_of_this_very_bundle(
    tiny: TinyBundle, tiny_server: Any, tmp_path: Path
) -> None:
    from slmrank.client.client import RankClient

    with RankClient(tiny_server.url) as client:
        served = client.describe()
    slo = tiny.bundle.spec.sweep.slo

    def cell(items: int, low: float) -> dict[str, Any]:
        return {
            "items": items,
            "tokens": 24,
            "query_tokens": None,
            "limit_ms": slo.latency_ms,
            "percentile": slo.percentile,
            "rate": 9.0,
            "items_per_s": low + 5,
            "items_per_s_range": (low, low + 9),
            "latency_ms_range": (1, 2),
            "failed_at": 10.0,
            "runs": 9,
        }

    def record(served: dict[str, str], *cells: dict[str, Any]) -> Path:
        path = tmp_path / f"record-{len(list(tmp_path.iterdir()))}.json"
        found = {"kind": RECORD, "served": served, "points": [], "slo": cells}
        path.write_text(json.dumps({**found, "perf_analyzer": "", "host": {}, "drift": None}))
        return path

    release = deployed(tiny, record(served, cell(4, 81.5), cell(1, 33.25)))
    # The slowest kind of request, at the lower end of its spread.
    assert release.capacity.items_per_s == 33.25
    assert "measured: 1 jobs of 24 tokens a request" in release.capacity.source
    with pytest.raises(DeployError, match="engine another instead of"):
        deployed(tiny, record({**served, "engine": "another"}, cell(4, 80)))
    with pytest.raises(DeployError, match="holds no rate for"):
        deployed(tiny, record(served))
    with pytest.raises(DeployError, match="the autoscaler has no target"):
        deployed(tiny, scaling={})
