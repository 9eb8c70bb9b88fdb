"""Data-parallel training: what several processes must tell each other, and nothing else.

Each process takes its share of every batch, possibly nothing of it, and all make the same update:
the one that a single process would make on the whole batch. Losses are divided by the weight of
the whole batch (see :class:`~prerank.objectives.base.Objective`), dense gradients are summed by
``all_reduce``, and of a table's sparse gradient every process sends the rows it has touched.
torch's ``DistributedDataParallel`` is not used: it expects a gradient of every parameter in every
process (an empty share, or a part that not all batches have, gives none), exchanges sparse
gradients before their repeated rows are summed, and knows nothing of rules that fill ``.grad``
themselves. An explicit exchange after the backward pass is shorter than the ways around that.

A combine rule that compares the gradients of parts sees those of its own process.

A process group must be there (:func:`launched` makes one under ``torchrun``); without one all
functions are those of a single process. On CUDA the group needs ``cpu:gloo,cuda:nccl``.

A process that fails or is killed closes its connections, and the others stop with an error at
their next exchange; one that merely hangs stops them when the group's timeout is over.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prerank.errors import PrerankError
from prerank.training.optim.gradients import sparse_rows, sum_rows

__all__ = [
    "any_of",
    "average",
    "average_gradients",
    "from_first",
    "gather",
    "global_normaliser",
    "launched",
    "rank",
    "same_tensors",
    "size",
    "tensors_from_first",
]

T = TypeVar("T")

# Of processes that hang, not of failed ones; process 0 alone may read a large log for a while.
_TIMEOUT = datetime.timedelta(hours=1)
_ABSENT, _DENSE, _SPARSE = 0, 1, 2  # of a gradient; a sparse one adds its number of rows


def size() -> int:
    """Return the number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, 0 without a process group; process 0 does the writing."""
    return dist.get_rank() if size() > 1 else 0


@contextlib.contextmanager
def launched(device: str = "cpu") -> Iterator[str]:
    """Join the processes that ``torchrun`` has started; yields the device of this one.

    Started otherwise, it does nothing.

    Parameters
    ----------
    device : str
        ``cuda`` becomes the GPU of this process.

    Examples
    --------
    >>> with launched() as device:
    ...     device, rank(), size()
    ('cpu', 0, 1)
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or dist.is_initialized():
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    with _talking():
        dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise PrerankError(
            f"data-parallel: another process has failed or does not answer ({reason}); see its "
            "error, then start all again to go on from the last checkpoint"
        ) from error


def from_first(make: Callable[[], T]) -> T:
    """Call a function in process 0 only and return what it returned in all.

    Raises
    ------
    PrerankError
        In the other processes, if it failed in process 0.
    """
    if size() == 1:
        return make()
    outcome: list[Any] = [None, ""]
    failure: BaseException | None = None
    if rank() == 0:
        try:
            outcome[0] = make()
        except BaseException as error:
            failure = error
            outcome[1] = f"{type(error).__name__}: {error}"
    with _talking():
        dist.broadcast_object_list(outcome, src=0)
    if failure is not None:
        raise failure
    if outcome[1]:
        raise PrerankError(f"data-parallel: process 0 failed ({outcome[1]})")
    value: T = outcome[0]
    return value


def gather(value: T) -> list[T]:
    """Return the values of all processes, in their order; outside process 0 an empty list."""
    if size() == 1:
        return [value]
    values: list[Any] | None = [None] * size() if rank() == 0 else None
    with _talking():
        dist.gather_object(value, values)
    return values or []


