"""Boolean expressions over labels, read into {1, 0, unknown}: ``click or watch_ms >= 10000``.

Three-valued logic (Kleene): a label that was not observed makes the result unknown unless the rest
decides it. Names, numbers, comparisons, ``and``, ``or``, ``not`` and parentheses; nothing else.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from prerank.errors import InputError

__all__ = ["evaluate", "names"]

Array = npt.NDArray[np.float32]

_COMPARE: dict[type[ast.cmpop], Callable[[Array, Array], npt.NDArray[np.bool_]]] = {
    ast.GtE: np.greater_equal,
    ast.Gt: np.greater,
    ast.LtE: np.less_equal,
    ast.Lt: np.less,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}


@lru_cache(maxsize=256)
def _parse(text: str) -> ast.expr:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        _check(tree, text)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        raise InputError(
            f"expression '{text}': not understood; expected labels, numbers, comparisons, "
            "and, or, not (for example: click or watch_ms >= 10000)"
        ) from None
    return tree


def _check(node: ast.expr, text: str) -> None:
    match node:
        case ast.BoolOp(values=values):
            for value in values:
                _check(value, text)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            _check(operand, text)
        case ast.Compare(left=left, ops=ops, comparators=rights) if all(
            type(op) in _COMPARE for op in ops
        ):
            for side in (left, *rights):
                if not isinstance(side, ast.Name):
                    _number(side, text)
            if not any(isinstance(side, ast.Name) for side in (left, *rights)):
                raise InputError(
                    f"expression '{text}': '{ast.unparse(node)}' compares no label; "
                    "expected a label on one side"
                )
        case ast.Name():
            pass
        case _:
            part = ast.unparse(node)
            raise InputError(
                f"expression '{text}': '{part}' is not allowed; expected labels, numbers, "
                "comparisons, and, or, not"
            )


def _number(node: ast.expr, text: str) -> float:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand, text)
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise InputError(
        f"expression '{text}': '{ast.unparse(node)}' is not allowed in a comparison; "
        "expected a label or a number"
    )


def names(text: str) -> tuple[str, ...]:
    """Return the labels an expression reads, each once, in order of appearance.

    Raises
    ------
    InputError
        The text is not an expression of the allowed form.

    Examples
    --------
    >>> names("click or (watch_ms >= 10000 and not skip)")
    ('click', 'watch_ms', 'skip')
    """
    nodes = [node for node in ast.walk(_parse(text)) if isinstance(node, ast.Name)]
    nodes.sort(key=lambda node: (node.lineno, node.col_offset))
    return tuple(dict.fromkeys(node.id for node in nodes))


def evaluate(text: str, labels: Mapping[str, Array]) -> Array:
    """Evaluate an expression over label columns; NaN means not observed.

    Parameters
    ----------
    text : str
        The expression; a bare label means "label > 0".
    labels : mapping of str to ndarray ``[I]`` float32
        One column per label; NaN where it was not observed.

    Returns
    -------
    ndarray ``[I]`` float32
        1, 0, or NaN for unknown.

    Examples
    --------
    >>> nan = float("nan")
    >>> click = np.array([1, 0, nan, nan], dtype=np.float32)
    >>> watch = np.array([nan, 5, 20, nan], dtype=np.float32)
    >>> evaluate("click or watch >= 10", {"click": click, "watch": watch})
    array([ 1.,  0.,  1., nan], dtype=float32)
    """
    return _evaluate(_parse(text), labels, text)


def _evaluate(node: ast.expr, labels: Mapping[str, Array], text: str) -> Array:
    match node:
        case ast.BoolOp(op=op, values=values):
            parts = [_evaluate(value, labels, text) for value in values]
            result = parts[0]
            for part in parts[1:]:
                result = _kleene(result, part, decisive=1.0 if isinstance(op, ast.Or) else 0.0)
            return result
        case ast.UnaryOp(operand=operand):
            return np.asarray(1.0 - _evaluate(operand, labels, text), dtype=np.float32)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            chain = [_column(side, labels, text) for side in (left, *rights)]
            result = _compared(chain[0], ops[0], chain[1])
            for k in range(1, len(ops)):
                step = _compared(chain[k], ops[k], chain[k + 1])
                result = _kleene(result, step, decisive=0.0)
            return result
        case _:
            value = _column(node, labels, text)
            return _compared(value, ast.Gt(), np.zeros_like(value))


def _column(node: ast.expr, labels: Mapping[str, Array], text: str) -> Array:
    if isinstance(node, ast.Name):
        if node.id not in labels:
            raise InputError(
                f"expression '{text}': no label '{node.id}'; labels here: "
                f"{', '.join(sorted(labels)) or 'none'}"
            )
        return labels[node.id]
    return np.asarray(_number(node, text), dtype=np.float32)


def _compared(left: Array, op: ast.cmpop, right: Array) -> Array:
    result = _COMPARE[type(op)](left, right).astype(np.float32)
    return np.where(np.isnan(left) | np.isnan(right), np.float32(np.nan), result)


def _kleene(a: Array, b: Array, *, decisive: float) -> Array:
    decided = (a == decisive) | (b == decisive)
    unknown = np.isnan(a) | np.isnan(b)
    other = np.float32(1.0 - decisive)
    return np.where(decided, np.float32(decisive), np.where(unknown, np.float32(np.nan), other))
