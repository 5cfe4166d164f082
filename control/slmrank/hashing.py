"""Canonical JSON and SHA-256: the identity of settings and files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def hash_value(value: Any) -> str:
    """SHA-256 (64 hex digits) of a JSON-representable value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def without_nan(value: Any) -> Any:
    """A value as JSON has it: dataclasses are mappings, and NaN and infinities null."""
    return to_jsonable_python(value, inf_nan_mode="null")
