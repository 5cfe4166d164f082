"""The machine that measures: what decides a rate, and what is told beside a figure."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slmrank.machine.facts import find_gpus, memory_gib, usable_cores


def machine_line(host: Mapping[str, Any]) -> str:
    """What `host_facts` found, in one line; of a server somewhere nothing is known."""
    if not host:
        return "not known"
    size = f"{host.get('cores', '?')} cores, {host.get('memory_gib', '?')} GiB"
    gpus = [gpu["name"] for gpu in host.get("gpus", ())]
    return ", ".join([host.get("processor", "?"), size, *gpus, host.get("system", "")])


def host_facts() -> dict[str, Any]:
    """The machine that measures: processor, cores, memory, kernel, GPUs; asked once a sweep."""
    gpus, _ = find_gpus()
    memory = memory_gib()
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": None if memory is None else round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "gpus": [asdict(gpu) for gpu in gpus],
    }


def what_computes() -> dict[str, str]:
    """Of the machine's facts those that decide a rate: an artifact folder may be carried on."""
    facts = host_facts()
    gpus = ", ".join(gpu["name"] for gpu in facts["gpus"])
    return {"processor": facts["processor"], "cores": str(facts["cores"]), "gpus": gpus}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    told = dict(line.split(":", 1) for line in reversed(text.splitlines()) if ":" in line)
    facts = {name.strip(): value.strip() for name, value in told.items()}
    arm = [facts[name] for name in ("CPU implementer", "CPU part") if name in facts]
    return facts.get("model name") or " ".join([platform.machine(), *arm])
