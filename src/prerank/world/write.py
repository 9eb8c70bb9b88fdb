"""Writing a world as a request log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prerank.log import WriteReport, write_log
from prerank.world.config import WorldConfig

__all__ = ["write_world"]


def write_world(
    out: str | Path,
    config: WorldConfig,
    progress: Callable[[int], None] | None = None,
) -> WriteReport:
    """Generate a world and write its request log, requests streamed in chunks.

    The log has the parts train (all but the last two days), valid (the last but one) and test
    (the last day). Its ``world.json`` holds the configuration, from which ``World.open`` makes
    the same world again; the seed is in the schema's lineage.

    Parameters
    ----------
    out : path
        Folder to make; it appears only when the log is whole.
    config : WorldConfig
        The world.
    progress : callable, optional
        Called with the number of requests just written.

    Returns
    -------
    WriteReport
        Sizes and counts.

    Raises
    ------
    InputError
        ``out`` exists and is not empty.

    Examples
    --------
    >>> import tempfile
    >>> from prerank.world import World
    >>> config = WorldConfig(num_users=20, num_items=300, num_requests=12, num_days=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = write_world(f"{folder}/log", config)
    ...     World.open(f"{folder}/log").config == config, report.num_requests
    (True, 12)
    """
    world = config.build()
    return write_log(
        out,
        world.schema,
        world.requests(),
        world.items(),
        splits=world.splits(),
        splits_rule="by day: the last is test, the one before it valid, all others train",
        extra={"world": world.record},
        progress=progress,
    )