def same_tensors(tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors, of equal shapes in all processes, with those of process 0."""
    if size() == 1:
        return
    with _talking(), torch.no_grad():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def tensors_from_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the named CPU tensors of process 0 in all; elsewhere the argument is not used."""
    if size() == 1:
        return tensors
    shapes = from_first(lambda: {name: (t.shape, t.dtype) for name, t in tensors.items()})
    if rank() > 0:
        tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    same_tensors(list(tensors.values()))
    return tensors


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    if size() == 1:
        return flag
    flags = torch.tensor([int(flag)])
    with _talking():
        dist.all_reduce(flags)
    return bool(flags.item())


def average(values: Tensor) -> Tensor:
    """Return the mean of equally shaped tensors over processes."""
    if size() == 1:
        return values
    total = values.detach().clone()
    with _talking():
        dist.all_reduce(total)
    return total / size()


@contextlib.contextmanager
def global_normaliser(objective: object) -> Iterator[None]:
    """Let an objective divide by the weight of the whole batch over the number of processes.

    Averaging gradients then gives the gradient of the mean over the whole batch. An objective
    without a ``normaliser`` is left alone: the mean of its losses counts.
    """
    own = getattr(objective, "normaliser", None)
    if size() == 1 or own is None:
        yield
        return
    objective.normaliser = average  # type: ignore[attr-defined]
    try:
        yield
    finally:
        objective.normaliser = own  # type: ignore[attr-defined]


def average_gradients(parameters: Sequence[nn.Parameter], num_candidates: int) -> int:
    """Replace gradients by their means over processes; return the candidates of all.

    A parameter without a gradient anywhere keeps None; without one here only, it gets that of the
    others. The gradient of a table becomes sparse rows in the order of the processes, so that all
    sum them alike.

    Parameters
    ----------
    parameters : sequence of Parameter
        The same in every process.
    num_candidates : int
        Of this process's share of the batch.
    """
    if size() == 1:
        return num_candidates
    sums = {
        k: sum_rows(p.grad)
        for k, p in enumerate(parameters)
        if p.grad is not None and p.grad.is_sparse
    }
    header = [num_candidates]
    for k, parameter in enumerate(parameters):
        dense = _ABSENT if parameter.grad is None else _DENSE
        header.append(_SPARSE + len(sums[k][0]) if k in sums else dense)
    own = torch.tensor(header)
    headers = [torch.empty_like(own) for _ in range(size())]
    with _talking():
        dist.all_gather(headers, own)
        kinds = torch.stack(headers)[:, 1:].T.tolist()
        dense_parameters: dict[torch.dtype, list[nn.Parameter]] = {}
        for k, (parameter, kind) in enumerate(zip(parameters, kinds, strict=True)):
            if max(kind) >= _SPARSE:
                assert _DENSE not in kind, "a gradient is sparse in one process, dense in another"
                lengths = [max(0, n - _SPARSE) for n in kind]
                parameter.grad = _gather_rows(parameter, sums.get(k), lengths)
            elif max(kind) == _DENSE:
                dense_parameters.setdefault(parameter.dtype, []).append(parameter)
        for group in dense_parameters.values():
            _average_dense(group)
    return int(torch.stack(headers)[:, 0].sum())


def _average_dense(parameters: Sequence[nn.Parameter]) -> None:
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= size()
    means = torch.split(flat, [grad.numel() for grad in grads])
    for parameter, mean in zip(parameters, means, strict=True):
        parameter.grad = mean.view_as(parameter)


def _gather_rows(
    parameter: nn.Parameter, own: tuple[Tensor, Tensor] | None, lengths: list[int]
) -> Tensor:
    """Put the summed rows of all processes one after another; each sends the longest length."""
    wide = torch.float32 if parameter.dtype is torch.bfloat16 else parameter.dtype
    padded_rows = torch.zeros(max(lengths), dtype=torch.int64, device=parameter.device)
    shape = (max(lengths), *parameter.shape[1:])
    padded_values = torch.zeros(shape, dtype=wide, device=parameter.device)
    if own is not None:
        num = len(own[0])
        padded_rows[:num], padded_values[:num] = own
    if not max(lengths):
        return sparse_rows(padded_rows, padded_values, parameter, coalesced=True)
    rows = [torch.empty_like(padded_rows) for _ in lengths]
    values = [torch.empty_like(padded_values) for _ in lengths]
    dist.all_gather(rows, padded_rows)
    dist.all_gather(values, padded_values)
    return sparse_rows(
        torch.cat([r[:n] for r, n in zip(rows, lengths, strict=True)]),
        torch.cat([v[:n] for v, n in zip(values, lengths, strict=True)]) / size(),
        parameter,
        coalesced=False,
    )
