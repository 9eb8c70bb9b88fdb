"""What a model is: three methods, so that each cost is paid once per what it belongs to.

Shapes: ``R`` requests, ``U`` unique items, ``I`` candidates, ``T`` tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import nn

from prerank.batch import Features, Inputs, Pairs, Rows, Scores
from prerank.schema import Schema

if TYPE_CHECKING:
    from prerank.log import Transforms

__all__ = ["Model", "OverTrunk"]


class Model(nn.Module, ABC):
    """Base of all models: ``request_state``, ``item_state``, ``score``.

    States are frozen trees of tensors (:class:`prerank.batch.Rows`), so that caching them,
    computing them ahead, micro-batching and export work for every model. A subclass narrows the
    types of its states and passes the conformance suite (``tests/models``).

    Attributes
    ----------
    scope : {"candidate", "set"}
        ``candidate``: a logit depends on the request and its own candidate only. ``set``: on the
        other candidates of the request too, in whatever order.
    schema : Schema
        What the model was built for.
    transforms : Transforms or None
        How raw values become its inputs; None until training or loading a run sets it.
    """

    scope: ClassVar[Literal["candidate", "set"]] = "candidate"
    schema: Schema
    transforms: Transforms | None

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema
        self.transforms = None

    @property
    def num_tasks(self) -> int:
        """Number of outputs ``T``, in the order of ``schema.task_names``."""
        return len(self.schema.task_names)

    @abstractmethod
    def request_state(self, inputs: Inputs) -> Rows:
        """Compute what is known of each request before any candidate, ``R`` rows.

        Reads ``inputs.user``, ``inputs.history`` and the items of the history only; neither the
        context nor a candidate, because the state is cached across both.
        """

    @abstractmethod
    def item_state(self, items: Features) -> Rows:
        """Compute what is known of each item alone, ``U`` rows."""

    @abstractmethod
    def score(self, request_state: Any, item_state: Any, pairs: Pairs) -> Scores:
        """Cross requests with items: the only part that is paid per candidate.

        Parameters
        ----------
        request_state, item_state : Rows
            From the two other methods; rows may have been cached, selected or concatenated.
        pairs : Pairs, ``I`` candidates
            Which request and item row belong to each candidate, candidate features, and the
            context of each request.

        Returns
        -------
        Scores
            ``logits [I, T]``.
        """

    def forward(self, inputs: Inputs) -> Scores:
        """Score all candidates of a batch; equal to the three methods composed."""
        states = self.request_state(inputs), self.item_state(inputs.items)
        return self.score(*states, inputs.pairs)


@runtime_checkable
class OverTrunk(Protocol):
    """A model that is built over another one, its trunk, and can start from that one's states.

    Optional: a cascade whose earlier tier is the trunk passes on what that tier has computed
    instead of computing it again. Logits are the same either way.
    """

    def is_over(self, other: Model) -> bool:
        """Say whether the states of another model are those of this model's trunk.

        True for the trunk itself and for any copy with the same configuration and weights; compare
        once, not for each batch. Inputs must come from the same transforms.
        """

    def request_state_from(self, trunk_state: Any, inputs: Inputs) -> Rows:
        """Return this model's request state, given the trunk's for the same requests."""

    def item_state_from(self, trunk_state: Any, items: Features) -> Rows:
        """Return this model's item state, given the trunk's for the same items."""
