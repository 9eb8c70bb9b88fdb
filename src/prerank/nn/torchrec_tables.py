"""Tables whose lookups and updates are TorchRec's: optional, for those who train with its kernels.

TorchRec's ``FusedEmbeddingBagCollection`` updates rows inside the backward pass, by row-wise
Adagrad. Here one of its tables holds the rows of all vocabularies, so the interface, the weights
and their name in a file stay those of :class:`~prerank.nn.tables.FusedTables`. Nothing of TorchRec
is imported before it is asked for; its CPU kernels are built for one version of torch each.

Shapes: ``V`` rows of all vocabularies, ``N`` rows looked up, ``C`` columns of ids, ``D`` width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prerank.errors import InputError
from prerank.jagged import Jagged
from prerank.nn.tables import FusedTables

__all__ = ["TorchRecTables", "require_torchrec", "use_plain_tables", "use_torchrec_tables"]

_TABLE, _KEY = "tables", "rows"


class TorchRecTables(FusedTables):
    """Fused tables over one table of TorchRec; the parameter ``weight`` is TorchRec's storage.

    Each lookup's backward pass updates the rows it read, and ``weight.grad`` stays None. The
    gradients of a row are summed within a lookup, but not over several lookups of one update: there
    a row met in both is updated twice, where :class:`FusedTables` would add the gradients first.
    Without gradients (evaluation, ``no_grad``) lookups are those of :class:`FusedTables`.

    Parameters
    ----------
    tables : FusedTables
        Taken over: its weights move into TorchRec's storage, its parameter stays the same object.
    lr, eps : float
        Of row-wise Adagrad, the rule of
        :class:`~prerank.training.optim.adagrad.RowWiseAdagrad`.

    Raises
    ------
    InputError
        TorchRec cannot be imported; weights that are not float32 on CPU.
    """

    before_lookup: Callable[[TorchRecTables], None] | None = None
    """Called before each lookup with gradients: the moment to set the rate."""

    def __init__(self, tables: FusedTables, *, lr: float, eps: float = 1e-8) -> None:
        nn.Module.__init__(self)
        if tables.weight.dtype is not torch.float32 or tables.weight.device.type != "cpu":
            raise InputError(
                f"TorchRec tables: weights are {tables.weight.dtype} on {tables.weight.device}; "
                "expected float32 on CPU (tables.storage=fp32, device=cpu)"
            )
        self.config, self.vocabularies = tables.config, tables.vocabularies
        self._index = tables._index
        for name in ("sizes", "starts"):
            self.register_buffer(name, getattr(tables, name), persistent=False)
        # In a tuple: as a submodule it would bring a second name for the weights.
        self._collection = (_collection(*tables.weight.shape, lr=lr, eps=eps),)
        stored = self._collection[0].embedding_bags[_TABLE].weight.data
        stored.copy_(tables.weight.data)
        self.weight = tables.weight
        self.weight.data = stored
        self._lr = lr
        state = self._collection[0].fused_optimizer().state_dict()["state"]
        (sums,) = (value for values in state.values() for value in values.values())
        self._sums: Tensor = sums.view(-1)

    @property
    def sums(self) -> Tensor:
        """Accumulators of row-wise Adagrad, ``[V]`` float32: TorchRec's own."""
        return self._sums

    def set_rate(self, lr: float) -> None:
        """Set the learning rate of the updates to come."""
        if lr != self._lr:
            optimiser = self._collection[0].fused_optimizer()
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.zero_grad()  # this is how TorchRec takes a new rate
            self._lr = lr

    def forward(self, ids: Tensor, columns: Tensor) -> Tensor:
        """Look up ids, ``[N, C]`` to ``[N, C, D]``; see :meth:`FusedTables.forward`."""
        if not self._updates(ids):
            return super().forward(ids, columns)
        assert self._in_range(ids, columns), "id outside its vocabulary"
        rows = (ids + self.starts[columns]).reshape(-1)
        ones = torch.ones(rows.numel(), dtype=torch.int32)
        return self._summed(rows, ones).view(*ids.shape, self.dim)

    def pooled(self, ids: Jagged, column: Tensor) -> Tensor:
        """Return mean embeddings, ``[N, D]``; see :meth:`FusedTables.pooled`."""
        if not self._updates(ids.values):
            return super().pooled(ids, column)
        assert self._in_range(ids.values.unsqueeze(1), column), "id outside its vocabulary"
        lengths_N = ids.lengths
        sums_ND = self._summed(ids.values + self.starts[column], lengths_N.int())
        return sums_ND / lengths_N.clamp(min=1).unsqueeze(1)

    def _updates(self, ids: Tensor) -> bool:
        return torch.is_grad_enabled() and self.weight.requires_grad and ids.numel() > 0

    def _summed(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Return the sum of each bag's rows, ``[N, D]``."""
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        if self.before_lookup is not None:
            self.before_lookup(self)
        features = KeyedJaggedTensor(keys=[_KEY], values=rows, lengths=lengths)
        summed: Tensor = self._collection[0](features).values()
        return summed


def use_torchrec_tables(model: nn.Module, *, lr: float) -> list[TorchRecTables]:
    """Replace the tables of a model, in place; return the new ones.

    Parameters
    ----------
    model : nn.Module
        Its parameters stay the same objects.
    lr : float
        Learning rate of the tables.

    Raises
    ------
    InputError
        See :class:`TorchRecTables`.
    """
    made: dict[int, FusedTables] = {}
    for module in model.modules():
        if type(module) is FusedTables and id(module) not in made:
            made[id(module)] = TorchRecTables(module, lr=lr)
    _replace(model, made)
    return [tables for tables in made.values() if isinstance(tables, TorchRecTables)]


def use_plain_tables(model: nn.Module) -> None:
    """Put :class:`FusedTables` back in the place of TorchRec's, with the weights as they are."""
    made: dict[int, FusedTables] = {}
    for module in list(model.modules()):
        if isinstance(module, TorchRecTables):
            plain = FusedTables(dict.fromkeys(module.vocabularies, 0), module.config)
            plain.sizes, plain.starts = module.sizes, module.starts
            plain.weight = module.weight
            plain.train(module.training)
            # Memory that outlives TorchRec's.
            plain.weight.data = module.weight.data.clone()
            made[id(module)] = plain
    _replace(model, made)


def _replace(model: nn.Module, made: dict[int, FusedTables]) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if id(child) in made:
                made[id(child)].train(child.training)
                setattr(module, name, made[id(child)])


def require_torchrec() -> None:
    """Import what is needed of TorchRec.

    Raises
    ------
    InputError
        It is not installed, or its kernels were built for another torch.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its imports warn of what they do not need
            import torchrec.modules.fused_embedding_modules  # noqa: F401
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"TorchRec tables: TorchRec cannot be imported ({reason}); expected torch 2.13 with "
            "'pip install prerank[torchrec]' and 'pip install --no-deps torchrec==1.8.0'"
        ) from None


def _collection(num_rows: int, dim: int, *, lr: float, eps: float) -> Any:
    """Return TorchRec's collection of one table."""
    require_torchrec()
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim import RowWiseAdagrad

    config = EmbeddingBagConfig(
        name=_TABLE, embedding_dim=dim, num_embeddings=num_rows, feature_names=[_KEY]
    )
    return FusedEmbeddingBagCollection([config], RowWiseAdagrad, {"lr": lr, "eps": eps})
