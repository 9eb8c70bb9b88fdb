"""How often a run was judged on requests that nothing was chosen on: the test opened once.

A run keeps ``opened.json`` in its folder: one line per evaluation on a part that it neither trained
nor validated on, with a digest of what was asked. Whoever reads a result sees how often the part
had been opened before, and with how many different settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path

import msgspec

from prerank.errors import InputError
from prerank.log import Part
from prerank.log.format.files import write_json
from prerank.training import read_run

__all__ = ["Opening", "open_part", "openings"]

_FILE = "opened.json"


class Opening(msgspec.Struct, frozen=True):
    """One evaluation.

    Parameters
    ----------
    log_id, part : str
        What was opened.
    settings : str
        Digest of the options that decide about the numbers.
    time : float
        Seconds since the epoch.
    """

    log_id: str
    part: str
    settings: str
    time: float


def openings(folder: Path) -> list[Opening]:
    """Read the evaluations that a run's folder remembers.

    Raises
    ------
    InputError
        The file is damaged.
    """
    path = folder / _FILE
    if not path.is_file():
        return []
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Opening])
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it") from None


def open_part(folder: Path, part: Part, settings: object) -> int:
    """Remember that a run is judged on a part, and return how often it has been, this included.

    Parts that the run trained or validated on are not remembered (0 is returned): there settings
    may be chosen. A folder that cannot be written is left as it is.

    Parameters
    ----------
    folder : Path
        Of a run or a cascade.
    part : Part
        What it is judged on.
    settings : object
        Plain values of the options that decide about the numbers.
    """
    log_id = part.log.schema.lineage.log_id
    if part.name in ("train", "valid"):
        return 0
    with contextlib.suppress(InputError):  # a cascade has no run.json of its own
        parts = read_run(folder).parts.values()
        if any((p.log_id, p.part) == (log_id, part.name) for p in parts):
            return 0
    digest = hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:16]
    found = [*openings(folder), Opening(log_id, part.name, digest, time.time())]
    with contextlib.suppress(OSError):
        write_json(found, folder / _FILE)
    return sum((o.log_id, o.part) == (log_id, part.name) for o in found)
