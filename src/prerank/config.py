"""Typed configuration: frozen structs that hold values only and build their class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

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
        A misspelt key (the nearest one is named), a value of the wrong type, a missing value.

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
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key in values:
        if key not in known:
            raise InputError(f"{where}: unknown key '{key}'; {did_you_mean(str(key), known)}")
    try:
        return msgspec.convert(dict(values), kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {error}") from None


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
