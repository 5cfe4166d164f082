"""Where the files that ship with the product lie: Triton stages and engine recipes.

In a checkout they are the top-level folders; in an installed wheel they are inside the package.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The path of a shipped file or folder such as `build/demo.yaml` or `model_repository`."""
    for root in (_PACKAGE / "_shipped", _PACKAGE.parent.parent):
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"{name} is missing from this installation of slmrank")
