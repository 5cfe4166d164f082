"""Memory of a process that starts others."""

from __future__ import annotations

from pathlib import Path


def tree_mib(root: int) -> float:
    """Resident memory of a process and everything below it, shared pages counted once each."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    total, left = 0, [root]
    while left:
        one = left.pop()
        left += children.get(one, [])
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:")
        except OSError:
            continue
    return total / 1024
