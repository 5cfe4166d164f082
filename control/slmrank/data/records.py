"""Jobs and pairs: the two records of a labelled job-search set, and their JSONL files."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from slmrank.errors import DataError
from slmrank.validation import first_fault

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
MAX_GRADE = 4
GZIP = b"\x1f\x8b"
MAX_JOB_ID_BYTES = 500  # LMDB keys hold 511 bytes


class Job(BaseModel):
    """One item to rank. Only `job_id` and `description` must be given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_id: str = Field(min_length=1)
    title: str = ""
    company: str = ""
    location: str = ""
    description: str

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        optional = ("title", "company", "location")
        return {
            name: one for name, one in values.items() if one is not None or name not in optional
        }

    @field_validator("job_id")
    @classmethod
    def _short(cls, value: str) -> str:
        size = len(value.encode())
        if size > MAX_JOB_ID_BYTES:
            raise ValueError(f"has {size} bytes, the limit is {MAX_JOB_ID_BYTES}")
        return value


class Pair(BaseModel):
    """One judgment: how well a job answers a query, as `grade` 0 (not at all) to 4 (exactly), or as
    `target` 0 to 1, a teacher's score; from a target alone the grade is the nearest one. `kind` is
    what sort of query it is (title, skill, ...): quality is also shown by it. `group` (occupation,
    employer, ...) is what never stands in two splits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: str = Field(min_length=1)
    job_id: str = Field(min_length=1)
    grade: int = Field(default=..., ge=0, le=MAX_GRADE)  # or by `target`
    target: float | None = Field(default=None, ge=0, le=1)
    split: Split | None = None
    kind: str | None = None
    group: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _graded(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        # A blank text, and NaN beside a number, are how tables without nulls say that there is
        # nothing.
        blank = [name for name in ("group", "kind") if not str(values.get(name, "-")).strip()]
        judged = [name for name in ("grade", "target") if values.get(name) is not None]
        lacking = [name for name in judged if _is_nan(values[name])]
        left_out = {*blank, *(lacking if len(lacking) < len(judged) else ())}
        values = {name: one for name, one in values.items() if name not in left_out}
        grade, target = values.get("grade"), values.get("target")
        if isinstance(target, str):  # the folders of a partitioned table give texts
            try:
                target = values["target"] = float(target)
            except ValueError:
                raise ValueError(f"target {target!r} is no number") from None
        if isinstance(grade, bool) or isinstance(target, bool):
            raise ValueError("grade and target are numbers, not true or false")
        if grade is None and isinstance(target, int | float):
            if not 0 <= target <= 1:
                raise ValueError(f"target {target} is not between 0 and 1")
            return {**values, "grade": round(target * MAX_GRADE)}
        return values

    @property
    def wanted(self) -> float:
        """The p that training aims at."""
        return self.grade / MAX_GRADE if self.target is None else self.target

    @field_validator("query")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is blank")
        return value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Jobs by id, and pairs by split; pairs of one query stand together."""

    jobs: Mapping[str, Job]
    pairs: Mapping[Split, Sequence[Pair]]


Record = TypeVar("Record", bound=BaseModel)


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record.model_dump(exclude_none=True), ensure_ascii=False))
            stream.write("\n")


def group_by_query(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """Pairs by query, in order of first appearance."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.query, []).append(pair)
    return groups


def read_jsonl(path: Path, model: type[Record]) -> Iterator[Record]:
    """The records of a JSONL file, one at a time. Raises DataError that names file, line and
    field."""
    for number, line in enumerate(_lines(path), start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
            if line.startswith(GZIP):
                raise DataError(f"{path} is compressed by gzip", "unpack it: gunzip FILE")
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            value: Any = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{place}: not UTF-8 (byte {error.start} is 0x{line[error.start]:02x})",
                "convert the file to UTF-8",
            ) from error
        except (ValueError, RecursionError) as error:
            told = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise DataError(
                f"{place}: not JSON: {told}", "write one JSON object per line"
            ) from error
        yield checked(model, value, place)


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, one at a time: it may be larger than the memory."""
    try:
        with path.open("rb") as stream:
            yield from stream
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check the path") from error


def checked(model: type[Record], value: Any, place: str) -> Record:
    """A record from its fields. Raises DataError that names the place and the field."""
    try:
        # JSON can escape half a surrogate pair, which no UTF-8 file and no tokenizer can hold.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
        return model.model_validate(value)
    except TypeError as error:  # a column of bytes or decimals
        raise DataError(
            f"{place}: {error}", "write texts as strings and numbers as floats"
        ) from error
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: a text holds half a surrogate pair", "repair the escape"
        ) from error
    except ValidationError as error:
        raise DataError(
            f"{place}: {first_fault(error, 'record')}",
            f"fields are {', '.join(model.model_fields)}",
        ) from error
