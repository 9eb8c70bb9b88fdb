"""The synthetic funnel with known truth: a request log, and the utility behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prerank.config import from_values, to_values
from prerank.errors import InputError
from prerank.schema import Schema
from prerank.world.config import WorldConfig
from prerank.world.draws import Floats, Ints
from prerank.world.simulation import BLOCK, Block, Simulation, Truth
from prerank.world.tables import FIRST_ITEM, items_table, requests_table, world_schema

__all__ = ["World"]

_FILE = "world.json"
_GENERATOR = 1
"""Raised whenever the same configuration starts to give other data."""


class World:
    """A seeded synthetic funnel whose truth is known for every request and item.

    Parameters
    ----------
    config : WorldConfig
        All sizes, weights, noises and the seed.

    Examples
    --------
    >>> config = World.Config(num_users=30, num_items=600, num_requests=40, num_days=3)
    >>> world = config.build()
    >>> table = next(world.requests(chunk=40))
    >>> table.num_rows, len(table["candidates.item"][0]) <= 200
    (40, True)
    >>> utility = world.utility([0, 0], world.item_ids[:2])
    >>> utility.shape, utility.dtype
    ((2,), dtype('float64'))
    """

    Config = WorldConfig

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self._simulation = Simulation(config)
        self._truth: Truth | None = None

    @classmethod
    def open(cls, log: str | Path) -> World:
        """Return the world that made a log, from the ``world.json`` in its folder.

        The first question about the truth runs the simulation again.

        Raises
        ------
        InputError
            The log does not come from a world, or from a generator that drew other numbers.
        """
        path = Path(log) / _FILE
        try:
            values = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except FileNotFoundError:
            raise InputError(f"{path}: not found; expected a log of a synthetic world") from None
        except msgspec.MsgspecError as error:
            raise InputError(
                f"{path}: not readable as JSON ({error}); write the log again"
            ) from None
        if values.get("generator") != _GENERATOR:
            raise InputError(
                f"{path}: made by generator {values.get('generator')}, expected {_GENERATOR}; "
                "write the log again"
            )
        return cls(from_values(WorldConfig, values.get("config", {}), where=str(path)))

    @property
    def record(self) -> dict[str, Any]:
        """The content of ``world.json``: what :meth:`open` needs."""
        return {"generator": _GENERATOR, "config": to_values(self.config)}

    @property
    def schema(self) -> Schema:
        """The schema of the log, vocabularies empty."""
        return world_schema(self.config)

    @property
    def item_ids(self) -> Ints:
        """Raw ids of all items ``[num_items]``, in the order of :meth:`items`."""
        return FIRST_ITEM + np.arange(self.config.num_items)

    @property
    def offset(self) -> float:
        """Utility at which a click has probability one half (without click noise)."""
        return self._simulation.offset

    def items(self) -> pa.Table:
        """Return the raw items, one row per item."""
        return items_table(self._simulation.items)

    def splits(self) -> dict[str, Ints]:
        """Return the request rows of train (all but two days), valid and test (the last day)."""
        last = self.config.num_days
        bounds = {"train": (0, last - 2), "valid": (last - 2, last - 1), "test": (last - 1, last)}
        return {name: self._simulation.schedule.rows_of(*days) for name, days in bounds.items()}

    def requests(self, chunk: int = 1024) -> Iterator[pa.Table]:
        """Yield the raw requests in time order, ``chunk`` rows a table (the last has the rest).

        The rows do not depend on ``chunk``; memory is bounded by it and by one entry per click.

        Raises
        ------
        InputError
            ``chunk`` below 1.
        """
        if chunk < 1:
            raise InputError(f"world: chunk is {chunk}, expected at least 1")
        waiting: list[pa.Table] = []
        num_waiting = 0
        for block in self._blocks():
            waiting.append(self._table(block))
            num_waiting += block.rows.size
            if num_waiting >= chunk:
                whole = pa.concat_tables(waiting)
                full = num_waiting // chunk * chunk
                for start in range(0, full, chunk):
                    yield whole.slice(start, chunk).combine_chunks()
                num_waiting -= full
                waiting = [whole.slice(full)] if num_waiting else []
        if waiting:
            yield pa.concat_tables(waiting).combine_chunks()

    def utility(self, requests: npt.ArrayLike, items: npt.ArrayLike) -> Floats:
        """Return the true utility of items in requests, exposed or not.

        Parameters
        ----------
        requests : array of int64
            Request ids, which are the rows of the log.
        items : array of int64
            Raw item ids; broadcasts with ``requests``.

        Returns
        -------
        ndarray of float64
            The broadcast shape.

        Raises
        ------
        InputError
            An id that this world does not have.
        """
        parts = list(self.parts(requests, items).values())
        total: Floats = np.sum(parts, axis=0)
        return total

    def click_probability(self, requests: npt.ArrayLike, items: npt.ArrayLike) -> Floats:
        """Return the probability of a click if the item were shown; see :meth:`utility`."""
        return self._simulation.funnel.click_probability(self.utility(requests, items), self.offset)

    def parts(self, requests: npt.ArrayLike, items: npt.ArrayLike) -> dict[str, Floats]:
        """Return the named parts of the utility, which add up to it; see :meth:`utility`."""
        row, item = np.broadcast_arrays(
            _known(requests, "request", 0, self.config.num_requests),
            _known(items, "item", FIRST_ITEM, self.config.num_items),
        )
        simulation, truth = self._simulation, self._known_truth()
        order = np.argsort(row, axis=None, kind="stable")
        flat_row, flat_item = row.ravel()[order], item.ravel()[order]
        unique, request = np.unique(flat_row, return_inverse=True)
        out: dict[str, Floats] = {}
        for start in range(0, max(unique.size, 1), BLOCK):
            rows = unique[start : start + BLOCK]
            low, high = np.searchsorted(request, [start, start + BLOCK])
            moment = simulation.state(truth.clicks, truth.head[rows], rows).moment
            parts = simulation.utility.parts(moment, request[low:high] - start, flat_item[low:high])
            for name, values in parts.items():
                whole = out.setdefault(name, np.empty(flat_item.size))
                whole[order[low:high]] = values
        return {name: values.reshape(row.shape) for name, values in out.items()}

    def _known_truth(self) -> Truth:
        if self._truth is None:
            for _ in self._blocks():
                pass
        assert self._truth is not None
        return self._truth

    def _blocks(self) -> Iterator[Block]:
        truth = self._simulation.start()
        yield from self._simulation.run(truth)
        self._truth = truth

    def _table(self, block: Block) -> pa.Table:
        simulation, state = self._simulation, block.state
        kept = slice(state.clicked.shape[1] - self.config.max_history, None)
        return requests_table(
            self.config,
            simulation.users,
            simulation.schedule,
            block.rows,
            history=(state.clicked[:, kept], state.times[:, kept]),
            outcome=block.outcome,
        )


def _known(ids: npt.ArrayLike, kind: str, first: int, num: int) -> Ints:
    array = np.asarray(ids)
    if array.size and not (
        np.issubdtype(array.dtype, np.integer)
        and first <= array.min()
        and array.max() < first + num
    ):
        shown = ", ".join(str(value) for value in array.ravel()[:3])
        raise InputError(
            f"world: unknown {kind} id among [{shown}{', ...' if array.size > 3 else ''}]; "
            f"expected integers from {first} to {first + num - 1}"
        )
    return array.astype(np.int64) - first
