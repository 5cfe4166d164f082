"""What was deployed before: one ConfigMap per release, with its objects whole, so that a rollback
puts back exactly what ran, whatever version of this tool rendered it."""

from __future__ import annotations

import contextlib
import datetime
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from slmrank.deploy.cluster.api import ApiError, Cluster
from slmrank.deploy.naming import MANAGED_BY, MANAGER, Object, placed
from slmrank.deploy.release import RELEASE_FILE, Place, Release
from slmrank.deploy.yaml_text import to_documents
from slmrank.errors import Refused

COMPONENT_NAME = "release"
STATE, REVISION, WHEN = "slmrank.io/state", "slmrank.io/revision", "slmrank.io/when"
BY = "slmrank.io/by"  # whose record it is, where a lost answer makes a call come twice
BEFORE = "slmrank.io/before"
KEPT = 5
State = Literal["applying", "deployed", "failed", "interrupted", "rolled-back"]
GOOD: tuple[State, ...] = ("deployed", "rolled-back")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One deployment of one release. `objects` are in the order of their application;
    `release_values` None: recorded by a version that did not keep them. `before`: what the target
    of a rollback was until it was applied again."""

    name: str
    revision: int
    state: State
    when: datetime.datetime
    release: str
    engine: str
    objects: tuple[Object, ...]
    release_values: Release | None = None
    before: State | None = None


def record_labels(place: Place) -> dict[str, str]:
    return {**placed(place, COMPONENT_NAME), MANAGED_BY: MANAGER}


def list_records(cluster: Cluster, place: Place) -> list[Record]:
    """Records of a bundle, newest first, without those that somebody edited beyond reading."""
    return read_records(cluster, place)[0]


def read_records(cluster: Cluster, place: Place) -> tuple[list[Record], int]:
    """`list_records`, and the newest revision by the names of all, 0 where there is none."""
    found: list[Record] = []
    newest = 0
    for one in cluster.list("v1", "ConfigMap", place.namespace, record_labels(place)):
        if number := re.search(r"-release-(\d+)$", one["metadata"]["name"]):
            newest = max(newest, int(number[1]))
        notes = one["metadata"].get("annotations") or {}
        data = one.get("data") or {}
        try:
            found.append(
                Record(
                    name=one["metadata"]["name"],
                    revision=int(notes[REVISION]),
                    state=notes[STATE],
                    when=datetime.datetime.fromisoformat(notes[WHEN]),
                    release=data["release"],
                    engine=data["engine"],
                    objects=tuple(yaml.safe_load_all(data["objects.yaml"])),
                    release_values=_release(data.get(RELEASE_FILE)),
                    before=notes.get(BEFORE),
                )
            )
        except (KeyError, ValueError, yaml.YAMLError):
            continue
    return sorted(found, key=lambda one: one.revision, reverse=True), newest


def write_record(
    cluster: Cluster, release: Release, objects: Sequence[Object], *, revision: int, state: State
) -> Record:
    """Write the record of one deployment, which is also the lock against a second one.

    Raises Refused when another apply has just taken the same revision.
    """
    now = datetime.datetime.now(datetime.UTC)
    record = Record(
        name=f"{release.object_name}-release-{revision}",
        revision=revision,
        state=state,
        when=now,
        release=release.hash,
        engine=release.engine.tag,
        objects=tuple(objects),
        release_values=release,
    )
    content, by = _content(record, release.place), uuid.uuid4().hex
    content["metadata"]["annotations"][BY] = by

    def is_ours() -> bool:
        there = cluster.get("v1", "ConfigMap", release.deploy.namespace, record.name) or {}
        notes = (there.get("metadata") or {}).get("annotations") or {}
        return bool(notes.get(BY) == by)

    try:
        cluster.create(content)
    except KeyboardInterrupt:
        # Nothing else has begun: no lock may stay behind.
        with contextlib.suppress(ApiError):
            if is_ours():
                cluster.delete(content)
        raise
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
        if is_ours():
            return record  # whose first answer was lost
        raise Refused(
            f"revision {revision} of {release.object_name} is being applied by somebody else",
            "wait for it, and repeat this",
        ) from error
    return record


def set_state(cluster: Cluster, record: Record, state: State, place: Place) -> None:
    """Change the state of a record, unless it was deleted meanwhile. One that is applied again is
    so from now on."""
    if cluster.get("v1", "ConfigMap", place.namespace, record.name) is None:
        return
    again = state == "applying"
    since = datetime.datetime.now(datetime.UTC) if again else record.when
    changed = replace(record, state=state, when=since, before=record.state if again else None)
    cluster.apply(_content(changed, place), force=True)


def find_record(records: Sequence[Record], revision: int | None) -> Record:
    """The record of a revision; without one the newest. Raises Refused when there is none."""
    for one in records:
        if revision in (None, one.revision):
            return one
    known = ", ".join(f"{one.revision} ({one.state})" for one in records) or "none"
    wanted = "an earlier deployed one" if revision is None else f"revision {revision}"
    raise Refused(f"there is no record of {wanted}", f"records: {known}")


def _content(record: Record, place: Place) -> dict[str, Any]:
    release = record.release_values
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": record.name,
            "namespace": place.namespace,
            "labels": record_labels(place),
            "annotations": {
                STATE: record.state,
                REVISION: str(record.revision),
                WHEN: record.when.isoformat(timespec="seconds"),
                **({BEFORE: record.before} if record.before is not None else {}),
            },
        },
        "data": {
            "release": record.release,
            "engine": record.engine,
            "objects.yaml": to_documents(record.objects),
            **({RELEASE_FILE: release.to_yaml()} if release is not None else {}),
        },
    }


def _release(text: str | None) -> Release | None:
    """The release that a record was written for; None where it says nothing that is read now."""
    try:
        return Release.model_validate(yaml.safe_load(text)) if text else None
    except (ValidationError, yaml.YAMLError):
        return None
