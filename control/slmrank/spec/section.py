"""What every section of a spec is: typed, frozen, and strict about its keys."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Unknown keys are errors; values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_no_words(cls, values: Any) -> Any:
        """YAML reads yes and on as true, which pydantic would take for 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            given = value if isinstance(value, list) else [value]
            found = any(isinstance(one, bool) for one in given)
            field = cls.model_fields.get(name) if found else None
            kinds = _within(field.annotation) if field else set()
            if bool not in kinds and kinds & {int, float}:
                raise ValueError(f"{name} is {value}, not a number")
        return values

    def settings(self) -> dict[str, Any]:
        """The section as plain JSON values: part of an artifact's key."""
        return self.model_dump(mode="json")


def _within(annotation: Any) -> set[Any]:
    """A type with those that it is made of."""
    return {annotation}.union(*(_within(one) for one in get_args(annotation)))


def multiple_of_64(value: int) -> int:
    """The value, when kernels can hold that width. Raises ValueError naming the next ones."""
    if value % 64:
        below = value // 64 * 64
        raise ValueError(f"{value} is not a multiple of 64; use {below} or {below + 64}")
    return value
