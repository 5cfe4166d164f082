"""Generate the Triton model repository: `rank` = `prepare` -> `ranker`.

Everything a server needs lies inside the directory; big files are hard links where the file system
allows it. The ensemble graph is checked before anything is called a repository.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from slmrank.errors import RepositoryError
from slmrank.hashing import hash_value
from slmrank.model.checkpoint import RANKER_FILE
from slmrank.shipped import shipped
from slmrank.spec.bundle import BundleSpec
from slmrank.triton.config import (
    ADMISSION,
    ASKED,
    DEPTH,
    ENSEMBLE,
    PREPARE,
    PREPARED,
    PREPARED_STATUS,
    RANKER,
    SCORED,
    STATUS,
    TOLD,
    Limits,
    ModelConfig,
    Queue,
    add_parameters,
    add_tensor,
    parse_config,
    print_config,
    python_model,
    rank_model,
)
from slmrank.triton.graph import check_ensemble

CONFIG = "config.pbtxt"
# One at a time in `prepare` and so in the ensemble: Triton refuses a whole batch for one request
# whose bytes lie about their lengths, and good requests that were joined with it failed (fuzzing).
# `ranker` joins what it gets: its tensors are checked one by one.
ALONE = 1


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a repository holds beside its configurations: the `model.py` of each Python stage, files
    for `prepare`, and folders by their path inside."""

    stages: Mapping[str, Path]
    prepare_files: Mapping[str, str]
    checkpoint: Path
    links: Mapping[str, Path]


def queue_of(spec: BundleSpec) -> Queue:
    """Dynamic batching of `ranker`, and when Triton itself refuses a waiting request."""
    own, limits = spec.repository, None
    if own.deferrable_queue_size is not None:
        limits = Limits(
            size=own.max_queue_size,
            timeout_us=spec.queue_timeout_us,
            deferrable_size=own.deferrable_queue_size,
        )
    return Queue(max_delay_us=own.max_queue_delay_us, limits=limits)


def prepare_stage() -> Path:
    """The `model.py` of the stage `prepare`."""
    return shipped("model_repository") / PREPARE / "1" / "model.py"


def render_configs(
    spec: BundleSpec, ranker: Mapping[str, ModelConfig], identity: Mapping[str, str]
) -> dict[str, ModelConfig]:
    """Model configurations by model name (pure). `ranker` are the engine target's models.

    `identity` names engine, checkpoint, template and tokenizer; it stands in the ensemble's
    parameters, so that any client can read what answers. `configuration` there is a hash over every
    other configuration: a sweep knows by it what it measured.
    """
    own = spec.repository
    parameters = {"max_items": str(own.max_items), "served": json.dumps(dict(identity))}
    told = {tensor.name: tensor.name for tensor in TOLD}
    scored = {tensor.name: tensor.name for tensor in SCORED}
    if own.deferrable_queue_size is None:
        door = {
            "limit_s": spec.queue_timeout_us / 1e6,
            "max_waiting": own.max_queue_size,
            "joined": ranker[RANKER].max_batch_size,
        }
        parameters[ADMISSION] = json.dumps(door)
        add_parameters(ranker[RANKER], {ADMISSION: parameters[ADMISSION]})
    if own.depth is not None:
        # `ranker` decides how many jobs it ranks, so it has the last word on their status.
        told[STATUS.name], scored[STATUS.name] = PREPARED_STATUS.name, STATUS.name
        parameters[DEPTH] = RANKER
        add_parameters(ranker[RANKER], {DEPTH: own.depth.model_dump_json()})
        add_tensor(ranker[RANKER].input, PREPARED_STATUS)
        add_tensor(ranker[RANKER].output, STATUS)
    handed_on = {tensor.name: tensor.name for tensor in PREPARED}
    given = {one.name: one.name for one in ranker[RANKER].input}
    prepare = python_model(
        PREPARE,
        ASKED,
        (*PREPARED, *TOLD),
        max_batch_size=ALONE,
        queue=replace(queue_of(spec), max_delay_us=0),
        parameters=parameters,
    )
    inside = {PREPARE: prepare, **ranker}
    asked = {tensor.name: tensor.name for tensor in ASKED}
    rank = rank_model(
        ALONE,
        {PREPARE: (asked, {**handed_on, **told}), RANKER: (given, scored)},
        {
            **identity,
            "configuration": hash_value([print_config(one) for one in inside.values()])[:16],
            "max_items": str(own.max_items),
        },
    )
    return {**inside, ENSEMBLE: rank}


def write_repository(target: Path, configs: Mapping[str, ModelConfig], contents: Contents) -> None:
    """Write the repository into the empty folder `target`, then check what was written."""
    for name, config in configs.items():
        version = target / name / "1"
        version.mkdir(parents=True)
        (target / name / CONFIG).write_text(print_config(config), encoding="utf-8")
        if config.backend == "python":
            shutil.copy2(contents.stages[name], version / "model.py")
        else:
            # Triton wants a version folder, and some copy tools drop an empty one.
            (version / ".keep").touch()
    prepare = target / PREPARE / "1"
    for file in ("tokenizer.json", RANKER_FILE):
        shutil.copy2(contents.checkpoint / file, prepare / file)
    for file, text in contents.prepare_files.items():
        (prepare / file).write_text(text, encoding="utf-8")
    for inside, source in contents.links.items():
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
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RepositoryError(f"{file}: {error}", "copy the repository again") from error
        config = parse_config(text, str(file))
        folder = file.parent.name
        if config.name and config.name != folder:
            raise RepositoryError(
                f"{file}: name {config.name!r} is not its folder's name {folder!r}",
                "rename one of them",
            )
        if not [entry for entry in file.parent.iterdir() if entry.name.isdigit()]:
            raise RepositoryError(f"{file.parent} has no version folder", "add the folder 1/")
        configs[folder] = config
    for config in configs.values():
        if config.platform == "ensemble":
            check_ensemble(config, configs)
    return configs


def read_identity(path: Path) -> dict[str, str]:
    """What a server over this repository says of itself (`RankClient.describe`)."""
    parameters = check_repository(path)[ENSEMBLE].parameters
    return {name: value.string_value for name, value in parameters.items()}


def ranker_count(path: Path) -> int:
    """Processes of the stage `ranker` in a server over this repository."""
    count: int = check_repository(path)[RANKER].instance_group[0].count
    return count


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
