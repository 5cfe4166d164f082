"""Facts about the machine that decide how much work is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from slmrank.machine import host
from slmrank.machine.facts import cpu_features, usable_cores

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, CORES),
        ({"cpu.max": "max 100000"}, CORES),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, CORES),
        ({"cpu.max": "nonsense"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_a_cpu_limit_is_respected(files: dict[str, str], cores: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert usable_cores(tmp_path) == cores


def test_a_processor_of_arm_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda *_args, **_more: text)
    assert cpu_features() == {"fp", "asimd", "asimddp"}
    assert host._processor().endswith(" 0x41 0xd40")
