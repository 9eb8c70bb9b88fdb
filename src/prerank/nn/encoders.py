"""All encoders of a model: one table, one encoder per owner, pooled histories.

Shapes: ``R`` requests, ``U`` unique items, ``I`` candidates, ``E`` encoded width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prerank.batch import Features, Inputs
from prerank.config import Config as BaseConfig
from prerank.nn.features import FeatureEncoder, used_features
from prerank.nn.history import Histories, HistoryPooling
from prerank.nn.tables import FusedTables
from prerank.schema import Schema

__all__ = ["Encoders"]


class Encoders(nn.Module):
    """Turns the inputs of a batch into one row of numbers per request, item and candidate.

    Every model starts here, so that history and item side share their embeddings and no model
    wires its features by hand.

    Parameters
    ----------
    schema : Schema
        Features and streams.
    config : Encoders.Config
        Sizes.

    Examples
    --------
    >>> from prerank.schema import Feature, Label
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> schema = Schema(features=(item,), labels=(Label(name="click"),), vocabularies={"item": 9})
    >>> encoders = Encoders(schema, Encoders.Config())
    >>> encoders.item_width, encoders.user_width
    (16, 0)
    """

    class Config(BaseConfig, frozen=True):
        """What to read and how wide; models extend it with their own sizes.

        Parameters
        ----------
        tables : FusedTables.Config
            Embeddings, shared by history and item side.
        history : HistoryPooling.Config
            How the events of a stream become one vector.
        exclude : tuple of str
            Features not to read, as ``name`` or ``owner.name``.
        """

        tables: FusedTables.Config = FusedTables.Config()
        history: HistoryPooling.Config = HistoryPooling.Config()
        exclude: tuple[str, ...] = ()

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__()
        features = used_features(schema, exclude=config.exclude)
        self.tables = config.tables.build_for(schema, features)
        self._user = FeatureEncoder(schema, "user", self.tables, features=features)
        self._item = FeatureEncoder(schema, "item", self.tables, features=features)
        self._context = FeatureEncoder(schema, "context", self.tables, features=features)
        self._candidate = FeatureEncoder(schema, "candidate", self.tables, features=features)
        self.histories = Histories(
            schema, self._item.width, self.tables, config.history, features=features
        )

    @property
    def user_width(self) -> int:
        """Width of :meth:`user`."""
        return self._user.width + self.histories.width

    @property
    def history_width(self) -> int:
        """Width of the pooled histories: the last columns of :meth:`user`."""
        return self.histories.width

    @property
    def item_width(self) -> int:
        """Width of :meth:`item`."""
        return self._item.width

    @property
    def context_width(self) -> int:
        """Width of :meth:`context`."""
        return self._context.width

    @property
    def candidate_width(self) -> int:
        """Width of :meth:`candidate`."""
        return self._candidate.width

    def item(self, items: Features) -> Tensor:
        """Encode items: ``[U, E]``."""
        encoded: Tensor = self._item(items, self.tables)
        return encoded

    def user(self, inputs: Inputs, items_UE: Tensor) -> Tensor:
        """Encode user features and pooled histories: ``[R, E]``; items encoded already."""
        histories = self.histories(inputs.history, items_UE, self.tables)
        return torch.cat([self._user(inputs.user, self.tables), *histories], dim=1)

    def context(self, context: Features) -> Tensor:
        """Encode context features: ``[R, E]``."""
        encoded: Tensor = self._context(context, self.tables)
        return encoded

    def candidate(self, candidate: Features) -> Tensor:
        """Encode candidate features: ``[I, E]``."""
        encoded: Tensor = self._candidate(candidate, self.tables)
        return encoded
