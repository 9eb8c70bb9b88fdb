"""The file that names the active bundle: what a worker opens whenever it starts."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from prerank.errors import InputError, PrerankError

__all__ = ["Generation", "read_generation", "resolve_bundle", "write_generation"]


class Generation(msgspec.Struct, frozen=True):
    """What is active.

    Parameters
    ----------
    number : int
        1 at the start, one more after each reload.
    bundle : str
        Absolute path.
    version : str
        Of the model.
    """

    number: int
    bundle: str
    version: str


def read_generation(path: Path) -> Generation:
    """Read the file.

    Raises
    ------
    InputError
        Not there, or no such file.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Generation)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        line = " ".join(str(error).splitlines())
        raise InputError(f"{path}: no generation file ({line}); start the server anew") from None


def write_generation(path: Path, generation: Generation) -> None:
    """Write the file: readers see the old one or the new one.

    Raises
    ------
    PrerankError
        The disk is full or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(generation))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PrerankError(f"{path}: cannot be written: {error.strerror or error}") from None


def resolve_bundle(active: Path, name: str | None) -> Path:
    """Return the folder that a reload names.

    Parameters
    ----------
    active : Path
        The active bundle.
    name : str, optional
        A folder beside it; default: the active one.

    Raises
    ------
    InputError
        No such folder, or a name that leads elsewhere.
    """
    if name is None:
        return active
    # A client chooses among what the operator put there, and nothing else on this machine.
    if Path(name).name != name or name.startswith(".") or not name.isprintable():
        raise InputError("bundle: expected the name of a folder beside the active bundle, no path")
    path = active.parent / name
    if not path.is_dir():
        raise InputError("bundle: no such folder beside the active bundle")
    return path
