"""Objects as YAML that people read and that is the same every time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml


class _Plain(yaml.SafeDumper):
    """Writes repeated values out instead of naming them, and long texts as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Plain.add_representer(str, _text)


def to_yaml(manifest: dict[str, Any]) -> str:
    """One deterministic document."""
    return yaml.dump(manifest, Dumper=_Plain, sort_keys=True, default_flow_style=False, width=100)


def to_documents(manifests: Iterable[dict[str, Any]]) -> str:
    """Several documents in one text."""
    return "---\n".join(to_yaml(one) for one in manifests)
