"""Folders that are there whole or not at all, also after a crash; files known by their digest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from prerank.errors import InputError
from prerank.log.format.files import FileEntry, atomic_folder, digest

__all__ = ["check_files", "describe_files", "durable_folder", "read_checked", "sync_folder"]

T = TypeVar("T")


@contextmanager
def durable_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes its name when the block succeeds.

    Everything in it is on the disk before it does: a crash at any moment leaves the whole folder
    or none (and perhaps a hidden ``.partial`` one, which nobody reads).

    Raises
    ------
    InputError
        ``out`` exists and is not an empty folder.
    PrerankError
        The disk is full or cannot be written.
    """
    with atomic_folder(out) as folder:
        yield folder
        for path in sorted(folder.rglob("*")):
            sync(path)
        sync(folder)
    sync_folder(out.parent)


def sync(path: Path) -> None:
    """Bring one file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    sync(path)


def describe_files(folder: Path, *, but: tuple[str, ...] = ()) -> dict[str, FileEntry]:
    """Return size and digest of every file below a folder, by its path in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [(path.relative_to(folder).as_posix(), path) for path in found]
    return {
        name: FileEntry(path.stat().st_size, digest(path))
        for name, path in names
        if name not in but
    }


def check_files(
    folder: Path, files: Mapping[str, FileEntry], what: str, *, digests: bool = True
) -> None:
    """Raise unless every listed file is there as it was written.

    Raises
    ------
    InputError
        A file that is missing, cut or changed; the first one is named.
    """
    for name, entry in files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{folder}: lists a file outside itself ('{name}'); it is no {what}")
        if not path.is_file():
            raise InputError(f"{path}: missing; the {what} is not whole: copy or export it again")
        size = path.stat().st_size
        if size != entry.bytes:
            raise InputError(
                f"{path}: has {size} bytes, expected {entry.bytes}; the {what} is cut or changed: "
                "copy or export it again"
            )
        if digests and digest(path) != entry.sha256:
            raise InputError(
                f"{path}: changed since it was written (its SHA-256 differs); copy or export the "
                f"{what} again"
            )


def read_checked(path: Path, kind: type[T], what: str) -> T:
    """Read a JSON file of a bundle.

    Raises
    ------
    InputError
        Not there, or not what was expected.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise InputError(f"{path}: not found; expected a file of a whole {what}") from None
    except InputError as error:
        raise InputError(f"{path}: {' '.join(str(error).splitlines())}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        line = " ".join(str(error).splitlines())
        raise InputError(f"{path}: no {what} ({line}); copy or export it again") from None
