"""The API server of api_server.py, and a deployer on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deploy.cluster.api_server import ApiServer

if TYPE_CHECKING:
    from tests.deploy.cluster.test_apply import Bench


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as made:
        yield made


@pytest.fixture
def bench(server: ApiServer, tmp_path: Path) -> Bench:
    from tests.deploy.cluster.test_apply import Bench

    return Bench(server, tmp_path)
