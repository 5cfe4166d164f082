"""Objects as YAML that people read and that is the same every time."""

from __future__ import annotations

import re
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


def read_as_kubectl(kind: Any) -> None:
    """Teach a dumper or loader of PyYAML what Go's YAML takes for a number or a truth and PyYAML
    for a text: of twelve digits of a hash one in 850 is `123456789e12`."""
    number = r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"
    kind.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(number), [*"-+.0123456789"])
    kind.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^[yYnN]$"), [*"yYnN"])


read_as_kubectl(_Plain)
_Plain.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?0[xob][0-9a-fA-F_]+$"), [*"-+0"]
)


def to_yaml(manifest: dict[str, Any]) -> str:
    """One deterministic document."""
    return yaml.dump(manifest, Dumper=_Plain, sort_keys=True, default_flow_style=False, width=100)


def to_documents(manifests: Iterable[dict[str, Any]]) -> str:
    """Several documents in one text."""
    return "---\n".join(to_yaml(one) for one in manifests)
