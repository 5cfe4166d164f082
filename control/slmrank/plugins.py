"""Extensions of other people: Python files named in SLMRANK_PLUGINS (separated by ':').

Such a file registers an engine target, a summarizer or a summary store when it is loaded. A
variable, because it also reaches the processes that the server starts, which see no PYTHONPATH.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from pathlib import Path

from slmrank.code_hash import hash_of_loaded
from slmrank.errors import SpecError
from slmrank.hashing import hash_value

VARIABLE = "SLMRANK_PLUGINS"
LOCK = threading.RLock()  # two threads may ask for the first time at once


def load_plugins() -> None:
    """Load every named file once; from then on their paths are absolute, also for processes that
    are started later. Raises SpecError for one that is missing or fails."""
    with LOCK:
        names = [name for name in os.environ.get(VARIABLE, "").split(":") if name]
        if names:
            os.environ[VARIABLE] = ":".join(str(Path(name).absolute()) for name in names)
        for name in names:
            path = Path(name).resolve()
            module_name = f"slmrank_plugin_{path.stem}_{hash_value(str(path))[:8]}"
            if module_name in sys.modules:
                continue
            spec = importlib.util.spec_from_file_location(module_name, path)
            if not path.is_file() or spec is None or spec.loader is None:
                raise SpecError(f"{VARIABLE} names {name}, which is no Python file", "correct it")
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            try:
                spec.loader.exec_module(module)
            except Exception as error:
                del sys.modules[module_name]
                raise SpecError(f"{VARIABLE}: {name} fails to load: {error}", "mend it") from error
            hash_of_loaded(module_name, path)  # of what was loaded, whatever becomes of the file
