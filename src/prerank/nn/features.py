"""From the features of one owner to one vector per row.

Shapes: ``N`` rows (requests, items, candidates or events), ``C`` categorical columns, ``F`` dense
values, ``E`` encoded width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from prerank.batch import Features, History
from prerank.errors import InputError, did_you_mean
from prerank.nn.tables import FusedTables
from prerank.schema import Feature, Kind, Owner, Schema

__all__ = ["FeatureEncoder", "used_features"]


def used_features(
    schema: Schema, *, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> tuple[Feature, ...]:
    """Return the features a model reads.

    Parameters
    ----------
    include, exclude : sequence of str
        Feature names, or ``owner.name`` where owners share a name. ``include=None`` means all.

    Raises
    ------
    InputError
        A name that the schema does not have.

    Examples
    --------
    >>> from prerank.schema import Label
    >>> schema = Schema(
    ...     features=(
    ...         Feature(name="item", owner="item", kind="categorical"),
    ...         Feature(name="ctr", owner="item", kind="dense"),
    ...     ),
    ...     labels=(Label(name="click"),),
    ... )
    >>> [f.name for f in used_features(schema, exclude=["item.ctr"])]
    ['item']
    """
    names = {name for f in schema.features for name in (f.name, f"{f.owner}.{f.name}")}
    for name in (*(include or ()), *exclude):
        if name not in names:
            raise InputError(
                f"model features: no feature '{name}' in the schema; {did_you_mean(name, names)}"
            )

    def named(f: Feature, by: Sequence[str]) -> bool:
        return f.name in by or f"{f.owner}.{f.name}" in by

    return tuple(
        f
        for f in schema.features
        if (include is None or named(f, include)) and not named(f, exclude)
    )


class FeatureEncoder(nn.Module):
    """Turn the features of one owner into ``[N, width]``; it has no weights of its own.

    Embeddings of the categorical features side by side, mean embeddings of the multi-valued ones,
    dense values with their missing indicators, vectors as they are. The tables are passed to each
    call, because several encoders share them.

    Parameters
    ----------
    schema : Schema
        Gives the order of the columns.
    owner : str
        Whose features.
    tables : FusedTables
        The tables that calls will pass.
    stream : str
        For owner ``history``, the stream.
    features : sequence of Feature, optional
        Those to read (see :func:`used_features`); default all.

    Examples
    --------
    >>> from prerank.schema import Label
    >>> schema = Schema(
    ...     features=(
    ...         Feature(name="item", owner="item", kind="categorical"),
    ...         Feature(name="price", owner="item", kind="dense"),
    ...     ),
    ...     labels=(Label(name="click"),),
    ...     vocabularies={"item": 10},
    ... )
    >>> tables = FusedTables.Config(dim=4).build_for(schema, schema.features)
    >>> encoder = FeatureEncoder(schema, "item", tables)
    >>> ids = torch.tensor([[9], [0], [3]])
    >>> encoder(Features(ids, (), torch.zeros(3, 2), ()), tables).shape, encoder.width
    (torch.Size([3, 6]), 6)
    """

    _columns: Tensor
    _multi_columns: Tensor
    _categorical: Tensor
    _dense: Tensor

    def __init__(
        self,
        schema: Schema,
        owner: Owner,
        tables: FusedTables,
        *,
        stream: str = "",
        features: Sequence[Feature] | None = None,
    ) -> None:
        super().__init__()
        wanted = set(schema.features if features is None else features)
        all_of = {kind: schema.of(owner, kind, stream) for kind in get_args(Kind)}
        kept = {kind: [k for k, f in enumerate(all_of[kind]) if f in wanted] for kind in all_of}
        used = {kind: [all_of[kind][k] for k in kept[kind]] for kind in kept}
        num_dense = len(all_of["dense"])
        dense = [*kept["dense"], *(num_dense + k for k in kept["dense"])]

        def buffer(name: str, value: Tensor) -> None:
            self.register_buffer(name, value, persistent=False)

        buffer("_columns", tables.columns(f.vocab for f in used["categorical"]))
        buffer("_multi_columns", tables.columns(f.vocab for f in used["multi"]))
        buffer("_categorical", torch.tensor(kept["categorical"], dtype=torch.int64))
        buffer("_dense", torch.tensor(dense, dtype=torch.int64))
        self._multi, self._vectors = kept["multi"], kept["vector"]
        # Picking all columns would copy the block for nothing.
        self._all_categorical = len(kept["categorical"]) == len(all_of["categorical"])
        self._all_dense = len(kept["dense"]) == num_dense
        self.width = (
            tables.dim * (len(used["categorical"]) + len(used["multi"]))
            + len(dense)
            + sum(f.dim for f in used["vector"])
        )

    def forward(self, features: Features, tables: FusedTables) -> Tensor:
        """Encode ``N`` rows.

        Parameters
        ----------
        features : Features, ``N`` rows
            The block of this owner.
        tables : FusedTables
            The tables the encoder was made for.

        Returns
        -------
        Tensor ``[N, width]``
        """
        parts: list[Tensor] = []
        if self._columns.numel():
            ids_NC = features.categorical
            if not self._all_categorical:
                ids_NC = ids_NC.index_select(1, self._categorical)
            parts.append(tables(ids_NC, self._columns).flatten(1))
        for position, k in enumerate(self._multi):
            column = self._multi_columns[position : position + 1]
            parts.append(tables.pooled(features.multi[k], column))
        if self._dense.numel():
            dense_NF = features.dense
            parts.append(dense_NF if self._all_dense else dense_NF.index_select(1, self._dense))
        parts.extend(features.vectors[k] for k in self._vectors)
        if not parts:
            return tables.weight.new_zeros((features.categorical.shape[0], 0))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def events(self, history: History, tables: FusedTables) -> Tensor:
        """Encode the events of a stream, ``[L, width]``."""
        values = Features(history.categorical.values, (), history.dense.values, ())
        encoded: Tensor = self(values, tables)
        return encoded

    def extra_repr(self) -> str:
        """Describe the encoder in ``repr(model)``."""
        return f"width={self.width}"
