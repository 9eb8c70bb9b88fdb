"""YAML as people write values: plain data only, 1e-3 is a number, a key may stand once."""

from __future__ import annotations

import re
from typing import Any

import yaml

from prerank.errors import InputError

__all__ = ["parse_yaml"]


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where ``1e-3`` is text and the last of two equal keys wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # A tag may ask for a mapping where there is none; the base class says so.
        keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for index, key in enumerate(keys):
            if any(key.value == other.value for other in keys[:index]):
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """Read YAML into plain values.

    Parameters
    ----------
    text : str
        One document.
    where : str
        What it came from, for the error.

    Raises
    ------
    InputError
        No valid YAML, a tag that asks for more than plain data, a repeated key; with the line.

    Examples
    --------
    >>> parse_yaml("{lr: 1e-3, hidden: [64, 32]}", "example")
    {'lr': 0.001, 'hidden': [64, 32]}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None and "\n" in text else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise InputError(f"{where}: not valid YAML: {line}{' '.join(problem.split())}") from None
