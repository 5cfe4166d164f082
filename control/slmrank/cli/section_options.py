"""Command line options of a spec section: one for each field, with its type, default and
description, so that none of them is written twice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_args

import click
from pydantic import ValidationError

from slmrank.errors import SpecError
from slmrank.spec.section import Section


def section_options(section: type[Section], *names: str) -> Callable[[Any], Any]:
    """Give a command the fields `names` (all by default) of a section as options; it gets the
    section as `given`."""
    fields = {
        name: field for name, field in section.model_fields.items() if not names or name in names
    }

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            own = {name: values.pop(name) for name in fields}
            own = {name: value for name, value in own.items() if value is not None}
            try:
                given = section.model_validate(own)
            except ValidationError as error:
                fault = error.errors()[0]
                flag = _flag(str(fault["loc"][0])) if fault["loc"] else ""
                text = fault["msg"].removeprefix("Value error, ")
                raise SpecError(f"{flag} {text}".strip(), "see --help") from error
            return function(given=given, **values)

        for name, field in reversed(fields.items()):
            kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,))]
            kind = next(kind for kind in kinds if kind is not type(None))
            default = "" if field.default is None else f"  [default: {field.default}]"
            command = click.option(
                _flag(name), name, type=kind, help=f"{field.description}{default}"
            )(command)
        return command

    return decorate


def _flag(name: str) -> str:
    return "--" + name.removesuffix("_s").replace("_", "-")
