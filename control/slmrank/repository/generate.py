"""Generate the Triton model repository: `rank` = `prepare` -> `ranker`.

Everything a server needs lies inside the directory; big files are hard links where the file system
allows it. The ensemble graph is checked before anything is called a repository.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from slmrank.errors import RepositoryError
from slmrank.hashing import hash_value
from slmrank.model.checkpoint import RANKER_FILE
from slmrank.repository.rankers import RANKER, Ranker, stage_folder
from slmrank.shipped import shipped
from slmrank.triton.config import (
    ITEM_IDS,
    ITEM_LENGTHS,
    JOB_ID,
    JOB_TEXT,
    PREFIX_IDS,
    QUERY,
    SCORE,
    STATUS,
    ModelConfig,
    Queue,
    Stage,
    ensemble,
    parse_config,
    print_config,
    python_model,
)
from slmrank.triton.graph import check_ensemble

ENSEMBLE = "rank"
CONFIG = "config.pbtxt"
# Without any delay the batcher of Triton 2.51 sometimes misses a request until it looks again, 500
# ms later: 41 of 10,900 requests, one after the other (tiny model, 5 starts); 7 of 12,500 with 500
# us in ranker alone, 1 of 12,500 with 200 us here as well.
PREPARE_DELAY_US = 200


@dataclass(frozen=True, kw_only=True)
class RepositorySettings:
    """Batching over requests, queue limits and request size."""

    max_batch_size: int
    max_queue_delay_us: int
    max_queue_size: int
    queue_timeout_us: int
    max_items: int


def render_configs(
    settings: RepositorySettings, engine: Ranker, identity: Mapping[str, str]
) -> dict[str, ModelConfig]:
    """Model configurations by model name (pure). `identity` names engine, checkpoint, template and
    tokenizer; it stands in the ensemble's parameters, so that any client can read what answers.
    `settings` there is a hash over every other configuration: a sweep knows by it what it measured.
    """
    queue = Queue(
        max_delay_us=settings.max_queue_delay_us,
        max_size=settings.max_queue_size,
        timeout_us=settings.queue_timeout_us,
    )
    inner = (PREFIX_IDS, ITEM_IDS, ITEM_LENGTHS)
    prepare = python_model(
        "prepare",
        (QUERY, JOB_ID, JOB_TEXT),
        (*inner, STATUS),
        max_batch_size=settings.max_batch_size,
        queue=replace(queue, max_delay_us=PREPARE_DELAY_US),
        parameters={"max_items": str(settings.max_items)},
    )
    inside = {"prepare": prepare, **engine.models(settings.max_batch_size, queue)}
    rank = ensemble(
        ENSEMBLE,
        (QUERY, JOB_ID, JOB_TEXT),
        (SCORE, STATUS),
        (
            Stage(
                model="prepare",
                inputs={one.name: one.name for one in (QUERY, JOB_ID, JOB_TEXT)},
                outputs={one.name: one.name for one in (*inner, STATUS)},
            ),
            Stage(
                model="ranker",
                inputs={one.name: one.name for one in inner},
                outputs={SCORE.name: SCORE.name},
            ),
        ),
        max_batch_size=settings.max_batch_size,
        parameters={
            **identity,
            "settings": hash_value([print_config(one) for one in inside.values()])[:16],
            "max_items": str(settings.max_items),
        },
    )
    return {**inside, ENSEMBLE: rank}


def write_repository(
    target: Path,
    configs: Mapping[str, ModelConfig],
    ranker: Ranker,
    *,
    engine: Path,
    checkpoint: Path,
    store: Path,
) -> None:
    """Write the repository into the empty folder `target`, then check what was written."""
    for name, config in configs.items():
        version = target / name / "1"
        version.mkdir(parents=True)
        (target / name / CONFIG).write_text(print_config(config))
        if config.backend == "python":
            stage = stage_folder(ranker.target) if name == RANKER else name
            code = shipped("model_repository") / stage / "1" / "model.py"
            shutil.copy2(code, version / "model.py")
        else:
            # Triton wants a version folder, and some copy tools drop an empty one.
            (version / ".keep").touch()
    prepare = target / "prepare" / "1"
    for file in ("tokenizer.json", RANKER_FILE):
        shutil.copy2(checkpoint / file, prepare / file)
    link_tree(store, prepare / "store")
    for inside, source in ranker.links(engine).items():
        link_tree(source, target / inside)
    check_repository(target)


def check_repository(path: Path) -> dict[str, ModelConfig]:
    """Parse every configuration and check the ensemble graph; returns configurations by name.

    Raises RepositoryError that names file and fault.
    """
    files = sorted(path.glob(f"*/{CONFIG}"))
    if not files:
        raise RepositoryError(f"{path} is not a model repository", "make one with `control repo`")
    configs: dict[str, ModelConfig] = {}
    for file in files:
        config = parse_config(file.read_text(encoding="utf-8"), str(file))
        folder = file.parent.name
        if config.name and config.name != folder:
            raise RepositoryError(
                f"{file}: name {config.name!r} is not its folder's name {folder!r}",
                "rename one of them",
            )
        if not [one for one in file.parent.iterdir() if one.name.isdigit()]:
            raise RepositoryError(f"{file.parent} has no version folder", "add the folder 1/")
        configs[folder] = config
    for config in configs.values():
        if config.platform == "ensemble":
            check_ensemble(config, configs)
    return configs


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links; falls back to copies across file systems. Manifests and locks
    stay behind."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.name in ("manifest.json", "lock.mdb"):
            continue
        if path.is_dir():
            link_tree(path, target / path.name)
            continue
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copy2(path, target / path.name)
