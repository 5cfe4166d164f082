"""Read a spec: YAML, `extends:`, overrides from the command line, and errors that help."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from slmrank.errors import SpecError
from slmrank.plugins import load_plugins
from slmrank.shipped import shipped
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.faults import Layers, explain
from slmrank.spec.model import PACKAGED_MODEL


def _paths_below(annotation: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of a type that hold a path; `*` is any key of a map."""
    if annotation is Path:
        yield at
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield from _paths_below(field.annotation, (*at, name))
    elif get_origin(annotation) is dict:
        yield from _paths_below(get_args(annotation)[1], (*at, "*"))
    else:
        for one in get_args(annotation):
            yield from _paths_below(one, at)


# Keys that hold a path. In a file they are relative to it, in --set to the current folder.
_PATHS = (*dict.fromkeys(_paths_below(BundleSpec)), ("base", "source"))

# Of YAML: a date that is none, a circle, a tag whose value is not of its kind.
UNREADABLE = (yaml.YAMLError, ValueError, RecursionError, AttributeError)


def load_spec(path: Path, overrides: Iterable[str] = ()) -> BundleSpec:
    """Read a spec file; `overrides` are `section.key=value`, the value as YAML.

    A file with the key `extends: other.yaml` is an overlay: its keys replace those of the other
    file, section by section; data of another `source` begin anew, and {} empties maps whose keys
    are free, such as evaluate.sets. The paths of each file are as seen from its own folder.
    Raises SpecError that names the key, the rule and, for an unknown key, the nearest known one.
    """
    return _parsed(path, read_overrides(overrides))


def _parsed(path: Path, changes: Iterable[Mapping[str, Any]]) -> BundleSpec:
    """A file over those that it extends, changed one after the other."""
    files = _files(path)
    layers = [(str(file), own) for file, own in reversed(files)]
    layers += [("--set", own) for own in changes]
    values = layers[0][1]
    for _, own in layers[1:]:
        values = _merged(values, own)
    return parse_spec(values, files[-1][0].parent.absolute(), str(path), layers)


def parse_spec(
    values: dict[str, Any], folder: Path, name: str = "spec", layers: Layers = ()
) -> BundleSpec:
    """Validate a spec given as a mapping, which `layers` make up; see `load_spec`."""
    load_plugins()
    try:
        json.dumps(values, ensure_ascii=False, skipkeys=True, default=str).encode()
    except UnicodeEncodeError as error:
        if any("\ud800" <= one <= "\udfff" for one in str(folder)):
            raise SpecError(
                f"the folder {str(folder)!r} has a name that is not UTF-8",
                "rename it, or set LANG to a UTF-8 locale",
            ) from error
        raise SpecError(f"{name} holds half of a character: {error}", "write it whole") from error
    except ValueError as error:
        raise SpecError(f"{name} holds itself: {error}", "remove the alias") from error
    try:
        return BundleSpec.model_validate(_with_paths(values, folder))
    except ValidationError as error:
        raise SpecError(*explain(error, name, layers)) from error


def change_spec(spec: BundleSpec, *changes: Mapping[str, Any]) -> BundleSpec:
    """The spec with other values, by section, all at once. Raises SpecError if they do not fit."""
    values = spec.model_dump(exclude_unset=True)
    for one in changes:
        values = _merged(values, one)
    return parse_spec(values, Path(), "spec")


class OnceEachLoader(yaml.SafeLoader):
    """YAML in which a key may stand once: of two, PyYAML would silently take the last."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._seen: dict[int, yaml.Node] = {}  # held: ids are used again, for the next document

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Once: what it merged stands in it afterwards, and a later alias comes here again.
        if id(node) not in self._seen:
            self._seen[id(node)] = node
            self._refuse_repeated(node)
        super().flatten_mapping(node)

    def _refuse_repeated(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} stands here twice", key.start_mark
                )
            if key.tag != "tag:yaml.org,2002:merge":
                seen.add(str(key.value))


def _files(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A spec file and those that it extends, each with its own mapping."""
    found: list[tuple[Path, dict[str, Any]]] = []
    while True:
        values = _read(path)
        base = values.pop("extends", None)
        if path.resolve() in [one.resolve() for one, _ in found]:
            raise SpecError(f"{path} extends itself", "remove the key extends")
        found.append((path, _with_paths(values, path.parent.absolute())))
        if base is None:
            return found
        if not isinstance(base, str) or not base.strip():
            raise SpecError(f"{path}: extends is {base!r}, no file", "name one spec file")
        try:
            overlay, path = path, path.parent / Path(base).expanduser()
        except RuntimeError as error:
            told = f"{path}: extends is {base!r}, whose user is not known here"
            raise SpecError(told, "write the whole path") from error
        if not path.is_file():
            told = f"{path}, which {overlay} extends, is no file"
            raise SpecError(told, "correct the key extends")


def _read(path: Path) -> dict[str, Any]:
    """The mapping of one file."""
    try:
        loaded = OnceEachLoader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise SpecError(
            f"cannot read spec {path}: {error.strerror}", f"the shipped one is {shipped(DEMO)}"
        ) from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    except UNREADABLE as error:
        raise SpecError(f"{path} is not YAML: {error}", "check that line") from error
    if not isinstance(loaded, dict):
        raise SpecError(f"{path} holds no mapping", f"start from {shipped(DEMO)}")
    if loaded.get("schema") == 1:  # as `control spec --json` prints it
        del loaded["schema"]
    return loaded


