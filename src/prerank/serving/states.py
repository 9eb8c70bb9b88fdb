"""Item states of a tier: computed once for the catalogue, stored small, gathered per request.

Stored as fp32, bf16 or int8 with a scale per row; leaves of fewer than eight numbers a row (biases
and shares of logits) stay fp32, because they add to the logit as they are. States of fp32 are never
copied: pairs index the memory-mapped catalogue itself.

Shapes: ``U`` rows of the catalogue, ``F`` candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from prerank.batch import Features, Rows
from prerank.jagged import Jagged
from prerank.models.base import Model

__all__ = ["ItemStates", "StateType", "compute_states", "flatten", "pack", "rebuild", "template"]

StateType = Literal["fp32", "bf16", "int8"]

_CHUNK = 8192
_NARROW = 8
_SCALE = ":scale"


def _walk(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Jagged):
        yield f"{path}.values", value.values
        yield f"{path}.offsets", value.offsets
    elif isinstance(value, Rows):
        for name, inner in value._fields().items():
            yield from _walk(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk(inner, f"{path}.{name}")
    elif isinstance(value, tuple):
        for k, inner in enumerate(value):
            yield from _walk(inner, f"{path}.{k}")


def flatten(rows: Rows) -> dict[str, Tensor]:
    """Return the tensors of a tree by dotted path; a jagged one gives ``values`` and ``offsets``.

    Examples
    --------
    >>> from prerank.models.two_tower import ItemState
    >>> sorted(flatten(ItemState(torch.zeros(2, 4), torch.zeros(2, 1))))
    ['bias', 'vector']
    """
    return dict(_walk(rows, ""))


def rebuild(shape: Rows, tensors: Mapping[str, Tensor]) -> Any:
    """Return a tree of the same shape with the tensors of :func:`flatten`.

    Parameters
    ----------
    shape : Rows
        A tree of the same class and structure, of whatever rows.
    tensors : mapping of path to Tensor
        One for each path.
    """
    return _build(shape, tensors, "")


def _build(value: Any, tensors: Mapping[str, Tensor], path: str) -> Any:
    if isinstance(value, Tensor):
        return tensors[path]
    if isinstance(value, Jagged):
        return Jagged(tensors[f"{path}.values"], tensors[f"{path}.offsets"])
    if isinstance(value, Rows):
        fields = value._fields().items()
        at = f"{path}." if path else ""
        return type(value)(**{name: _build(v, tensors, at + name) for name, v in fields})
    if isinstance(value, dict):
        return {name: _build(v, tensors, f"{path}.{name}") for name, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_build(v, tensors, f"{path}.{k}") for k, v in enumerate(value))
    return value


def template(model: Model, features: Features) -> Rows:
    """Return the item state of one row, for its shape."""
    with torch.inference_mode():
        return model.item_state(features.select(torch.zeros(1, dtype=torch.int64)))


def compute_states(model: Model, features: Features) -> Rows:
    """Return the item state of every row of a catalogue, computed in pieces."""
    with torch.inference_mode():
        rows = torch.arange(features.num_rows)
        pieces = torch.split(rows, _CHUNK)
        parts = [model.item_state(features.select(piece)) for piece in pieces]
        return type(parts[0]).cat(parts)


def pack(rows: Rows, kind: StateType) -> dict[str, Tensor]:
    """Return the tensors of a state as they are stored.

    Examples
    --------
    >>> from prerank.models.two_tower import ItemState
    >>> state = ItemState(torch.randn(3, 16), torch.zeros(3, 1))
    >>> {name: str(t.dtype)[6:] for name, t in sorted(pack(state, "int8").items())}
    {'bias': 'float32', 'vector': 'int8', 'vector:scale': 'float32'}
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in flatten(rows).items():
        small = not tensor.is_floating_point() or tensor.dim() < 2 or tensor[0].numel() < _NARROW
        if kind == "fp32" or small or name.endswith(".values"):
            packed[name] = tensor
        elif kind == "bf16":
            packed[name] = tensor.to(torch.bfloat16)
        else:
            # Per row: one popular item must not cost the others their precision.
            scale = tensor.flatten(1).abs().amax(dim=1).clamp(min=1e-30) / 127.0
            wide = tensor / scale.view(-1, *([1] * (tensor.dim() - 1)))
            packed[name] = wide.round().to(torch.int8)
            packed[name + _SCALE] = scale
    return packed


