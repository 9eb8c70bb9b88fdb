"""Typed configuration: frozen structs that hold values only and build their class."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from prerank.errors import InputError, did_you_mean

__all__ = ["Config", "from_values", "to_values"]


class _KeywordOnly(msgspec.StructMeta):
    """Subclasses inherit ``frozen`` and ``forbid_unknown_fields``, but not ``kw_only``."""

    def __new__(cls, *args: Any, **options: Any) -> _KeywordOnly:
        return super().__new__(cls, *args, **{"kw_only": True, **options})


class Config(
    msgspec.Struct, metaclass=_KeywordOnly, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Base of every configuration: immutable, keyword-only, unknown keys refused.

    A configurable class owns a nested ``Config`` with a ``build`` method; what ``build`` needs
    besides the values (a schema, say) it takes as arguments. Subclasses repeat ``frozen=True``
    for the type checker.
    """


C = TypeVar("C", bound=msgspec.Struct)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def from_values(kind: type[C], values: Mapping[str, Any], *, where: str) -> C:
    """Convert plain values (from YAML or JSON) to a configuration.

    Parameters
    ----------
    kind : type of Config
        The struct to make.
    values : mapping
        Keys and plain values; numbers are not taken from strings.
    where : str
        What the values came from, for the error ("recipe two_tower.yaml: model").

    Raises
    ------
    InputError
        A misspelt key at any depth (the nearest one is named), a value of the wrong type, a
        missing value; ``where`` and the dotted path of the key say which.

    Examples
    --------
    >>> class Demo(Config, frozen=True):
    ...     width: int = 8
    >>> from_values(Demo, {"width": 4}, where="demo").width
    4
    >>> from_values(Demo, {"widht": 4}, where="demo")
    Traceback (most recent call last):
        ...
    prerank.errors.InputError: demo: unknown key 'widht'; did you mean 'width'?
    """
    try:
        return msgspec.convert(dict(values), kind)
    except msgspec.ValidationError as error:
        found = _complaint(inspect.type_info(kind), values, "") or _in_words(error, values)
        raise InputError(f"{where}: {found}") from None


def _complaint(kind: inspect.Type, value: Any, path: str) -> str:
    """Return what is wrong with the keys or choices of a value; empty if it is something else."""
    inner: list[tuple[inspect.Type, Any, str]] = []
    match kind:
        case inspect.StructType() if isinstance(value, Mapping):
            fields = {field.encode_name: field for field in kind.fields}
            for key, part in value.items():
                if key not in fields:
                    return f"unknown key '{path}{key}'; {did_you_mean(str(key), fields)}"
                inner.append((fields[key].type, part, f"{path}{key}."))
            for name, field in fields.items():
                if field.required and name not in value:
                    return f"no '{path}{name}'; it must be given"
        case inspect.DictType() if isinstance(value, Mapping):
            inner = [(kind.value_type, part, f"{path}{key}.") for key, part in value.items()]
        case inspect.ListType() | inspect.VarTupleType() if isinstance(value, list | tuple):
            inner = [(kind.item_type, part, f"{path}{k}.") for k, part in enumerate(value)]
        case inspect.UnionType():
            inner = [(member, value, path) for member in kind.types]
        case inspect.LiteralType() if isinstance(value, str) and value not in kind.values:
            return f"'{path[:-1]}' is '{value}'; {did_you_mean(value, map(str, kind.values))}"
    return next(filter(None, (_complaint(*part) for part in inner)), "")


def _in_words(error: msgspec.ValidationError, values: Any) -> str:
    """Turn ``Expected `int`, got `str` - at `$.width``` into key, value and what was expected."""
    text, _, place = str(error).partition(" - at ")
    names = []
    for name in re.findall(r"[^.\[\]`$]+", place.rpartition("$")[2]):
        if isinstance(values, Mapping) and name in values:
            values = values[name]
        elif isinstance(values, list | tuple) and name.isdigit():
            values = values[int(name)]
        else:
            break  # a key of a plain mapping, which msgspec does not name
        names.append(name)
    text = text.replace("`", "")
    return f"'{'.'.join(names)}' is {_SHORT.repr(values)}; {text[0].lower()}{text[1:]}"


def to_values(config: msgspec.Struct) -> dict[str, Any]:
    """Return the plain values of a configuration, ready for JSON or YAML.

    Examples
    --------
    >>> class Demo(Config, frozen=True):
    ...     hidden: tuple[int, ...] = (8, 4)
    >>> to_values(Demo())
    {'hidden': (8, 4)}
    """
    values: dict[str, Any] = msgspec.to_builtins(config)
    return values