def read_chain(path: Path) -> list[Path]:
    """A spec file and those that it extends, resolved. Raises SpecError."""
    return [one.resolve() for one, _ in _files(path)]


DEMO = "build/demo.yaml"
NULL_SAYS_NONE = ("finetune",)
FREE_MAPS = ("sets", "node_selector", "monitoring_labels", "options")


def _merged(
    below: Mapping[str, Any], above: Mapping[str, Any], *, keep_null: bool = False, inside: str = ""
) -> dict[str, Any]:
    """`below` with the keys of `above`, section by section; null removes a key, or says none where
    the default is another. With `keep_null` it stays: both are changes of something else."""
    merged = dict(below)
    for key, value in above.items():
        if value is None and key not in NULL_SAYS_NONE and not keep_null:
            merged.pop(key, None)
        elif isinstance(value, dict) and _is_merged(key, inside, merged.get(key), value):
            merged[key] = _merged(merged[key], value, keep_null=keep_null, inside=key)
        else:
            merged[key] = value
    return merged


def _is_merged(key: str, inside: str, below: Any, above: Mapping[str, Any]) -> bool:
    if not isinstance(below, dict) or (key in FREE_MAPS and not above):
        return False
    if key != "data" and inside != "sets":
        return True
    return above.get("source") in (None, below.get("source"))  # its keys are of that source


def is_overlay(path: Path, overrides: Sequence[str], spec: BundleSpec) -> bool:
    """Whether one overlay over a file can say what the overrides say one after the other."""
    return _parsed(path, [_as_one(read_overrides(overrides))]) == spec


def _as_one(changes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Changes of something else as one, the later ones last."""
    values: dict[str, Any] = {}
    for one in changes:
        values = _merged(values, one, keep_null=True)
    return values


def read_override(text: str, flag: str = "--set") -> dict[str, Any]:
    """`engine.trtllm.max_batch_size=64` as a mapping; `flag` is where it was given."""
    dotted, equals, raw = text.partition("=")
    parts = dotted.strip().split(".")
    if not equals or not all(parts):
        raise SpecError(f"{flag} {text!r} is not KEY=VALUE", f"write {flag} sweep.items=[1,32]")
    try:
        value = yaml.safe_load(raw)
    except UNREADABLE as error:
        raise SpecError(f"{flag} {text!r}: the value is not YAML: {error}", "quote it") from error
    if isinstance(value, dict) and not raw.lstrip().startswith("{"):
        value = raw.strip()  # such as lmdb: or a url
    return _with_paths(nested(dotted.strip(), value), Path.cwd())


def read_overrides(texts: Iterable[str]) -> list[dict[str, Any]]:
    """The mappings of --set, the first source of data before what is said of its section since that
    began anew: with it the section begins anew, and the rest is of the new one."""
    names: list[str] = []
    ordered: list[dict[str, Any]] = []
    for text in texts:
        name, given, at = text.partition("=")[0].strip(), read_override(text), len(ordered)
        source = re.fullmatch(r"(data|evaluate\.sets\.[^.]+)\.source", name)
        if source and name not in names:
            section = source[1].split(".")
            anew = (n for n, one in enumerate(ordered) if _begins_anew(one, section))
            at = max(anew, default=-1) + 1
        names.append(name)
        ordered.insert(at, given)
    return ordered


def _begins_anew(given: Any, section: Sequence[str]) -> bool:
    """Whether a --set replaces a section, or what that stands in: the others are merged."""
    inside = ""
    for part in section:
        if not isinstance(given, dict):
            return True
        if part not in given:
            return not given and inside in FREE_MAPS
        given, inside = given[part], part
    return not isinstance(given, dict) or "source" in given


def extending(base: str, told: Iterable[str], *changes: Mapping[str, Any]) -> str:
    """The text of an overlay that extends the spec `base` by changes, the later ones last, with
    comments above them."""
    body = yaml.safe_dump(
        {"extends": base, **_as_one(changes)}, sort_keys=False, allow_unicode=True
    )
    return "".join(f"# {line}\n" for line in told) + body


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """A value below its dotted key, as mappings in mappings."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _with_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Relative paths as seen from the folder of the spec."""
    changed = values
    for parts in _PATHS:
        changed = _with_path(changed, parts, folder)
    return changed


def _with_path(values: Any, parts: Sequence[str], folder: Path) -> Any:
    """The mapping with the path at `parts`, of which `*` is any key, as seen from the folder."""
    if not parts:
        if not isinstance(values, str | Path) or str(values) == PACKAGED_MODEL:
            return values
        try:
            return str(folder / Path(values).expanduser())
        except RuntimeError as error:
            raise SpecError(f"{values}: there is no such user here", "write the path") from error
    if not isinstance(values, dict):
        return values
    names = list(values) if parts[0] == "*" else [parts[0]]
    inner = {name: _with_path(values[name], parts[1:], folder) for name in names if name in values}
    return {**values, **inner}
