"""Where the figures of a page come from."""

from __future__ import annotations

from slmrank import __version__
from slmrank.cli.options import Opened
from slmrank.load.evidence import host_facts, machine_line


def provenance_of(opened: Opened) -> dict[str, str]:
    """Spec, artifacts and machine, as text."""
    bundle = opened.bundle
    return {
        "spec": f"{bundle.spec.name} ({opened.path.name})",
        "slmrank": __version__,
        "data": bundle.data.key,
        "fine-tuned": bundle.finetuned.key,
        "served": f"checkpoint {bundle.final.key}, engine {bundle.engine.key}",
        "machine": machine_line(host_facts()),
    }
