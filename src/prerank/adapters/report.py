"""What an import reports."""

from __future__ import annotations

import msgspec

from prerank.config import Config

__all__ = ["ImportReport"]


class ImportReport(Config, frozen=True):
    """Sizes of an imported log and what was left out or repaired on the way.

    Parameters
    ----------
    num_requests, num_candidates, num_users, num_items : int
        Sizes of the log; items include those without a row in the item file.
    parts : dict of str to int
        Requests per part.
    counts : dict of str to int
        Named numbers of the layout: rows read, rows merged, items without a row, ...
    notes : tuple of str
        What a reader of results must know; the log's lineage holds the same lines.
    """

    num_requests: int
    num_candidates: int
    num_users: int
    num_items: int
    parts: dict[str, int]
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()
