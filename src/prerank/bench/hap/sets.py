"""The data of the HAP study: which requests, which sampler, how long a training is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prerank.config import Config
from prerank.log import Log, Part, RowRanges, open_log

__all__ = ["SETS", "StudySet", "thinned"]

_TABLE_RATE = 200.0
"""Row-wise Adagrad wants a far larger rate than Adam; neither minds the scale of the loss."""


class StudySet(Config, frozen=True):
    """A data set of the study.

    Parameters
    ----------
    name : str
        As in the tables.
    what : str
        One line: where it is from, and that it is simulated or fitted.
    epochs, batch_size : int
        Passes over the training part and requests per update.
    num_valid, num_test : int
        Requests that are scored, spread evenly over their parts.
    max_seeds : int
        At most so many seeds of any line.
    exclude : tuple of str
        Features that no model reads.
    lines : tuple of str
        The lines it has; empty: all that do not name other sets.
    rates_of : str, optional
        Set whose learning rates it takes; None: tuned itself.
    """

    name: str
    what: str
    epochs: int = 1
    batch_size: int = 64
    num_valid: int = 700
    num_test: int = 1500
    max_seeds: int = 5
    exclude: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    rates_of: str | None = None

    def parts(self, log: Log) -> dict[str, Part]:
        """Return ``train`` whole, ``valid`` and ``test`` thinned."""
        return {
            "train": log["train"],
            "valid": thinned(log["valid"], self.num_valid),
            "test": thinned(log["test"], self.num_test),
        }

    def open(self, folder: Path) -> dict[str, Part]:
        """Open the log and return its parts."""
        return self.parts(open_log(folder))

    def fit_values(
        self, lr: float, seed: int, diagnose_every: int | None, table_rate: float | None = None
    ) -> dict[str, Any]:
        """Return values of ``FitConfig``: one rate decides about dense part and tables."""
        diagnosis = {} if diagnose_every is None else {"diagnose_every": diagnose_every}
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": lr,
            "table_lr": (_TABLE_RATE if table_rate is None else table_rate) * lr,
            "optimizer": "adam",
            "table_optimizer": "rowwise_adagrad",
            "schedule": "linear",
            "seed": seed,
            "max_history": 50,
            "checkpoint_every": 100,
            **diagnosis,
        }


SETS = {
    s.name: s
    for s in (
        StudySet(name="world", what="simulated funnel, 600 > 150 > 50 > 10"),
        StudySet(
            name="ml1m", what="fitted funnel on MovieLens-1M, 400 > 100 > 30", epochs=2, max_seeds=3
        ),
        # Nearly all shown news is new, and hardly anything that the funnel retrieved is: whether
        # an id is known would tell positives from both, and so would how often it was shown lately.
        # Click rates before the request (`prerank data stats`) are what a model can know of news.
        StudySet(
            name="mind",
            what="fitted funnel on MIND, no item ids, click rates so far",
            epochs=3,
            max_seeds=3,
            exclude=("item", "impressions_2h", "impressions_12h", "impressions_2d"),
        ),
        *(
            StudySet(
                name=f"world_{seed}",
                what=f"the simulated funnel with seed {seed}",
                max_seeds=1,
                lines=("mixed_both", "ghcl", "heavy"),
                rates_of="world",
            )
            for seed in (1, 2)
        ),
    )
}
"""By name, in the order of the tables."""


def thinned(part: Part, num_requests: int) -> Part:
    """Return about evenly spaced requests of a part, all of them if there are no more.

    Examples
    --------
    >>> import tempfile
    >>> from prerank.world import WorldConfig, write_world
    >>> config = WorldConfig(num_users=20, num_items=300, num_requests=60, num_days=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = write_world(f"{folder}/log", config)
    ...     thinned(open_log(f"{folder}/log").all(), 6).num_requests
    6
    """
    if part.num_requests <= num_requests:
        return part
    pairs = part.rows.pairs
    rows = part.rows.within(int(pairs[0, 0]), int(pairs[-1, 1]))
    places = np.linspace(0, len(rows) - 1, num_requests).astype(np.int64)
    return Part(part.log, RowRanges.of(rows[places]), part.name)