class ItemStates:
    """The item states of one tier.

    Parameters
    ----------
    shape : Rows
        From :func:`template`.
    base : mapping of str to Tensor
        Packed states of the bundle's own items, memory-mapped.
    added : mapping of str to Tensor, optional
        Packed states of rows that came later.

    Examples
    --------
    >>> from prerank.models.two_tower import ItemState
    >>> state = ItemState(torch.arange(48.0).view(3, 16), torch.zeros(3, 1))
    >>> states = ItemStates(state, pack(state, "int8"))
    >>> rows, item_of = states.gather(torch.tensor([2, 0]))
    >>> item_of, bool((rows.vector[1] - state.vector[0]).abs().max() < 0.1)
    (tensor([0, 1]), True)
    """

    def __init__(
        self,
        shape: Rows,
        base: Mapping[str, Tensor],
        added: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.shape = shape
        self.base = dict(base)
        self.added = dict(added) if added else None
        self._names = list(flatten(shape))
        self._jagged = any(name.endswith(".offsets") for name in self._names)
        kinds = {tensor.dtype for tensor in self.base.values() if tensor.is_floating_point()}
        is_packed = any(tensor.dtype == torch.int8 for tensor in self.base.values())
        # Shares of logits are fp32 among bf16 ones too: sums take either.
        self._dtype = torch.bfloat16 if torch.bfloat16 in kinds else torch.float32
        self._whole: Rows | None = None if is_packed else rebuild(shape, self.base)

    @property
    def num_base(self) -> int:
        """Rows of the bundle's own items."""
        return _num_rows(self.base, self._names)

    @property
    def nbytes(self) -> int:
        """Bytes of all states as stored."""
        parts = [self.base, self.added or {}]
        return sum(t.nbytes for part in parts for t in part.values())

    def gather(
        self,
        rows: Tensor,
        more: Rows | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Rows, Tensor]:
        """Return a state and the row in it of each candidate.

        Parameters
        ----------
        rows : Tensor ``[F]`` int64
            Rows: first those of the bundle, then those that came later, then those of ``more``.
        more : Rows, optional
            States of a request's own items.
        dtype : torch.dtype
            Of floating-point numbers in the result.

        Returns
        -------
        Rows, Tensor ``[F]`` int64
            Whole states and the rows themselves where nothing needs converting.
        """
        if self._whole is not None and self.added is None and more is None:
            if dtype == self._dtype:
                return self._whole, rows
            return self._whole.select(rows).to(dtype), torch.arange(rows.numel())
        if self._jagged:
            return self._join(more).to(dtype), rows
        extra = flatten(more) if more is not None else None
        tensors = {name: self._one(name, rows, extra, dtype) for name in self._names}
        return rebuild(self.shape, tensors), torch.arange(rows.numel())

    def _one(
        self, name: str, rows: Tensor, extra: Mapping[str, Tensor] | None, dtype: torch.dtype
    ) -> Tensor:
        num = self.base[name].shape[0]
        if self.added is None and extra is None:
            return _unpacked(self.base, name, rows, dtype)
        out = _unpacked(self.base, name, rows.clamp(max=num - 1), dtype)
        for part in (self.added, extra):
            if part is None:
                continue
            size = part[name].shape[0]
            mine = ((rows >= num) & (rows < num + size)).nonzero().squeeze(1)
            if mine.numel():
                out[mine] = _unpacked(part, name, rows[mine] - num, dtype)
            num += size
        return out

    def _join(self, more: Rows | None) -> Rows:
        """Return all states in one tree: for the rare model with jagged item states."""
        parts: list[Any] = [rebuild(self.shape, _plain(self.base, self._names))]
        if self.added is not None:
            parts.append(rebuild(self.shape, _plain(self.added, self._names)))
        parts += [more] if more is not None else []
        joined: Rows = type(parts[0]).cat(parts)
        return joined


def _num_rows(tensors: Mapping[str, Tensor], names: list[str]) -> int:
    first = tensors[names[0]]
    is_jagged = names[0].endswith(".values")
    return int(tensors[names[0][:-7] + ".offsets"].numel() - 1 if is_jagged else first.shape[0])


def _unpacked(tensors: Mapping[str, Tensor], name: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
    taken = tensors[name].index_select(0, rows)
    if taken.dtype == torch.int8:
        scale = tensors[name + _SCALE].index_select(0, rows)
        return (taken * scale.view(-1, *([1] * (taken.dim() - 1)))).to(dtype)
    return taken.to(dtype) if taken.is_floating_point() else taken


def _plain(tensors: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    found = {}
    for name in names:
        every = torch.arange(tensors[name].shape[0])
        is_stored = tensors[name].dtype in (torch.int8, torch.bfloat16)
        found[name] = _unpacked(tensors, name, every, torch.float32) if is_stored else tensors[name]
    return found
